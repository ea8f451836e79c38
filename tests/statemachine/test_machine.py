"""What gates the engine are the objects of `transitions`: an edit before sealing changes what happens, and after it there is none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from transitions import EventData, Transition

from quiesce.spec import MACHINES
from quiesce.spec.language import SpecError
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.machine import KEPT, LifecycleMachine, RowTransition, build, sealed_machines
from quiesce.statemachine.records import Record, World
from tests.statemachine.worlds import TABLES, add_request, open_world

STOCK = pytest.mark.parametrize("stock", [False, True], ids=["sealed", "stock"])


def request_machine() -> LifecycleMachine:
    return LifecycleMachine(next(table for table in TABLES if table.name == "request"))


def transition(machine: LifecycleMachine, event: str, source: str, place: int = 0) -> Any:
    """The `transitions` object of a row, out of that package's own registry."""
    return machine.events[event].transitions[source][place]


def gate_with(machine: LifecycleMachine, stock: bool) -> Gate:
    return Gate({**build(), machine.table.name: machine.seal()}, stock=stock)


@STOCK
def test_another_destination_before_sealing_is_where_the_gate_leads(stock: bool) -> None:
    machine = request_machine()
    transition(machine, "aborted", "running").dest = "ended"
    request = add_request(open_world(), 1, abort_mark=True)
    gate_with(machine, stock).fire(request, "aborted")
    assert request.state == "ended"
    other = add_request(open_world(), 1, abort_mark=True)
    Gate(stock=stock).fire(other, "aborted")
    assert other.state == "draining"


@STOCK
def test_a_condition_removed_before_sealing_no_longer_holds_anything_back(stock: bool) -> None:
    machine = request_machine()
    transition(machine, "aborted", "running").conditions.clear()
    request = add_request(open_world(), 1)
    assert gate_with(machine, stock).fire(request, "aborted").moved
    assert not Gate(stock=stock).fire(add_request(open_world(), 1), "aborted").moved


@STOCK
def test_a_transition_removed_before_sealing_is_gone(stock: bool) -> None:
    machine = request_machine()
    machine.remove_transition("aborted", "running")
    request = add_request(open_world(), 1, abort_mark=True)
    assert not gate_with(machine, stock).fire(request, "aborted").moved
    assert request.state == "running"


@STOCK
def test_a_condition_added_from_another_row_must_hold_too(stock: bool) -> None:
    machine = request_machine()
    transition(machine, "aborted", "running").conditions.append(transition(machine, "finish", "running").conditions[0])
    gate = gate_with(machine, stock)
    assert not gate.fire(add_request(open_world(), 1, abort_mark=True), "aborted").moved
    assert gate.fire(add_request(open_world(), 1, abort_mark=True, eos_mark=True), "aborted").moved


def callback(_event: EventData) -> None:
    """Would run between the decision and the move."""


@pytest.mark.parametrize("place", ["before", "after", "prepare"])
def test_a_transition_with_a_callback_is_not_sealed(place: str) -> None:
    machine = request_machine()
    transition(machine, "aborted", "running").add_callback(place, callback)
    with pytest.raises(SpecError, match="callbacks cannot be sealed"):
        machine.seal()
    assert not machine.sealed


@pytest.mark.parametrize("place", ["on_enter", "on_exit"])
def test_a_state_with_a_callback_is_not_sealed(place: str) -> None:
    machine = request_machine()
    getattr(machine.get_state("running"), place).append(callback)
    with pytest.raises(SpecError, match="callbacks cannot be sealed"):
        machine.seal()


@pytest.mark.parametrize(
    "place", ["prepare_event", "before_state_change", "after_state_change", "finalize_event", "on_exception", "on_final"]
)
def test_a_machine_with_a_callback_is_not_sealed(place: str) -> None:
    machine = request_machine()
    setattr(machine, place, [callback])
    with pytest.raises(SpecError, match="callbacks cannot be sealed"):
        machine.seal()


def test_a_condition_that_is_no_declared_guard_is_not_sealed() -> None:
    machine = request_machine()
    machine.add_transition("aborted", "draining", "ended", conditions=[lambda _event: True])
    with pytest.raises(SpecError, match="only declared guards can be sealed"):
        machine.seal()


def test_a_guard_turned_round_is_not_sealed() -> None:
    machine = request_machine()
    transition(machine, "aborted", "running").conditions[0].target = False
    with pytest.raises(SpecError, match="only declared guards can be sealed"):
        machine.seal()


def test_a_foreign_transition_and_an_undeclared_event_are_not_sealed() -> None:
    machine = request_machine()
    machine.events["aborted"].add_transition(Transition("draining", "ended"))
    with pytest.raises(SpecError, match="cannot be sealed"):
        machine.seal()
    other = request_machine()
    other.add_transition("vanish", "running", "ended")
    with pytest.raises(SpecError, match="vanish"):
        other.seal()


@pytest.mark.parametrize(
    ("mutator", "arguments"),
    [
        ("add_transition", ("aborted", "draining", "ended")),
        ("add_transitions", ([["aborted", "draining", "ended"]],)),
        ("add_ordered_transitions", ()),
        ("remove_transition", ("aborted",)),
        ("add_state", ("limbo",)),
        ("add_states", (["limbo"],)),
        ("add_model", (object(),)),
    ],
)
def test_after_sealing_every_mutator_raises_and_names_the_file_to_change(mutator: str, arguments: tuple[Any, ...]) -> None:
    machine = request_machine().seal()
    with pytest.raises(RuntimeError, match=r"request is sealed: change the row in spec/request\.py instead"):
        getattr(machine, mutator)(*arguments)
    assert getattr(type(machine), mutator), "transitions still has this mutator"


def test_before_sealing_the_mutators_are_those_of_transitions() -> None:
    machine = request_machine()
    machine.add_transition("aborted", "draining", "ended")
    assert len(machine.events["aborted"].transitions["draining"]) == 1
    assert transition(machine, "aborted", "draining").consequences.index == -1, "no row of the table"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_row_is_registered_once_for_each_source_in_order(table: Any) -> None:
    machine = sealed_machines()[table.name]
    for event, state in itertools.product(table.events, table.states):
        registered: list[Any] = machine.events[event.name].transitions.get(state.name, [])
        assert all(isinstance(found, RowTransition) for found in registered)
        rows = [index for index, row in enumerate(table.rows) if row.event == event.name and state in row.source]
        assert [found.consequences.index for found in registered] == rows
        for found, row in zip(registered, rows, strict=True):
            target = table.rows[row].target
            assert found.dest == (None if target is None else table.states(target).name)
            guards = [condition.func.__name__ for condition in found.conditions]
            assert guards == ([] if table.rows[row].when == "true" else [table.rows[row].when])
        assert machine.cells is not None
        assert [move.transition for move in machine.cells[event.name][state].moves] == registered


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_machine_keeps_no_models_and_makes_no_transitions_of_its_own(table: Any) -> None:
    machine = sealed_machines()[table.name]
    assert machine.models == []
    assert set(machine.events) == {str(event.name) for event in table.events}
    assert set(machine.states) == {str(state) for state in table.states}
    assert not machine.ignore_invalid_triggers
    assert not machine.has_queue


def test_every_gate_shares_the_machines() -> None:
    assert Gate().machines is Gate().machines is sealed_machines()


def test_the_machines_that_are_kept_are_those_with_records() -> None:
    assert set(build()) == set(KEPT) == {kind.machine for kind in Record.__subclasses__()}
    assert {table.name for table in MACHINES} - set(KEPT) == set()


def test_a_new_record_is_in_its_initial_state_with_its_first_values() -> None:
    world = World()
    tables = {table.name: table for table in TABLES}
    for record in (
        world.engine,
        world.weights,
        world.link,
        *world.memory.values(),
        *world.pause_token.values(),
        world.empty_step,
    ):
        assert record.state == tables[record.machine].initial
    assert (world.engine.goal, world.engine.granted) == ("none", False)
    assert {memory.policy for memory in world.memory.values()} == {"none"}
    assert set(world.pause_token) | {"caller"} == {str(owner) for owner in tables["pause_token"].instances}
