"""Sealed rows and the unmodified code of `transitions` decide every state, event and valuation of the guards alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from transitions import MachineError

from quiesce.spec.guards import parse_effect
from quiesce.spec.language import Machine
from quiesce.statemachine.compile import Data
from quiesce.statemachine.effects import word_of
from quiesce.statemachine.gate import Gate, RefusedTransition
from quiesce.statemachine.machine import Condition, LifecycleMachine, RowTransition
from quiesce.statemachine.records import Record
from tests.statemachine.worlds import TABLES, data, example, picture

BY_NAME = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


class Valuation:
    """Takes the place of every compiled guard: the truth values are chosen, not computed."""

    def __init__(self) -> None:
        self.chosen: dict[tuple[str, int], bool] = {}
        self.otherwise = True

    def stub(self, machine: str, row: int) -> Any:
        return lambda _record, _data: self.chosen.get((machine, row), self.otherwise)


@dataclass(frozen=True)
class Bench:
    """One set of machines whose guards are stubs, and a gate of each kind over them."""

    valuation: Valuation
    machines: dict[str, LifecycleMachine]
    sealed: Gate
    stock: Gate


@pytest.fixture(scope="module")
def bench() -> Bench:
    valuation = Valuation()
    machines = {table.name: LifecycleMachine(table) for table in TABLES}
    for machine in machines.values():
        for event in machine.events.values():
            for transition in itertools.chain(*event.transitions.values()):
                assert isinstance(transition, RowTransition)
                for condition in transition.conditions:
                    assert isinstance(condition.func, Condition)
                    condition.func.predicate = valuation.stub(machine.table.name, transition.consequences.index)
        machine.seal()
    return Bench(valuation, machines, Gate(machines, stock=False), Gate(machines, stock=True))


def valuations(bench: Bench, table: Machine, event: str, state: str) -> Iterator[None]:
    """Sets every valuation of the cell's guards, and lets all other guards (of joint moves) hold, then fail."""
    cells = bench.machines[table.name].cells
    assert cells is not None
    guarded = [move.index for move in cells[event][state].moves if move.guard is not None]
    for bench.valuation.otherwise in (True, False):
        for bits in itertools.product((True, False), repeat=len(guarded)):
            bench.valuation.chosen = {(table.name, row): bit for row, bit in zip(guarded, bits, strict=True)}
            yield


def outcome(gate: Gate, record: Record, event: str, carried: Data) -> tuple[Any, ...]:
    """Everything that can be told apart about a fired event."""
    gate.log.clear()
    before = picture(record.world, record)
    try:
        result = gate.fire(record, event, carried)
    except RefusedTransition as refusal:
        assert picture(record.world, record) == before
        return type(refusal), refusal.machine, refusal.event, refusal.error, refusal.how_to, refusal.allowed
    minted = [(type(effect), effect.subject, effect.detail) for effect in result.effects]
    log = [(moved.machine, moved.name, str(name), source, target, row) for moved, name, source, target, row, _ in gate.log]
    return result.moved, result.reason, minted, log, picture(record.world, record)


@BY_NAME
def test_sealed_and_stock_agree_on_every_state_event_and_valuation(bench: Bench, table: Machine) -> None:
    seen = set()
    for event, state in itertools.product(table.events, table.states):
        for _ in valuations(bench, table, event.name, state):
            results = []
            for gate in (bench.sealed, bench.stock):
                record = example(table.name, state)
                results.append(outcome(gate, record, event.name, data(table.name, event.name, record.world)))
            assert results[0] == results[1], (event.name, state, bench.valuation.chosen)
            seen.add(results[0][0])
    assert True in seen
    assert len(seen) > 1


@BY_NAME
def test_a_plain_trigger_of_transitions_moves_where_the_gate_moves_and_to_the_same_state(bench: Bench, table: Machine) -> None:
    """The package's own entry, on an unregistered record: no row of ours chooses the transition."""
    bench.valuation.chosen = {}
    moved = 0
    for event, state in itertools.product(table.events, table.states):
        for _ in valuations(bench, table, event.name, state):
            record, model = example(table.name, state), example(table.name, state)
            try:
                triggered = (
                    bench.machines[table.name].events[event.name].trigger(model, data(table.name, event.name, model.world))
                )
            except MachineError:
                triggered = False
            assert bench.sealed.may(record, event.name) == triggered
            if triggered and bench.valuation.otherwise:
                bench.sealed.fire(record, event.name, data(table.name, event.name, record.world))
                assert record.state == model.state
                moved += 1
    assert moved >= len(table.rows)


@BY_NAME
@pytest.mark.parametrize("stock", [False, True], ids=["sealed", "stock"])
def test_every_row_is_taken_under_some_valuation_and_mints_its_effects_in_order_for_its_own_record(
    bench: Bench, table: Machine, stock: bool
) -> None:
    gate, taken = bench.stock if stock else bench.sealed, set()
    for event, state in itertools.product(table.events, table.states):
        for _ in valuations(bench, table, event.name, state):
            record = example(table.name, state)
            gate.log.clear()
            try:
                outcome = gate.fire(record, event.name, data(table.name, event.name, record.world))
            except RefusedTransition:
                continue
            if not outcome.moved:
                continue
            number = gate.log[0][4]
            wanted = [(effect.name, effect.detail, record.key) for effect in map(parse_effect, table.rows[number].effects)]
            minted = [(word_of(type(effect)), effect.detail, effect.subject) for effect in outcome.effects]
            assert minted[: len(wanted)] == wanted
            assert len(minted) == len(wanted) or table.rows[number].also
            taken.add(number)
    assert taken == set(range(len(table.rows)))
