"""The conformance monitor, always on: what happened is held against the declaration, not against the sealed rows that made it happen.

Three looks. Before a move that mints effects: what is about to happen is permitted by the properties on moves. After each pass: every
logged transition is a declared one and continues where its record was. At the end of each pass: the `always` properties hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from quiesce.spec import MACHINES, PROPERTIES
from quiesce.spec.language import Judge, Modality
from quiesce.spec.vocabulary import RequestEvent, RequestState, StepEvent
from quiesce.statemachine.compile import Predicate, compile_guard
from quiesce.statemachine.gate import Transition
from quiesce.statemachine.machine import NO_DATA
from quiesce.statemachine.records import Record, RequestRecord, World


class ConformanceError(Exception):
    """The engine did what the declaration does not allow. The engine fails, and says so."""


@cache
def _declared() -> dict[str, set[tuple[str, str, str]]]:
    legal: dict[str, set[tuple[str, str, str]]] = {}
    for machine in MACHINES:
        legal[machine.name] = {
            (row.event, source, source if row.target is None else row.target) for row in machine.rows for source in row.source
        }
    return legal


@cache
def _always() -> list[tuple[str, Predicate]]:
    found = []
    for prop in PROPERTIES:
        if prop.modality is Modality.always and Judge.monitor in prop.judges and prop.when:
            predicate = compile_guard("engine", prop.when)
            if predicate is not None:
                found.append((f"{prop.name}: {prop.sentence}", predicate))
    return found


class Monitor:
    """Watches one world. `watch` goes to the gate; `check` is called after each pass with the drained log."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.num_checked = 0
        self._nobody_owed_at = -1
        self._legal = _declared()
        self._always = _always()
        self._last: dict[Record, str] = {}
        self._terminal = {machine.name: frozenset(machine.terminal) for machine in MACHINES}
        self._gate_open = compile_guard("engine", "gate_open")
        self._watched: dict[str, Callable[[Record], None]] = {
            StepEvent.plan: self._before_plan,
            StepEvent.launch: self._before_launch,
            RequestEvent.reap: self._before_free,
            RequestEvent.retracted: self._before_free,
        }

    def watch(self, record: Record, event: str) -> None:
        """Looks at a move that is about to mint effects.

        Raises:
            ConformanceError: a property on moves would break.
        """
        look = self._watched.get(event)
        if look is not None:
            look(record)

    def _before_plan(self, record: Record) -> None:
        if self._gate_open is not None and not self._gate_open(self.world.engine, NO_DATA):
            raise ConformanceError(
                f"T4_steps_through_the_gate: step {record.name} is planned or launched through a closed gate"
            )

    def _before_launch(self, record: Record) -> None:
        self._before_plan(record)
        if self._nobody_owed_at == self.world.population:
            return
        pending = [request.name for request in self.world.requests.values() if _has_boundary_work(request)]
        if pending:
            raise ConformanceError(f"R1_boundary_first: step {record.name} is launched before {', '.join(pending)} was seen to")
        self._nobody_owed_at = self.world.population

    def _before_free(self, record: Record) -> None:
        for step in (self.world.older, self.world.newer):
            if record.key in step.members:
                raise ConformanceError(f"S7_no_free_under_a_writer: step {step.name} still names {record.name}")

    def check(self, log: Iterable[Transition]) -> None:
        """Holds a pass against the declaration.

        Raises:
            ConformanceError: a transition was not declared, or a property does not hold.
        """
        last = self._last
        for record, event, source, target, _, _ in log:
            self.num_checked += 1
            if (event, source, target) not in self._legal[record.machine]:
                raise ConformanceError(f"{record.machine} {record.name}: {event} from {source} to {target} is not declared")
            if last.get(record, source) != source:
                raise ConformanceError(f"{record.machine} {record.name}: was {last[record]}, now leaves {source} by {event}")
            last[record] = target
            if target in self._terminal[record.machine]:
                del last[record]
        for sentence, predicate in self._always:
            if not predicate(self.world.engine, NO_DATA):
                raise ConformanceError(sentence)


def _has_boundary_work(request: RequestRecord) -> bool:
    """Whether it is still owed an answer that a mark asks for; a request that is draining has been answered."""
    return (request.abort_mark or request.fault_mark or request.eos_mark) and request.state != RequestState.draining
