"""Stray events: messages that come twice, too late, or to nobody. The tables ignore or refuse them, and nothing may change.

In a running engine most callers look before they ask, so that many a cell that the tables ignore or refuse is never put to the gate. Here
it is: any record that is or was, in whatever state it is in, and any event that has no row there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from quiesce.engine.api import AsyncEngine
from quiesce.spec import CATALOG
from quiesce.stateful.fuzz.coverage import Cell, Coverage, declared_cells
from quiesce.statemachine.gate import Gate, RefusedTransition, Transition
from quiesce.statemachine.machine import NO_DATA
from quiesce.statemachine.records import Record, RequestRecord, SessionRecord, StreamRecord

CARRIED: Mapping[str, object] = {
    "owner": "user", "mode": "keep", "weights": "offload", "kv_cache": "offload", "tags": "both", "policy": "offload", "requests": (),
}  # fmt: skip
"""What an event carries, where it carries anything."""


class Strays:
    """What could come astray in one engine."""

    def __init__(self, engine: AsyncEngine, coverage: Coverage | None) -> None:
        self._engine, self._coverage = engine, coverage
        self._met: dict[tuple[str, str], Record] = {}
        """The last record of each machine that was in each state: what is over is in no world any more."""

    def watch(self) -> None:
        """Remembers from now on who was where."""
        for owner in (self._engine._core, self._engine._front):
            owner.monitor.check = self._meeting(owner.monitor.check)  # type: ignore[assignment, method-assign]

    def _meeting(self, check: Callable[[Iterable[Transition]], None]) -> Callable[[Iterable[Transition]], None]:
        def checked(log: Iterable[Transition]) -> None:
            self._meet(log)
            check(log)

        return checked

    def _meet(self, log: Iterable[Transition]) -> None:
        for record, _, _, target, *_ in log:
            self._met[record.machine, target] = record

    def _records(self) -> Iterator[tuple[Gate, Record]]:
        core, front = self._engine._core, self._engine._front
        ours, theirs = core.world, front.world
        lasting = [ours.engine, ours.weights, *ours.memory.values(), *ours.pause_token.values(), ours.older, ours.newer]
        nobody = RequestRecord(ours, -1, "nobody")
        yield from ((core.gate, record) for record in (*lasting, *ours.operations.values(), nobody))
        yield from (
            (front.gate, record) for record in (theirs.link, StreamRecord(theirs, -1, "nobody"), SessionRecord(theirs, -1))
        )
        for (machine, state), record in self._met.items():
            if record.state == state:
                yield (core.gate if machine in ("request", "step", "operation") else front.gate), record

    def options(self) -> list[tuple[Gate, Record, str, Cell]]:
        """What may come now, each cell once."""
        cells = declared_cells()
        found: dict[Cell, tuple[Gate, Record, str, Cell]] = {}
        for gate, record in self._records():
            for event in CATALOG.machines[record.machine].events:
                cell = (record.machine, str(record.state), str(event.name))
                if cells.get(cell, "moves") != "moves":
                    found.setdefault(cell, (gate, record, event.name, cell))
        return list(found.values())

    def throw(self, gate: Gate, record: Record, event: str) -> str:
        """Puts one event to the gate; what it did that it must not, or nothing."""
        takes = CATALOG.machines[record.machine].event(event).takes
        before = record.state
        if self._coverage is not None:
            self._coverage.astray = True
        try:
            outcome = gate.fire(record, event, {name: CARRIED[name] for name in takes} if takes else NO_DATA)
        except RefusedTransition:
            pass
        else:
            if outcome.moved or outcome.effects:
                return f"a stray {event} moved a {record.machine} that was {before}"
        finally:
            if self._coverage is not None:
                self._coverage.astray = False
        return ""


def chosen(options: list[tuple[Gate, Record, str, Cell]], which: int, count: int) -> list[tuple[Gate, Record, str, Cell]]:
    """`count` of them, from a place on that `which` says."""
    start = which % max(len(options), 1)
    return [*options[start:], *options[:start]][:count]
