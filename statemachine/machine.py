"""One flat `transitions.Machine` per table, with nothing of the package's sharp edges left open, then sealed.

Rows are registered through the public interface of `transitions`, so the objects that decide are that package's own. `seal()` reads
them back: what the gate uses is derived from the `transitions` objects and from nothing else, and editing one before sealing changes
what the engine does. After sealing every mutator raises, so the derived rows cannot go stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from transitions import Event as StockEvent
from transitions import EventData, Machine, Transition

from quiesce.spec import MACHINES
from quiesce.spec import language as spec
from quiesce.spec.check import decided
from quiesce.spec.guards import Joint, parse_effect, parse_joint
from quiesce.statemachine.compile import Apply, Data, Predicate, compile_guard, compile_updates
from quiesce.statemachine.effects import BY_WORD, Effect
from quiesce.statemachine.records import Record

NO_DATA: Data = {}


class Condition:
    """A compiled guard in the form `transitions` calls."""

    def __init__(self, text: str, predicate: Predicate) -> None:
        self.predicate = predicate
        self.__name__ = text

    def __call__(self, event: EventData) -> bool:
        record: Any = event.model
        data: Any = event.args
        return self.predicate(record, data[0])


@dataclass(frozen=True, slots=True)
class Consequences:
    """What a row does beside moving the state."""

    index: int
    apply: Apply | None
    joints: tuple[Joint, ...]
    effects: tuple[tuple[type[Effect], str], ...]


class RowTransition(Transition):
    """A `transitions` transition that knows the consequences of its row."""

    def __init__(self, *args: Any, consequences: Consequences | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.consequences = consequences or Consequences(-1, None, (), ())


@dataclass(frozen=True, slots=True)
class Move:
    """A sealed row: what the gate needs of one transition, flat, because it is read on every fire."""

    guard: Predicate | None
    target: Any
    """State to move to, None to stay."""
    apply: Apply | None
    effects: tuple[tuple[type[Effect], str], ...]
    joints: tuple[Joint, ...]
    index: int
    watched: bool
    """Whether the monitor looks before it is made: it mints effects, or is a move of a step."""
    indexed: bool
    """Whether the record has an index to keep when it has moved there."""
    transition: RowTransition


@dataclass(frozen=True, slots=True)
class Fallback:
    """What decides a cell when no move is possible; empty: the event waits."""

    ignored: str | None = None
    refused: tuple[tuple[Predicate | None, spec.Refused], ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """Everything about one (state, event)."""

    moves: tuple[Move, ...]
    fallback: Fallback


class LifecycleMachine(Machine):
    """The compiled table of one machine."""

    transition_cls = RowTransition

    def __init__(self, table: spec.Machine) -> None:
        self.table = table
        self.cells: dict[str, dict[str, Cell]] | None = None
        super().__init__(
            model=None,
            states=table.states,
            initial=table.initial,
            auto_transitions=False,
            send_event=True,
            ignore_invalid_triggers=False,
            queued=False,
        )
        for index, row in enumerate(table.rows):
            predicate = compile_guard(table.name, row.when)
            self.add_transition(
                str(row.event),
                [table.states(state) for state in row.source],
                None if row.target is None else table.states(row.target),
                conditions=[] if predicate is None else [Condition(row.when, predicate)],
                consequences=_consequences(table, index, row),
            )

    @property
    def sealed(self) -> bool:
        return self.cells is not None

    def _repr_svg_(self) -> str | None:
        """Notebooks draw the machine (Graphviz)."""
        from quiesce.statemachine.notebook import machine_svg

        return machine_svg(self.table)

    def _repr_html_(self) -> str:
        """Notebooks without Graphviz show the Mermaid text."""
        from quiesce.statemachine.notebook import machine_html

        return machine_html(self.table)

    def seal(self) -> LifecycleMachine:
        """Reads the rows out of the `transitions` objects and forbids any further change.

        Raises:
            SpecError: a transition carries a callback or a condition that is not a declared guard.
        """
        declared = {str(event.name) for event in self.table.events}
        if set(self.events) - declared:
            raise spec.SpecError(f"{self.table.file}: events that no row declares: {sorted(set(self.events) - declared)}")
        if any(getattr(self, hook) for hook in _MACHINE_HOOKS) or any(s.on_enter or s.on_exit for s in self.states.values()):
            raise spec.SpecError(f"{self.table.file}: a machine with callbacks cannot be sealed")
        self.cells = {event.name: self._event_cells(event.name) for event in self.table.events}
        return self

    def _event_cells(self, event: str) -> dict[str, Cell]:
        found: StockEvent | None = self.events.get(event)
        entries = decided(self.table, event)
        cells: dict[str, Cell] = {}
        for state in self.table.states:
            moves = tuple(self._move(transition) for transition in (found.transitions.get(state.name, ()) if found else ()))
            cells[state] = Cell(moves, self._fallback(event, entries[state]))
        return cells

    def _move(self, transition: Any) -> Move:
        if not isinstance(transition, RowTransition) or transition.before or transition.after or transition.prepare:
            raise spec.SpecError(f"{self.table.file}: a transition with callbacks cannot be sealed: {transition!r}")
        guards: list[Predicate] = []
        for condition in transition.conditions:
            if not isinstance(condition.func, Condition) or not condition.target:
                raise spec.SpecError(f"{self.table.file}: only declared guards can be sealed: {transition!r}")
            guards.append(condition.func.predicate)
        target = None if transition.dest is None else self.table.states[transition.dest]
        row = transition.consequences
        return Move(
            _all_of(guards),
            target,
            row.apply,
            row.effects,
            row.joints,
            row.index,
            bool(row.effects) or self.table.name == "step",
            target is not None and RECORDS[self.table.name].follows(target),
            transition,
        )

    def _fallback(self, event: str, entries: list[spec.Row | spec.Ignored | spec.Refused]) -> Fallback:
        refused = tuple((compile_guard(self.table.name, e.when), e) for e in entries if isinstance(e, spec.Refused))
        ignored = next((entry.reason for entry in entries if isinstance(entry, spec.Ignored)), None)
        return Fallback(ignored, refused)

    def _refuse_change(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{self.table.name} is sealed: change the row in {self.table.file} instead")

    def __getattribute__(self, name: str) -> Any:
        if name in _MUTATORS and super().__getattribute__("__dict__").get("cells") is not None:
            return super().__getattribute__("_refuse_change")
        return super().__getattribute__(name)


_MACHINE_HOOKS = ("prepare_event", "before_state_change", "after_state_change", "finalize_event", "on_exception", "on_final")
_MUTATORS = frozenset(
    {
        "add_transition",
        "add_transitions",
        "add_ordered_transitions",
        "remove_transition",
        "add_state",
        "add_states",
        "add_model",
    }
)


def _all_of(guards: list[Predicate]) -> Predicate | None:
    if len(guards) <= 1:
        return guards[0] if guards else None
    return lambda record, data: all(guard(record, data) for guard in guards)


def _consequences(table: spec.Machine, index: int, row: spec.Row) -> Consequences:
    effects = tuple((BY_WORD[effect.name], effect.detail) for effect in map(parse_effect, row.effects))
    return Consequences(index, compile_updates(table.name, row.sets), tuple(parse_joint(text) for text in row.also), effects)


@cache
def sealed_machines() -> Mapping[str, LifecycleMachine]:
    """The machines every gate shares: sealed, so that nobody can change them, and without state of their own."""
    return {name: machine.seal() for name, machine in build().items()}


def build() -> dict[str, LifecycleMachine]:
    """Fresh machines, not sealed, for those tables whose records the engine keeps."""
    return {table.name: LifecycleMachine(table) for table in MACHINES if table.name in KEPT}


RECORDS = {record.machine: record for record in Record.__subclasses__()}
KEPT = frozenset(RECORDS)
"""Machines of which the engine keeps records today. The other tables are declared and checked for form."""
