"""The gate: `fire(record, event)` is the only writer of a `.state`, and the only maker of effects.

A fired event is decided whole before anything changes: the row whose guard holds, and one row in every machine that the row moves
jointly. Then updates, states and indexes change, in that order, and the effects are minted. Nothing here waits, and nothing performs
an effect.

`QUIESCE_GATE=stock` decides and moves through the unmodified code of `transitions` instead of the sealed rows: forty times slower,
the same answers; a test compares the two for every state, event and valuation of the guards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from transitions import EventData

from quiesce.spec.guards import Joint
from quiesce.spec.language import Error, Refused, SpecError
from quiesce.statemachine.compile import Data
from quiesce.statemachine.effects import Effect, take_mint_key
from quiesce.statemachine.machine import NO_DATA, Cell, LifecycleMachine, Move, sealed_machines
from quiesce.statemachine.records import Record, World

_MINT = take_mint_key()


class RefusedTransition(Exception):
    """The event is illegal in this state; nothing has changed. The engine turns it into the error its caller meets."""

    def __init__(self, record: Record, event: str, entry: Refused, allowed: tuple[str, ...]) -> None:
        self.machine, self.record, self.state, self.event = record.machine, record.name, str(record.state), event
        self.error, self.how_to, self.allowed = entry.error, entry.how_to, allowed
        super().__init__(f"{self.machine} {self.record}: {event} while {self.state}; {self.how_to}")


class IllegalTransition(RefusedTransition):
    """A promise of our own is broken: an internal event in a state where it cannot be. A defect, never a caller's fault."""


class Outcome(NamedTuple):
    """What became of an event: the effects of its move, or why it did not move."""

    moved: bool
    effects: tuple[Effect, ...] = ()
    reason: str = ""
    """Why the event was ignored; empty for a core event that waits for its guard."""


Transition = tuple[Record, str, str, str, int, Data]
"""One transition that happened, as the log keeps it: record, event, state before, state after, the row's place in its table (from 0),
and the data that the event carried."""

MOVED = Outcome(True)
WAITS = Outcome(False)


class Gate:
    """Fires events on the records of one world.

    `log` collects every transition until its owner drains it (once a pass).
    """

    def __init__(self, machines: Mapping[str, LifecycleMachine] | None = None, stock: bool | None = None) -> None:
        self.stock = os.environ.get("QUIESCE_GATE") == "stock" if stock is None else stock
        self.machines = machines or sealed_machines()
        self.log: list[Transition] = []
        self.watch: Callable[[Record, str], None] | None = None
        """Called before each move of a step, and each that mints effects; the conformance monitor sits here."""
        self._cells: dict[str, dict[str, dict[str, Cell]]] = {}
        for name, machine in self.machines.items():
            cells = machine.cells or machine.seal().cells
            if cells is None:
                raise SpecError(f"{name} could not be sealed")
            self._cells[name] = cells

    def fire(self, record: Record, event: str, data: Data = NO_DATA) -> Outcome:
        """Moves the record, or says why not.

        Raises:
            RefusedTransition: the event is illegal here; nothing has changed.
            IllegalTransition: likewise, and it is the engine's own fault.
        """
        cell = self._cells[record.machine][event][record.state]
        move: Move | None = None
        if self.stock:
            move = self._choose_stock(record, event, cell, data)
        else:  # `_choose`, written out: every transition of the engine passes here
            for candidate in cell.moves:
                guard = candidate.guard
                if guard is None or guard(record, data):
                    move = candidate
                    break
        if move is None:
            return self._fall_back(record, event, cell, data)
        if move.joints:
            return self._fire_jointly(record, event, move, data)
        self._make(record, event, move, data)
        if not move.effects:
            return MOVED
        return Outcome(True, tuple([kind(record.key, _MINT, detail) for kind, detail in move.effects]))

    def may(self, record: Record, event: str, data: Data = NO_DATA) -> bool:
        """Whether the event would move the record now."""
        return self._choose(record, event, self._cells[record.machine][event][record.state], data) is not None

    def allowed(self, record: Record) -> tuple[str, ...]:
        """Events that callers may send in this state: those with a row whose cell is not refused outright."""
        cells = self._cells[record.machine]
        table = self.machines[record.machine].table
        asked = [event for event in table.events if event.owner in ("client", "operator")]
        return tuple(str(event.name) for event in asked if cells[event.name][record.state].moves)

    def _choose(self, record: Record, event: str, cell: Cell, data: Data) -> Move | None:
        """The first row whose guard holds."""
        if self.stock:
            return self._choose_stock(record, event, cell, data)
        for move in cell.moves:
            if move.guard is None or move.guard(record, data):
                return move
        return None

    def _choose_stock(self, record: Record, event: str, cell: Cell, data: Data) -> Move | None:
        machine = self.machines[record.machine]
        stock = machine.events[event]
        question = EventData(machine.get_state(record.state), stock, machine, record, args=[data], kwargs={})
        for move in cell.moves:
            if all(condition.check(question) for condition in move.transition.conditions):
                return move
        return None

    def _make(self, record: Record, event: str, move: Move, data: Data) -> None:
        """Updates, state, index, log; the one place where a state is written."""
        if move.watched and self.watch is not None:
            self.watch(record, event)
        source = target = record.state
        if self.stock:
            self._execute_stock(record, event, move, data)
        if move.apply is not None:
            move.apply(record, data)
        if move.target is not None:
            target = move.target
            if not self.stock:
                record.state = target
            if move.indexed and target is not source:
                record.moved(source, target)
        self.log.append((record, event, source, target, move.index, data))

    def _execute_stock(self, record: Record, event: str, move: Move, data: Data) -> None:
        """Lets `transitions` test the conditions once more and write the state itself."""
        machine = self.machines[record.machine]
        question = EventData(machine.get_state(record.state), machine.events[event], machine, record, args=[data], kwargs={})
        question.transition = move.transition
        if not move.transition.execute(question):
            raise SpecError(f"{record.machine}: transitions refuses {event} in {record.state} after having allowed it")

    def _fire_jointly(self, record: Record, event: str, move: Move, data: Data) -> Outcome:
        """All or nothing: every joint move is chosen in the state before, then all are made."""
        chosen: list[tuple[Record, str, Move, Data]] = [(record, event, move, data)]
        for leader, _, made, given in chosen:  # grows: a joint move may have joint moves of its own
            for joint in made.joints:
                self._choose_followers(leader.world, joint, given, chosen)
        effects: list[Effect] = []
        for other, name, made, given in chosen:
            self._make(other, name, made, given)
            effects += [kind(other.key, _MINT, detail) for kind, detail in made.effects]
        return Outcome(True, tuple(effects))

    def _choose_followers(self, world: World, joint: Joint, data: Data, chosen: list[tuple[Record, str, Move, Data]]) -> None:
        """Adds the moves of one joint event; an ignored one adds nothing.

        Raises:
            RefusedTransition: the joint event is illegal in some record's state; nothing has changed.
        """
        carried: Data = {name: data[word[6:]] if word.startswith("event.") else word for name, word in joint.data} or NO_DATA
        for other in instances(world, joint, data):
            cell = self._cells[joint.machine][joint.event][other.state]
            move = self._choose(other, joint.event, cell, carried)
            if move is not None:
                chosen.append((other, joint.event, move, carried))
            else:
                self._fall_back(other, joint.event, cell, carried)

    def _fall_back(self, record: Record, event: str, cell: Cell, data: Data) -> Outcome:
        fallback = cell.fallback
        for guard, entry in fallback.refused:
            if guard is None or guard(record, data):
                kind = IllegalTransition if entry.error is Error.defect else RefusedTransition
                raise kind(record, event, entry, self.allowed(record))
        return WAITS if fallback.ignored is None else Outcome(False, reason=fallback.ignored)


def instances(world: World, joint: Joint, data: Data) -> Iterable[Record]:
    """The records a joint move is about."""
    domains: dict[str, Any] = {
        "pause_token": world.pause_token,
        "memory": world.memory,
        "step": {"0": world.older, "1": world.newer},
        "weights": {"": world.weights},
        "engine": {"": world.engine},
    }
    domain = domains[joint.machine]
    if joint.instance == "*":
        return [record for record in domain.values() if record is not world.empty_step]
    if joint.instance.startswith("event."):
        return [world.token(data[joint.instance.removeprefix("event.")])]
    return [domain[joint.instance]]
