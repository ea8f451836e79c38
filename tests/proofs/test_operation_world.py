"""The queue of operations: who waits for whom, who takes whose place, and that every control call is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from quiesce.engine import operations
from quiesce.proofs import environment_queue, explorer, lasso, promela, properties, search
from quiesce.proofs.model import Builder
from quiesce.proofs.world import World
from quiesce.spec import FACTS, MACHINES, PROPERTIES
from quiesce.spec.check import check
from quiesce.spec.language import Fairness, Machine, Row
from quiesce.spec.vocabulary import OperationKind as Kind
from tests.proofs.mutants import Mutate, mutated, without
from tests.proofs.small_worlds import broken, failing, never_taken
from tests.statemachine.tools import require_tool

SIZES = {1: (3_975, 14_325), 2: (222_978, 825_638)}
"""Places of the queue -> states and edges, one pass; three have 10 031 462 and 38 146 100 (3 s in C, 5 s with leads-to)."""
ANSWERED = "L4i_operations_are_answered[0]"
FEW = (Kind.pause, Kind.sleep, Kind.wake_up, Kind.begin_weight_update, Kind.abort_weight_update, Kind.shutdown)
Explored = tuple[Builder, search.Graph]


def explored(world: World, machines: Mapping[str, Machine] | None = None) -> Explored:
    """The queue is the core's: calls wait for its boundary work (R1)."""
    builder = Builder(world, machines)
    return builder, search.explore(builder.build(), one_pass=True)


def test_every_predicate_holds_in_every_state_of_one_and_two_calls_at_a_time() -> None:
    for number, size in SIZES.items():
        builder = Builder(World.operation(number))
        verdict = explorer.explore(builder.build(), properties.always(builder), one_pass=True)
        assert dict(verdict.stories) == {}
        assert (verdict.num_states, verdict.num_edges, verdict.num_dead) == (*size, 0)


def test_the_reading_explorer_finds_the_same_states_and_edges_and_takes_every_row() -> None:
    alone = explored(World.operation(1))
    assert (len(alone[1].states), alone[1].num_edges) == SIZES[1]
    assert failing(*alone) == set()
    assert never_taken(alone[1]) == set()


def test_the_first_in_the_queue_is_answered_whatever_comes_behind_it_and_every_fair_event_is_needed_for_that() -> None:
    """So everybody is answered: those behind move up. No deadline, cancel or failure is anybody's duty."""
    builder = Builder(World.operation(2))
    model = builder.build()
    declared = lasso.declared(model)
    fair = {(one.machine, str(one.event.name)) for one in model.actions if one.event.fairness is not Fairness.none}
    assert not {event for _, event in fair} & {"expire", "detach", "fail", "reject", "spoil", "call"}
    weakened = [
        {name: mark for name, mark in declared.items() if not (name.startswith(f"{machine}[") and name.endswith(f"].{event}"))}
        for machine, event in sorted(fair)
    ]
    found = lasso.judge(model, list(properties.eventually(builder)), [declared, *weakened])
    assert (found.num_states, found.num_edges) == SIZES[2]
    assert [answers[ANSWERED] is None for answers in found.lassos] == [True, *[False] * len(fair)]
    assert len(fair) == 12


@pytest.mark.parametrize(
    ("number", "kinds"), [(1, FEW), (2, (Kind.pause, Kind.reset_prefix_cache))], ids=["one call", "two calls"]
)
def test_spin_finds_the_same_states_and_edges(number: int, kinds: tuple[Kind, ...]) -> None:
    require_tool("spin", "spin")
    require_tool("gcc", "gcc")
    builder = Builder(World.operation(number, kinds=kinds))
    model, always = builder.build(), properties.always(builder)
    ours = explorer.explore(model, always, one_pass=True)
    theirs = promela.search(model, always, one_pass=True, optimise=False, seconds=100)
    assert (theirs.num_states, theirs.num_edges, theirs.violated) == (ours.num_states, ours.num_edges, frozenset())


# ---- what the queue rests on ------------------------------------------------------------------------------------------------------


def retold(before: str, after: str, event: str, machine: str = "verbs") -> World:
    """The world of two calls with another guard for an event of what surrounds them."""
    world = World.operation(2, kinds=FEW[1:5], without=["operation.detach", "operation.expire"])

    def change(row: Row) -> Row:
        return replace(row, when=row.when.replace(before, after)) if row.event == event else row

    machines = tuple(
        replace(one, rows=tuple(map(change, one.rows))) if one.name == machine else one for one in world.surroundings.machines
    )
    assert machines != world.surroundings.machines, "something else is said"
    return replace(world, surroundings=replace(world.surroundings, machines=machines))


def waiting_for(said: Callable[[int], str], num_places: int, kinds: tuple[Kind, ...]) -> World:
    """A queue in which what is waited for is something else."""
    world = World.operation(num_places, kinds=kinds, without=["operation.detach", "operation.expire"])
    conditions = dict(world.surroundings.conditions)
    for place in range(num_places):
        when, reason = conditions[f"verbs[{place}].refuse"]
        text = environment_queue.waits(place)
        assert text in when
        conditions[f"verbs[{place}].refuse"] = (when.replace(text, said(place)), reason)
    return replace(world, surroundings=replace(world.surroundings, conditions=conditions))


def test_what_waited_behind_an_update_that_only_its_client_ends_would_wait_for_ever() -> None:
    patient = waiting_for(lambda place: f"operation[this].{environment_queue.QUEUED}", 2, FEW[1:5])
    assert failing(*explored(patient)) == {ANSWERED}


def test_what_waited_for_calls_that_came_after_it_might_wait_for_ever() -> None:
    """Checksums that overlap, and a clear that only a wake_up makes possible: it takes three calls at a time."""
    kinds = (Kind.sleep, Kind.weights_checksum, Kind.reset_prefix_cache)
    begun = " or ".join(f"operation[{place}].state in (draining, acting)" for place in range(3))
    hole = waiting_for(
        lambda place: f"{environment_queue.waits(place)} or (operation[this].{environment_queue.QUEUED} and ({begun}))",
        3,
        kinds,
    )
    builder = Builder(hole)
    model = builder.build()
    (found,) = lasso.judge(model, list(properties.eventually(builder))).lassos
    assert found[ANSWERED] is not None


def test_a_sleep_that_began_while_a_wake_up_acts_would_take_from_it_what_it_waits_for() -> None:
    """A wake_up of both tags, one of which is here already."""
    hole = explored(retold(environment_queue.NO_WAKE_UP, "true", "begin"))
    assert set(broken(*hole)) == {"one_way_at_a_time_names_weights", "one_way_at_a_time_names_kv"}
    assert failing(*hole) == {ANSWERED}


def test_without_an_order_the_first_call_may_be_overtaken_for_ever() -> None:
    world = World.operation(2, kinds=FEW[1:5], without=["operation.detach", "operation.expire"])
    conditions = {key: value for key, value in world.surroundings.conditions.items() if not key.endswith((".take", ".refuse"))}
    unordered = replace(world, surroundings=replace(world.surroundings, conditions=conditions))
    fair = {action.event.name: action.event.fairness for action in Builder(unordered).build().actions}
    assert fair["take"] is Fairness.strong, "what the order provides"
    assert failing(*explored(unordered), lambda one: min(one.event.fairness, Fairness.weak, key=list(Fairness).index)) == {
        ANSWERED
    }


def test_the_tables_say_when_an_operation_may_act_and_when_it_is_done() -> None:
    early = mutated("operation", without("not engine.state in (starting, running, draining)", "act"))
    assert broken(*explored(World.operation(1), early)) == {}, "`drained` says it, too: the engine's world tells them apart"
    early = mutated("operation", lambda row: replace(row, when="true") if row.event == "act" else row)
    stories = broken(*explored(World.operation(1), early))
    assert stories["acts_behind_a_closed_gate[0]"] == [
        "operation[0].call(kind=pause, tags=both)",
        "operation[0].take",
        "operation[0].act",
    ]


def without_completion(kind: str) -> Mutate:
    return lambda row: None if row.event == "complete" and f"kind == {kind} " in row.when else row


@pytest.mark.parametrize("kind", ["wake_up", "abort_weight_update", "weights_checksum", "shutdown"])
def test_a_kind_that_the_tables_do_not_complete_is_never_answered(kind: str) -> None:
    world = World.operation(1, kinds=FEW if kind != "weights_checksum" else tuple(Kind))
    assert failing(*explored(world, mutated("operation", without_completion(kind)))) == {ANSWERED}


def test_what_surrounds_the_queue_is_as_well_formed_as_the_tables() -> None:
    around = World.operation(3).surroundings
    tables = around.around({machine.name: machine for machine in MACHINES})
    check(tables.values(), FACTS, PROPERTIES)
    assert all(reason for _, reason in (*around.abstractions.values(), *around.conditions.values()))
    assert {kind for kind, _, _ in environment_queue.BEGINS} == set(Kind)
    assert f"kind in ({', '.join(operations.QUEUED)})" == environment_queue.QUEUED, "as the engine has it"
