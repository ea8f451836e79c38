"""The refinement map: from an engine's records to a state of the model of world A, field by field; and the same as a page to read.

Every variable of the model is computed from one field of one record, and every field of every record is mapped or says why it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quiesce.engine.request import Request
from quiesce.proofs.guards import SAME, Reader
from quiesce.proofs.search import State
from quiesce.spec.vocabulary import Tag
from quiesce.statemachine.records import (
    EngineRecord,
    LinkRecord,
    MemoryRecord,
    OperationRecord,
    Record,
    RequestRecord,
    SessionRecord,
    StepRecord,
    StreamRecord,
    TokenRecord,
    WeightsRecord,
    World,
)

Read = Callable[[World, Any], object]


@dataclass(frozen=True, slots=True)
class Mapped:
    """One kind of variable: where the engine keeps it."""

    machine: str
    variable: str
    kind: type[Record]
    field: str
    """Of the record."""
    engine: str
    """Where the record is, `world` being `AsyncEngine._core.world`."""
    read: Read
    """Its value, of (world, record)."""


def _field(name: str) -> Read:
    return lambda world, record: getattr(record, name)


def _own(machine: str, kind: type[Record], engine: str, *names: str) -> tuple[Mapped, ...]:
    return tuple(Mapped(machine, name, kind, name, engine, _field(name)) for name in names)


def _names(slot: str) -> Read:
    return lambda world, record: record.key in getattr(world, slot).members


MAPPED: tuple[Mapped, ...] = (
    *_own("engine", EngineRecord, "world.engine", "state", "goal", "granted"),
    *_own("pause_token", TokenRecord, "world.pause_token[owner]", "state"),
    *_own("memory", MemoryRecord, "world.memory[tag]", "state", "policy"),
    *_own("weights", WeightsRecord, "world.weights", "state", "base_intact"),
    *_own("step", StepRecord, "world.older, world.newer", "state"),
    *_own("request", RequestRecord, "world.requests[key]", "state", "begun", "abort_mark", "eos_mark", "fault_mark", "stale"),
    Mapped("request", "member[0]", StepRecord, "members", "key in world.older.members", _names("older")),
    Mapped("request", "member[1]", StepRecord, "members", "key in world.newer.members", _names("newer")),
)

ELSEWHERE = "of another world than the engine's"
LEFT_OUT: Mapping[tuple[type[Record], str], str] = {
    (Record, "key"): "says which slot a request or a step takes; slots are free again when it is over",
    (Record, "world"): "the way back from a record to all others",
    (TokenRecord, "owner"): "which instance it is; any name of a caller is an instance of its own",
    (MemoryRecord, "tag"): "which instance it is",
    (WeightsRecord, "version"): "a number that only grows; what it is compared for is `stale`",
    (RequestRecord, "request_id"): "a name for people; the key is the identity (S5)",
    **{(OperationRecord, name): ELSEWHERE for name in OperationRecord.__slots__},
    **{(StreamRecord, name): ELSEWHERE for name in StreamRecord.__slots__},
    **{(SessionRecord, name): ELSEWHERE for name in SessionRecord.__slots__},
    **{(LinkRecord, name): ELSEWHERE for name in LinkRecord.__slots__},
    **{(Request, name): "data of the scheduler and of the answer: no guard reads it" for name in Request.__slots__},
}
"""Fields that no variable of the model is computed from, and why none is lost by it."""
OF_THE_WORLD: Mapping[str, str] = {
    "engine": "engine", "weights": "weights", "memory": "memory[tag]", "pause_token": "pause_token[owner]", "requests": "request[slot]",
    "older": "step[0]", "newer": "step[1]",
    "by_state": "an index of `requests`", "population": "a counter that tells whether something found before still holds",
    "empty_step": "the slot that names nobody: step.state = empty", "free": "fewer requests with blocks than the world's capacity",
    "operations": ELSEWHERE, "streams": ELSEWHERE, "sessions": ELSEWHERE, "link": ELSEWHERE,
    "_named": "remembers a batch", "_members": "remembers a batch", "_runnable_at": "remembers a batch",
}  # fmt: skip
"""What becomes of each attribute of `World`."""
_BY_VARIABLE = {(mapped.machine, mapped.variable): mapped for mapped in MAPPED}


def abstract(world: World, reader: Reader, slots: Mapping[str, int]) -> State:
    """The state of the model in which these records are.

    Args:
        reader: the model's variables.
        slots: instance of `request` -> key of the record in it; a slot that is missing, or whose request is over, is `absent`.
    """
    values = []
    for place, variable in enumerate(reader.variables):
        machine, instance, name = _parts(variable.name)
        mapped = _BY_VARIABLE[machine, name]
        record = _record(world, machine, instance, slots)
        if record is None:
            values.append(reader.initial[place])
            continue
        found = mapped.read(world, record)
        word = ("no", "yes")[found] if isinstance(found, bool) else str(found)
        values.append(variable.values.index(SAME.get((machine, word), word) if name == "state" else word))
    return tuple(values)


def difference(reader: Reader, expected: State, found: State) -> str:
    """Where two states differ, in words; empty where they do not."""
    return "; ".join(
        f"{variable.name} is {variable.values[is_]}, not {variable.values[wanted]}"
        for variable, wanted, is_ in zip(reader.variables, expected, found, strict=True)
        if wanted != is_
    )


def projected(reader: Reader, state: State) -> dict[str, object]:
    """What `AsyncEngine.status()` must say in a state of the model; requests without those that are over."""
    words = {variable.name: variable.values[value] for variable, value in zip(reader.variables, state, strict=True)}
    requests: dict[str, int] = {}
    for slot in reader.world.instances["request"]:
        if (now := words[f"request[{slot}].state"]) != "absent":
            requests[now] = requests.get(now, 0) + 1
    tokens = {owner: words[f"pause_token[{owner}].state"] for owner in reader.world.instances["pause_token"]}
    return {
        "engine": words["engine.state"],
        "memory": {tag.value: words[f"memory[{tag.value}].state"] for tag in Tag},
        "weights": words["weights.state"],
        "pause_owners": {owner: mode for owner, mode in tokens.items() if mode != "free"},
        "requests": requests,
        "steps_in_flight": sum(words[f"step[{slot}].state"] in ("launched", "landed") for slot in ("0", "1")),
    }


def _parts(name: str) -> tuple[str, str, str]:
    """`request[0].member[1]` is (request, 0, member[1])."""
    where, _, variable = name.partition(".")
    machine, _, instance = where.rstrip("]").partition("[")
    return machine, instance, variable


def _record(world: World, machine: str, instance: str, slots: Mapping[str, int]) -> Record | None:
    match machine:
        case "engine":
            return world.engine
        case "weights":
            return world.weights
        case "memory":
            return world.memory[Tag(instance)]
        case "pause_token":
            return world.pause_token.get(instance)
        case "step":
            return world.older if instance == "0" else world.newer
    key = slots.get(instance)
    return None if key is None else world.requests.get(key)


def fields() -> list[tuple[type[Record], str]]:
    """Every field of every record, with what the engine adds to a record of world A."""
    found: list[tuple[type[Record], str]] = []
    waiting: list[type[Record]] = [Record]
    for kind in waiting:  # grows
        waiting += kind.__subclasses__()
        is_ours = kind.__module__ == Record.__module__
        adds = kind.__module__.startswith("quiesce.engine.") and kind.machine in {mapped.machine for mapped in MAPPED}
        found += [(kind, name) for name in kind.__slots__] if is_ours or adds else []
    return found


def markdown() -> str:
    """The map as a page: engine field, record, model variable; then what is left out, and why."""
    lines = ["| engine field | record | model variable |", "|---|---|---|"]
    for mapped in MAPPED:
        instance = {"pause_token": "[owner]", "memory": "[tag]", "step": "[place]", "request": "[slot]"}.get(mapped.machine, "")
        lines.append(
            f"| `{mapped.engine}` | `{mapped.kind.__name__}.{mapped.field}` | `{mapped.machine}{instance}.{mapped.variable}` |"
        )
    lines += ["", "| left out | why |", "|---|---|"]
    grouped: dict[tuple[str, str], list[str]] = {}
    for (kind, name), reason in LEFT_OUT.items():
        grouped.setdefault((kind.__name__, reason), []).append(name)
    lines += [f"| {_said(kind, names)} | {reason} |" for (kind, reason), names in grouped.items()]
    lines += [
        f"| `World.{name}` | {reason} |"
        for name, reason in OF_THE_WORLD.items()
        if reason not in (ELSEWHERE, "remembers a batch")
    ]
    return "\n".join(lines) + "\n"


def _said(kind: str, names: Sequence[str]) -> str:
    return ", ".join(f"`{kind}.{name}`" for name in names) if len(names) <= 2 else f"`{kind}`: {', '.join(names)}"


def page() -> str:
    """`proofs/REFINEMENT.md`."""
    return f"""# The refinement map

From an engine's records to a state of the model of world A; `world` is `AsyncEngine._core.world`. Generated from `proofs/refinement.py`
by `python -m quiesce.proofs.refinement`, and held against every record and every variable by `tests/proofs/test_refinement.py`.
A `[slot]` holds one request after the other; a request that has ended is `absent`, a step that has retired or was dropped is `empty`.

{markdown()}"""


if __name__ == "__main__":
    (Path(__file__).parent / "REFINEMENT.md").write_text(page(), encoding="utf-8")
