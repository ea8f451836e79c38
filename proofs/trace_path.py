"""A trace is a path of the model: what an engine wrote is followed in the model, move by move, and every line must be where it is.

`Follower` takes the lines of world A (engine, pause tokens, memory, weights, requests, steps): each event must be an action that can
happen where the model stands, and the lines written of it must be the ones that the tables say of it, joint moves included. Requests
take slots, and an ended request's slot is free again; with as many slots as were ever taken at once, and as many blocks as slots, this
is the model of that many requests, so that every state the engine was in is one that the explorers reach in the world of that size.
The lines of the other machines (operation, stream, session, link) are held against their tables, record by record, guards aside.

What is not shown: numbers of blocks and tokens, the order of requests, times, and what the engine has not done in this run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from quiesce.proofs.path import Call, Moved, NotAPath, Path, Tables
from quiesce.proofs.world import World
from quiesce.spec import CATALOG
from quiesce.spec.language import Machine
from quiesce.statemachine import trace
from quiesce.statemachine.records import RESERVED_OWNERS

Entry = Mapping[str, Any]
MODELLED = ("engine", "pause_token", "memory", "weights", "request", "step")
ENDS = {"request": ("ended",), "step": ("retired", "dropped")}
"""States with which an instance is over: its slot is free."""
FIELDS = ("machine", "id", "key", "event", "from", "to", "row", "pass")


class NoPath(ValueError):
    """The trace is no path of the model; the text says at which line, and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line, self.reason = line, reason


class Follower:
    """Follows lines of world A; `path` is where the model stands."""

    def __init__(self, path: Path, callers: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.callers = dict(callers or {})
        """Name of a caller -> its instance in the model, where that is another."""
        self.slots: dict[int, str] = {}
        """Key of a request that is not over -> its instance in the model."""
        self.reserved: dict[int, str] = {}
        """Slots for requests that are yet to come, by key; the others take the first that is free."""
        self.steps: dict[int, str] = {}
        """Number of a step that is not over -> its instance."""
        self.num_actions = 0
        self._batch: Sequence[int] = ()
        self._over: list[tuple[dict[int, str], int]] = []

    def follow(self, entries: Sequence[Entry]) -> list[str]:
        """Follows the next lines, all of world A; the actions they are.

        Raises:
            NoPath: the line number counts from 0 in `entries`.
        """
        names: list[str] = []
        number = 0
        while number < len(entries):
            try:
                calls = self._calls(entries[number])
                found = self._take(calls)
            except NotAPath as error:
                raise NoPath(number, str(error)) from error
            told = entries[number : number + len(found)]
            self._compare(number, found, told)
            names += map(str, calls)
            number += len(found)
            self._free_slots()
        self.num_actions += len(names)
        return names

    def _calls(self, entry: Entry) -> list[Call]:
        """The event as the model has it: a step names its requests one after the other."""
        machine, event = str(entry["machine"]), str(entry["event"])
        data = dict(entry.get("data", {}))
        instance = self._instance(entry)
        takes = next((known.takes for known in CATALOG.machines[machine].events if known.name == event), None)
        if takes is None:
            raise NotAPath(f"{machine} has no event {event}")
        if "requests" not in takes:
            words = {key: str(value) for key, value in data.items()}
            if "owner" in words:
                words["owner"] = self.callers.get(words["owner"], words["owner"])
            return [Call(machine, instance, event, words)]
        if event == "plan":
            self._batch = data.get("requests", self._batch)
            data["requests"] = self._batch
        if not data.get("requests"):
            raise NotAPath(f"{event} names no request")
        unknown = [key for key in data["requests"] if key not in self.slots]
        if unknown:
            raise NotAPath(f"{event} names request {unknown[0]}, which is over or was never submitted")
        return [Call(machine, instance, event, {"requests": self.slots[key]}) for key in data["requests"]]

    def _instance(self, entry: Entry) -> str:
        machine, key = entry["machine"], int(entry["key"])
        if machine == "request":
            return self._slot(self.slots, key, self.path.tables.world.instances["request"], "submit", entry)
        if machine == "step":
            return self._slot(self.steps, key, ("0", "1"), "plan", entry)
        name = str(entry["id"])
        return "" if machine in ("engine", "weights") else self.callers.get(name, name) if machine == "pause_token" else name

    def _slot(self, slots: dict[int, str], key: int, names: Sequence[str], first: str, entry: Entry) -> str:
        if key not in slots:
            free = [name for name in names if name not in slots.values()]
            if entry["event"] != first:
                raise NotAPath(f"{entry['machine']} {key} is over, or was never there")
            if not free:
                raise NotAPath(f"more than {len(names)} of {entry['machine']} at once")
            slots[key] = self.reserved.pop(key, free[0]) if slots is self.slots else free[0]
        return slots[key]

    def _take(self, calls: Sequence[Call]) -> list[Moved]:
        lines: list[Moved] = []
        for call in calls:
            found = self.path.take(call)
            if not lines:
                lines = found
        return lines

    def _compare(self, first: int, found: Sequence[Moved], told: Sequence[Entry]) -> None:
        """The leader's line must come first; what moves with it may come in any order."""
        missing = list(found)
        for place, entry in enumerate(told):
            machine = str(entry["machine"])
            if machine not in MODELLED:
                raise NoPath(first + place, f"{missing[0]} is missing before it")
            try:
                instance = self._instance(entry)
            except NotAPath as error:
                raise NoPath(first + place, str(error)) from error
            line = Moved(machine, instance, str(entry["event"]), str(entry["from"]), str(entry["to"]), int(entry["row"]))
            if line not in missing or (place == 0 and line != missing[0]):
                raise NoPath(first + place, f"says {_told(line)}; the model says {' and '.join(map(_told, missing))}")
            missing.remove(line)
            if line.target in ENDS.get(machine, ()):
                self._over.append((self.slots if machine == "request" else self.steps, int(entry["key"])))
        if missing:
            raise NoPath(first + len(told), f"ends without {' and '.join(map(_told, missing))}")

    def _free_slots(self) -> None:
        """The slots of what is over; the newer step takes the place of an older one that has retired."""
        for slots, key in self._over:
            del slots[key]
        if self._over and self.path.value("step[1].state") == "empty" and "1" in self.steps.values():
            self.steps = dict.fromkeys(self.steps, "0")
        self._over.clear()


def _told(line: Moved) -> str:
    where = f"{line.machine}[{line.instance}]" if line.instance else line.machine
    return f"{where}.{line.event} from {line.source} to {line.target} (row {line.row})"


class Table:
    """Holds the lines of one machine against its table: declared rows, each record going on from where it was."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._states: dict[int, str] = {}

    def take(self, entry: Entry) -> None:
        """Raises NotAPath: no such row, or the record was elsewhere."""
        key, source, target, number = int(entry["key"]), str(entry["from"]), str(entry["to"]), int(entry["row"])
        was = self._states.get(key, str(self.machine.initial))
        rows = self.machine.rows
        row = rows[number] if 0 <= number < len(rows) else None
        if row is None or row.event != entry["event"] or source not in row.source or target != str(row.target or source):
            raise NotAPath(f"{self.machine.name} has no row {number} in which {entry['event']} leads from {source} to {target}")
        if was != source:
            raise NotAPath(f"{self.machine.name} {entry['id']} was {was}, not {source}")
        self._states[key] = target


def follow(entries: Iterable[Entry]) -> Follower:
    """Follows a whole trace, its header excluded, from the initial state.

    Raises:
        NoPath: with the number of the line in the file (the header is line 1) and the reason.
    """
    lines = [(number, entry) for number, entry in enumerate(entries, 2)]
    for number, entry in lines:
        _check_form(number, entry)
    events = [(number, entry) for number, entry in lines if "machine" in entry]
    mine = [(number, entry) for number, entry in events if entry["machine"] in MODELLED]
    most, callers = _needed([entry for _, entry in mine])
    follower = Follower(Path(_tables(most, tuple(callers.values()))), callers)
    try:
        follower.follow([entry for _, entry in mine])
    except NoPath as error:
        number = mine[error.line][0] if error.line < len(mine) else lines[-1][0] + 1
        raise NoPath(number, error.reason) from error
    tables = {name: Table(machine) for name, machine in CATALOG.machines.items() if name not in MODELLED}
    for number, entry in events:
        if entry["machine"] in tables:
            try:
                tables[entry["machine"]].take(entry)
            except NotAPath as error:
                raise NoPath(number, str(error)) from error
    _check_steps(lines)
    return follower


def follow_file(path: FilePath) -> Follower:
    """Follows a trace file.

    Raises:
        ValueError: not a trace, of another declaration, or no path.
    """
    told = trace.spec_of(path)
    if told != trace.spec_hash():
        raise ValueError(f"{path}: written under the declaration {told}; this one is {trace.spec_hash()}")
    return follow(trace.read(path))


@cache
def _tables(most: int, callers: tuple[str, ...]) -> Tables:
    return Tables(World.engine(most, callers=callers))


def _needed(entries: Iterable[Entry]) -> tuple[int, dict[str, str]]:
    """How many requests there are at once, at least one, and an instance for each caller that holds or releases a token."""
    live: set[int] = set()
    most = 1
    owners: dict[str, None] = {}
    for entry in entries:
        if entry["machine"] == "request":
            (live.discard if entry["to"] in ENDS["request"] else live.add)(int(entry["key"]))
            most = max(most, len(live))
        elif entry["machine"] == "pause_token":
            owners[str(entry["id"])] = None
        elif "owner" in entry.get("data", {}):
            owners[str(entry["data"]["owner"])] = None
    names = [owner for owner in owners if owner not in RESERVED_OWNERS] or ["caller"]
    return most, {owner: f"caller_{number}" if number else "caller" for number, owner in enumerate(names)}


def _check_form(number: int, entry: Entry) -> None:
    missing = [name for name in FIELDS if name not in entry] if "machine" in entry else [] if "step" in entry else ["machine"]
    if missing:
        raise NoPath(number, f"no {' and no '.join(missing)}")
    if "machine" in entry and entry["machine"] not in CATALOG.machines:
        raise NoPath(number, f"no machine is called {entry['machine']!r}")


def _check_steps(lines: Iterable[tuple[int, Entry]]) -> None:
    """A line about a device step belongs to one that lands in the same pass, or has landed: once."""
    told: dict[int, int] = {}
    landed: dict[int, int] = {}
    for number, entry in lines:
        if "step" in entry:
            if entry["step"] in told:
                raise NoPath(number, f"step {entry['step']} was told in line {told[entry['step']]} already")
            told[entry["step"]] = number
        elif entry["machine"] == "step" and entry["event"] == "land":
            landed[int(entry["key"])] = int(entry["pass"])
    for step, number in told.items():
        if step not in landed:
            raise NoPath(number, f"step {step} has not landed")
