"""One run of the fuzzer as data: a JSON file that says everything, so that the run can be repeated anywhere.

    {"quiesce_schedule": 1, "device": "ledger", "config": {...}, "adversarial": false, "timely": true,
     "actions": [["connect", {"name": "c0", ...}], ["sleep", {...}]], "choices": [0, 0, 2], "oracle": "tokens", "failure": "..."}

`choices` are indices among the options of each open decision; 0 is first in, first out, and past their end all are 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quiesce.stateful.fuzz.alphabet import Action
from quiesce.statemachine.trace import spec_hash

VERSION = 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a run is a function of, and how it ended."""

    actions: tuple[Action, ...]
    choices: tuple[int, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    adversarial: bool = False
    timely: bool = True
    device: str = "ledger"
    oracle: str = ""
    """Who noticed; empty if nobody did."""
    failure: str = ""

    @property
    def num_deviations(self) -> int:
        """Choices that are not first in, first out."""
        return sum(choice > 0 for choice in self.choices)

    def to_json(self) -> dict[str, Any]:
        return {
            "quiesce_schedule": VERSION, "spec": spec_hash(), "device": self.device, "config": dict(self.config),
            "adversarial": self.adversarial, "timely": self.timely,
            "actions": [[action.verb, dict(action.given)] for action in self.actions], "choices": list(self.choices),
            "oracle": self.oracle, "failure": self.failure,
        }  # fmt: skip

    def save(self, path: Path) -> Path:
        """Writes it, one action a line."""
        found = self.to_json()
        actions = ",\n".join(f"  {json.dumps(action)}" for action in found.pop("actions"))
        head = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{\n{head},\n "actions": [\n{actions}\n ]\n}}\n', encoding="utf-8")
        return path


def from_json(found: Mapping[str, Any]) -> Schedule:
    """A schedule that was written down.

    Raises:
        ValueError: it is not one of this version.
    """
    if found.get("quiesce_schedule") != VERSION:
        raise ValueError(f"not a quiesce schedule of version {VERSION}")
    return Schedule(
        tuple(Action(verb, given) for verb, given in found["actions"]),
        tuple(found["choices"]), found["config"], found["adversarial"], found["timely"], found["device"],
        found.get("oracle", ""), found.get("failure", ""),
    )  # fmt: skip


def load(path: Path) -> Schedule:
    """Reads a schedule from a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not one.
    """
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
