"""Stories: names of the model's actions, in order, in a file that says what it is about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quiesce.proofs.path import Call
from quiesce.statemachine.trace import spec_hash

VERSION = 1
MAX_REQUESTS = 8


class StoryError(ValueError):
    """A file is no story that can be told here."""


@dataclass(frozen=True, slots=True)
class Story:
    """Actions of world A, from its initial state."""

    actions: tuple[str, ...]
    """`request[0].submit`, `engine.pause(owner=caller, mode=keep)`."""
    requests: int = 1
    """Slots of requests in the model."""
    capacity: int | None = None
    """How many of them may hold blocks at once; None: all."""
    spec: str = field(default_factory=spec_hash)
    """Hash of the declaration it was made for."""
    about: str = ""

    @property
    def calls(self) -> list[Call]:
        return [Call.parse(name) for name in self.actions]

    def write(self, path: Path) -> None:
        told: dict[str, Any] = {"quiesce_story": VERSION, "spec": self.spec, "world": "engine", "requests": self.requests}
        told |= {"capacity": self.capacity} if self.capacity is not None else {}
        told |= {"about": self.about} if self.about else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**told, "actions": self.actions}, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Story:
        """What `write` wrote.

        Raises:
            StoryError: the file is no story; says which field, and why.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoryError(f"{path}: {error}") from error
        if not isinstance(told, dict) or told.get("quiesce_story") != VERSION:
            raise StoryError(f"{path}: not a quiesce story of version {VERSION}")
        known = {"quiesce_story", "spec", "world", "requests", "capacity", "about", "actions"}
        if unknown := sorted(set(told) - known):
            raise StoryError(f"{path}: unknown field {unknown[0]!r}")
        if told.get("world", "engine") != "engine":
            raise StoryError(f"{path}: world {told['world']!r}; only stories of the world `engine` drive an engine")
        requests, capacity = told.get("requests", 1), told.get("capacity")
        for name, value in (("requests", requests), ("capacity", 1 if capacity is None else capacity)):
            if type(value) is not int or not 1 <= value <= MAX_REQUESTS:
                raise StoryError(f"{path}: {name} must be 1 to {MAX_REQUESTS}, not {value!r}")
        return Story(
            _actions(path, told.get("actions")), requests, capacity, str(told.get("spec", "")), str(told.get("about", ""))
        )


def _actions(path: Path, told: object) -> tuple[str, ...]:
    if not isinstance(told, Sequence) or isinstance(told, str):
        raise StoryError(f"{path}: actions must be a list of names")
    for number, name in enumerate(told, 1):
        try:
            Call.parse(str(name))
        except ValueError as error:
            raise StoryError(f"{path}: action {number}: {error}") from error
    return tuple(map(str, told))
