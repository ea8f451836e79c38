"""Mutants of the tables: all of them are made, a sample of them is judged, and what is called alike is alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from quiesce.proofs import explorer, moves, properties
from quiesce.proofs.alike import AnyNumber
from quiesce.proofs.campaign import MACHINES, OF_EVENTS, WIDER, Campaign, Verdict, follow, lively
from quiesce.proofs.model import Builder
from quiesce.proofs.mutants import Mutation, guards, inlined, mutations, sample
from quiesce.proofs.world import World
from quiesce.spec import CATALOG


@pytest.fixture(scope="module")
def mutants() -> dict[str, Mutation]:
    return {mutation.name: mutation for mutation in mutations(MACHINES)}


@pytest.fixture(scope="module")
def small() -> Campaign:
    """The tables' world of one request, its caller and two operations left out."""
    return Campaign(World.engine(1, callers=(), without={"engine.begin_update", "engine.clear"}))


def test_each_part_of_a_guard_is_dropped_and_each_of_the_whole_negated() -> None:
    assert list(guards("quiet and (goal == stop or not granted)")) == [
        ("negate conjunct", 'negate "quiet"', "not quiet and (goal == stop or not granted)"),
        ("negate conjunct", 'negate "goal == stop or not granted"', "quiet and (not (goal == stop or not granted))"),
        ("drop conjunct", 'drop "quiet"', "goal == stop or not granted"),
        ("drop conjunct", 'drop "goal == stop or not granted"', "quiet"),
        ("drop disjunct", 'drop "goal == stop"', "quiet and (not granted)"),
        ("drop disjunct", 'drop "not granted"', "quiet and goal == stop"),
    ]
    assert list(guards("true")) == []


def test_what_a_fact_says_is_changed_where_rows_name_it_through_others_too_and_about_each() -> None:
    assert inlined("gate_open", "holds_wait", "true").startswith(
        "(engine.state == running or (engine.state == draining and true and "
    )
    assert (
        inlined("all_requests(each.runnable)", "marked", "eos_mark")
        == "all_requests(each.state == running and (not each.eos_mark))"
    )
    assert inlined("quiet and free > 0", "marked", "eos_mark") == "quiet and free > 0"


def test_the_mutants_are_many_of_every_kind_and_each_is_another(mutants: dict[str, Mutation]) -> None:
    assert len(mutants) > 1500
    kinds = Counter(mutation.kind for mutation in mutants.values())
    assert min(kinds.values()) >= 4
    assert {mutation.machine for mutation in mutants.values()} == {*MACHINES, "coupling"}


def test_a_sample_is_the_same_for_one_seed_and_has_every_kind_of_every_machine(mutants: dict[str, Mutation]) -> None:
    every = list(mutants.values())
    drawn = sample(every, 300, 1)
    assert [one.name for one in drawn] == [one.name for one in sample(every, 300, 1)]
    assert [one.name for one in drawn] != [one.name for one in sample(every, 300, 2)]
    assert {(one.machine, one.kind) for one in drawn} == {(one.machine, one.kind) for one in every}


def test_the_world_as_columns_has_the_states_and_edges_of_the_explorer(small: Campaign) -> None:
    verdict = explorer.explore(small.table.model, {}, progress=False)
    assert (small.table.columns.shape[1], small.table.num_edges) == (verdict.num_states, verdict.num_edges)
    assert len(small.table.way(verdict.num_states - 1)) in (verdict.depth, verdict.depth - 1)


def test_a_story_can_be_followed_to_the_state_that_it_leads_to(small: Campaign) -> None:
    last = small.table.columns.shape[1] - 1
    names = [small.table.model.actions[number].name for number in small.table.way(last)]
    arrived = follow(small.table.model, names)
    assert arrived is not None
    assert arrived[:, 0].tolist() == small.table.columns[:, last].tolist()
    assert follow(small.table.model, ["engine.resume(owner=nobody)"]) is None


def test_no_promise_is_broken_near_the_tables_themselves(small: Campaign, mutants: dict[str, Mutation]) -> None:
    same = replace(next(iter(mutants.values())), tables=CATALOG.machines)
    assert small.near(same) == Verdict()
    assert small.is_alike(same)


KILLED = {
    'request.reap[21] when: drop "not in_flight"': "S7_no_free_under_a_writer[0]",
    "request.fail[16] leads to running": "S4_exactly_one_terminal[0]",
    'engine.fail[43] effects: drop "drop_prefix_index"': "T7_prefix_goes_with_its_kv",
    "memory.released[5] no such row": "E9_memory_goes_on[kv_cache]",
    'memory.release[3] effects: drop "unmap"': "T3_leaves_unused[kv_cache]",
    "pause_token.release[3] no such row": "S11_ownership[sleep]",
    'step.launch[3] when: negate "gate_open"': "T4_steps_through_the_gate",
    'memory.released[6] also: drop "weights.lose"': "T7_content_is_lost_for_a_reason",
    'marked: drop "abort_mark"': "T4_only_what_may_run_is_stepped[0]",
}


@pytest.mark.parametrize(("name", "promise"), KILLED.items(), ids=KILLED)
def test_a_mutant_is_killed_by_the_promise_that_speaks_of_it(
    small: Campaign, mutants: dict[str, Mutation], name: str, promise: str
) -> None:
    found = small.near(mutants[name])
    assert promise in found.killed_by
    assert 0 < len(found.story) <= 10


def test_what_is_found_near_the_tables_is_found_by_the_explorer_in_the_mutant(
    small: Campaign, mutants: dict[str, Mutation]
) -> None:
    for mutation in sample([one for one in mutants.values() if one.kind not in OF_EVENTS], 2, 5):
        near = small.near(mutation)
        far = small.safety(mutation)
        assert set(near.killed_by) <= set(far.killed_by), mutation.name
        assert bool(far.killed_by) <= (not small.is_alike(mutation)), mutation.name


def test_a_part_that_is_never_false_makes_no_difference_for_any_number_of_requests(mutants: dict[str, Mutation]) -> None:
    alike = AnyNumber()
    assert alike.is_alike(mutants['engine.ready[1] when: drop "not no_token"'])
    assert alike.is_alike(mutants['step.retire[5] sets: drop "request[*].member[this] := false"'])
    assert not alike.is_alike(mutants['request.reap[21] when: drop "not in_flight"'])
    assert not alike.is_alike(mutants['request.start[2] when: drop "free > 0"'])


def test_without_fairness_a_leads_to_does_not_hold(small: Campaign, mutants: dict[str, Mutation]) -> None:
    found = small.judge(mutants["step.land: no fairness"])
    assert "L2b_blocks_come_home[0]" in found.killed_by


@pytest.mark.parametrize("world", WIDER, ids=lambda world: world.size)
def test_the_tables_break_nothing_in_the_worlds_of_two_requests_in_which_survivors_are_judged(world: World) -> None:
    builder = Builder(world)
    verdict = explorer.explore(builder.build(), properties.always(builder), moves.on_moves(builder), progress=False)
    assert dict(verdict.stories) == {}
    assert lively(world, CATALOG.machines) == {}


def test_in_one_pass_calls_wait_for_the_core_and_without_its_mark_they_do_not(
    small: Campaign, mutants: dict[str, Mutation]
) -> None:
    same = replace(next(iter(mutants.values())), tables=CATALOG.machines)
    assert small.one_pass(same) == Verdict()
    assert small.one_pass(mutants["request.finish: not before the next call"]).killed_by == ("R1_calls_wait",)
