"""The gate decides a whole event before anything changes, refuses with a typed answer, and moves jointly or not at all."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from quiesce.spec.check import decided
from quiesce.spec.language import Error, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import Goal, Mode, Policy
from quiesce.statemachine.gate import MOVED, WAITS, Gate, IllegalTransition, Outcome, RefusedTransition
from quiesce.statemachine.records import Record, World
from tests.statemachine.worlds import (
    TABLES,
    add_request,
    add_step,
    data,
    example,
    open_world,
    picture,
    put,
    random_record,
    random_world,
)

BY_NAME = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
NO_SLEEP = {"weights": Policy.none, "kv_cache": Policy.none}
OFFLOAD = {"weights": Policy.offload, "kv_cache": Policy.offload}


def states(world: World) -> dict[str, str]:
    """The states of what there is one of, and of the tokens that are held."""
    held = {owner: str(token.state) for owner, token in world.pause_token.items() if token.state != "free"}
    return {"engine": str(world.engine.state), "weights": str(world.weights.state), **held}


# ---- refused and ignored: answered, and nothing changed ---------------------------------------------------------------------


@BY_NAME
def test_a_cell_that_is_only_refused_raises_a_typed_error_and_changes_nothing(table: Machine) -> None:
    gate, refused = Gate(), 0
    for event in table.events:
        for state, entries in decided(table, event.name).items():
            if any(not isinstance(entry, Refused) for entry in entries) or entries[0].when != "true":  # type: ignore[union-attr]
                continue
            record = example(table.name, state)
            before = picture(record.world, record)
            with pytest.raises(RefusedTransition) as refusal:
                gate.fire(record, event.name, data(table.name, event.name, record.world))
            entry = entries[0]
            assert isinstance(entry, Refused)
            error = refusal.value
            assert (error.machine, error.record, error.state, error.event) == (table.name, record.name, state, event.name)
            assert (error.error, error.how_to, error.allowed) == (entry.error, entry.how_to, gate.allowed(record))
            assert isinstance(error, IllegalTransition) == (entry.error is Error.defect)
            assert all(word in str(error) for word in (table.name, record.name, event.name, state, entry.how_to))
            assert picture(record.world, record) == before
            assert gate.log == []
            refused += 1
    assert refused or not table.refused or table.name == "pause_token"


@BY_NAME
def test_a_cell_that_is_only_ignored_says_why_and_changes_nothing(table: Machine) -> None:
    gate, ignored = Gate(), 0
    for event in table.events:
        for state, entries in decided(table, event.name).items():
            if not isinstance(entries[0], Ignored):
                continue
            record = example(table.name, state)
            before = picture(record.world, record)
            outcome = gate.fire(record, event.name, data(table.name, event.name, record.world))
            assert outcome == Outcome(False, (), entries[0].reason)
            assert picture(record.world, record) == before
            assert gate.log == []
            ignored += 1
    assert ignored or not table.ignored


@BY_NAME
def test_in_any_world_every_event_moves_is_ignored_with_a_reason_waits_or_is_refused_unchanged(table: Machine) -> None:
    gate, kinds = Gate(), set()
    for seed, event in itertools.product(range(150), table.events):
        world = random_world(seed)
        record = random_record(world, table.name, seed)
        carried = data(table.name, event.name, world)
        before, state = picture(world, record), record.state
        gate.log.clear()
        try:
            outcome = gate.fire(record, event.name, carried)
        except RefusedTransition:
            kinds.add("refused")
            assert picture(world, record) == before
            assert gate.log == []
            continue
        if outcome.moved:
            kinds.add("moved")
            assert gate.log[0][:3] == (record, event.name, state)
            continue
        kinds.add("ignored" if outcome.reason else "waits")
        assert outcome.effects == ()
        assert picture(world, record) == before
        if not outcome.reason:
            assert event.owner not in (Owner.client, Owner.operator), "a caller always gets an answer"
    assert "moved" in kinds
    assert len(kinds) >= 2


def test_the_first_refusal_whose_guard_holds_speaks() -> None:
    world = open_world()
    put(world.engine, "failed")
    with pytest.raises(RefusedTransition) as refusal:
        Gate().fire(example_request(world), "submit")
    assert refusal.value.error is Error.EngineDead
    put(world.engine, "paused")
    put(world.token("caller"), "abort")
    with pytest.raises(RefusedTransition) as refusal:
        Gate().fire(example_request(world), "submit")
    assert refusal.value.error is Error.Unavailable


def example_request(world: World) -> Record:
    return add_request(world, 9, "absent")


def test_a_core_event_whose_guard_fails_waits_without_a_reason() -> None:
    world = open_world()
    request = add_request(world, 1)
    assert Gate().fire(request, "aborted") == WAITS
    request.abort_mark = True
    assert Gate().fire(request, "aborted").moved


def test_a_move_without_effects_is_the_one_moved_outcome() -> None:
    request = add_request(open_world(), 1, "received")
    assert Gate().fire(request, "admit") is MOVED


def test_allowed_names_what_callers_may_send_now_and_nothing_internal() -> None:
    gate, world = Gate(), open_world()
    assert set(gate.allowed(world.engine)) == {"pause", "sleep", "clear", "begin_update", "shutdown"}
    put(world.engine, "stopped")
    assert gate.allowed(world.engine) == ()
    assert gate.allowed(add_request(world, 1)) == ("abort",)


@BY_NAME
def test_the_first_row_whose_guard_holds_is_the_one_that_is_logged(table: Machine) -> None:
    gate = Gate()
    for event in table.events:
        for state, entries in decided(table, event.name).items():
            rows = [entry for entry in entries if isinstance(entry, Row)]
            if rows and rows[0].when == "true":
                record = example(table.name, state)
                gate.log.clear()
                gate.fire(record, event.name, data(table.name, event.name, record.world))
                _, _, source, target, row, _ = gate.log[0]
                assert table.rows[row] is rows[0]
                assert (source, target) == (state, state if rows[0].target is None else rows[0].target)


# ---- joint moves ------------------------------------------------------------------------------------------------------------


def test_shutdown_of_a_paused_engine_moves_the_engine_and_its_token_in_one_fire() -> None:
    gate, world = Gate(), open_world()
    put(world.engine, "paused")
    gate.fire(world.engine, "shutdown", {"mode": Mode.wait})
    assert states(world) == {"engine": "stopping", "weights": "stable", "shutdown": "abort"}
    assert [(record.name, target) for record, _, _, target, *_ in gate.log] == [("engine", "stopping"), ("shutdown", "abort")]


def test_shutdown_while_draining_frees_the_tokens_of_what_it_overtakes() -> None:
    gate, world = Gate(), open_world()
    gate.fire(world.engine, "sleep", {"mode": Mode.wait, **OFFLOAD})
    assert {memory.policy for memory in world.memory.values()} == {"offload"}
    gate.fire(world.engine, "shutdown", {"mode": Mode.wait})
    assert states(world) == {"engine": "draining", "weights": "stable", "shutdown": "wait"}
    assert world.engine.goal == "stop"
    assert {memory.policy for memory in world.memory.values()} == {"none"}


def test_failure_voids_every_step_loses_all_content_and_frees_all_tokens_at_once() -> None:
    gate, world = Gate(), open_world()
    request = add_request(world, 1, eos_mark=True)
    older, newer = (add_step(world, number, members=(request,)) for number in (5, 6))
    put(world.token("caller"), "wait")
    put(world.token("sleep"), "keep")
    world.memory[next(iter(world.memory))].policy = Policy.discard
    outcome = gate.fire(world.engine, "fail")
    assert states(world) == {"engine": "failed", "weights": "undefined"}
    assert (older.state, newer.state) == ("dropped", "dropped")
    assert world.older is world.newer is world.empty_step
    assert older.members == newer.members == {}
    assert {(memory.state, memory.policy) for memory in world.memory.values()} == {("undefined", "none")}
    assert not request.eos_mark
    assert [type(effect).__name__ for effect in outcome.effects] == ["DropPrefixIndex"]


def test_settling_to_paused_frees_the_sleeps_token_and_no_other() -> None:
    gate, world = Gate(), open_world()
    put(world.engine, "partially_awake")
    put(world.token("sleep"), "abort")
    put(world.token("caller"), "keep")
    assert gate.fire(world.engine, "settle_paused").moved
    assert states(world) == {"engine": "paused", "weights": "stable", "caller": "keep"}


def test_a_joint_move_that_is_refused_moves_nobody() -> None:
    world = open_world()
    put(world.engine, "partially_awake")
    weights, kv_cache = world.memory.values()
    put(weights, "released")
    put(kv_cache, "releasing")
    before = picture(world)
    gate = Gate()
    with pytest.raises(RefusedTransition) as refusal:
        gate.fire(world.engine, "wake_up", {"tags": "both"})
    assert (refusal.value.machine, refusal.value.event, refusal.value.how_to) == ("memory", "restore", "await the sleep")
    assert picture(world) == before
    assert gate.log == []


def test_a_joint_move_that_is_ignored_lets_the_others_happen() -> None:
    gate, world = Gate(), open_world()
    put(world.engine, "partially_awake")
    weights, kv_cache = world.memory.values()
    put(weights, "released")
    assert gate.fire(world.engine, "wake_up", {"tags": "both"}).moved
    assert (weights.state, kv_cache.state) == ("restoring", "resident")


def test_a_weaker_hold_within_a_joint_move_leaves_the_stronger_one() -> None:
    gate, world = Gate(), open_world()
    put(world.engine, "paused")
    put(world.token("sleep"), "abort")
    gate.fire(world.engine, "sleep", {"mode": Mode.keep, **NO_SLEEP})
    assert states(world)["sleep"] == "abort"


def test_a_joint_move_of_a_joint_move_happens_too() -> None:
    """`begin_update` of a half-woken engine opens the update, and opening it in place holds the token."""
    gate, world = Gate(), open_world()
    put(world.engine, "partially_awake")
    put(world.token("sleep"), "abort")
    assert gate.fire(world.engine, "begin_update", {"mode": Mode.abort}).moved
    assert states(world) == {"engine": "partially_awake", "weights": "updating", "sleep": "abort", "update": "abort"}


def test_effects_of_joint_moves_follow_those_of_the_row_each_with_its_own_subject() -> None:
    gate, world = Gate(), open_world()
    put(world.engine, "sleeping")
    for memory in world.memory.values():
        put(memory, "released")
    outcome = gate.fire(world.engine, "wake_up", {"tags": "both"})
    assert [(type(effect).__name__, effect.subject) for effect in outcome.effects] == [("Map", 0), ("Map", 1)]


@pytest.mark.parametrize("stock", [False, True], ids=["sealed", "stock"])
def test_joint_moves_are_decided_in_the_state_before(stock: bool) -> None:
    gate, world = Gate(stock=stock), open_world()
    put(world.engine, "draining")
    world.engine.goal = Goal.update
    put(world.token("update"), "keep")
    assert gate.fire(world.engine, "drained_update").moved
    assert states(world) == {"engine": "paused", "weights": "updating", "update": "keep"}
    assert world.weights.base_intact
    assert (world.engine.goal, world.engine.granted) == ("none", True)


def test_a_refused_call_leaves_no_token_behind() -> None:
    world = open_world()
    put(world.engine, "failed")
    before = set(world.pause_token)
    for event in ("pause", "resume"):
        with pytest.raises(RefusedTransition):
            Gate().fire(world.engine, event, {"owner": "stranger", "mode": Mode.keep})
    assert set(world.pause_token) == before


# ---- what is around ---------------------------------------------------------------------------------------------------------


def test_the_gate_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIESCE_GATE", "stock")
    assert Gate().stock
    assert not Gate(stock=False).stock
    monkeypatch.delenv("QUIESCE_GATE")
    assert not Gate().stock


def test_an_ended_request_is_kept_by_no_index() -> None:
    gate, world = Gate(), open_world()
    for key in range(5):
        request = add_request(world, key, "absent")
        for event in ("submit", "abort", "aborted"):
            assert gate.fire(request, event).moved
        assert request.state == "ended"
    assert world.requests == {}
    assert {state: len(index) for state, index in world.by_state.items() if index} == {}


def test_the_watch_sees_a_move_of_a_step_before_it_is_made() -> None:
    seen: list[tuple[Any, ...]] = []
    gate, world = Gate(), open_world()
    request, step = add_request(world, 1), world.new_step(5)
    gate.watch = lambda record, event: seen.append((record, event, str(record.state)))
    assert gate.fire(step, "plan", {"requests": (request,)}).effects == ()
    assert seen == [(step, "plan", "empty")]


def test_the_watch_sees_a_move_that_mints_effects_before_it_is_made_and_no_other() -> None:
    seen: list[tuple[Any, ...]] = []
    gate, world = Gate(), open_world()
    request, other = add_request(world, 1, abort_mark=True), add_request(world, 2)
    gate.watch = lambda record, event: seen.append((record, event, record.state))
    assert gate.fire(other, "abort").effects == ()
    gate.fire(request, "aborted")
    assert seen == [(request, "aborted", "running")]


def test_a_move_that_stays_leaves_a_request_its_place_in_the_order_of_age() -> None:
    gate, world = Gate(), open_world()
    requests = [add_request(world, key) for key in (1, 2, 3)]
    gate.fire(requests[0], "abort")
    gate.fire(requests[1], "device_fault")
    assert list(world.by_state[requests[0].state]) == [1, 2, 3]


def test_names_that_never_held_the_engine_are_not_remembered_and_those_that_let_go_are_forgotten() -> None:
    gate, world = Gate(), open_world()
    reserved = set(world.pause_token)
    put(world.engine, "paused")
    for number in range(20):
        gate.fire(world.engine, "resume", {"owner": f"stranger {number}"})
    assert set(world.pause_token) == reserved
    gate.fire(world.engine, "pause", {"owner": "guest", "mode": Mode.keep})
    assert states(world)["guest"] == "keep"
    gate.fire(world.engine, "resume", {"owner": "guest"})
    gate.fire(world.engine, "resume", {"owner": "sleep"})
    assert set(world.pause_token) == reserved


def test_steps_land_and_retire_in_order_and_the_newer_takes_the_place_of_the_older_with_its_members() -> None:
    gate, world = Gate(), open_world()
    first, second = add_request(world, 1), add_request(world, 2)
    older, newer = add_step(world, 5, "launched", (first,)), add_step(world, 6, "launched", (second,))
    assert (older.place, newer.place) == ("older", "newer")
    assert gate.fire(newer, "land") == WAITS
    for step, event in ((older, "land"), (newer, "land")):
        assert gate.fire(step, event).moved
    assert gate.fire(newer, "retire") == WAITS
    assert gate.fire(older, "retire").moved
    assert (world.older, world.newer) == (newer, world.empty_step)
    assert (older.members, newer.members) == ({}, {2: second})
    assert gate.fire(newer, "retire").moved
    assert world.older is world.newer is world.empty_step


def test_a_third_step_finds_no_slot() -> None:
    world = open_world()
    for number in (5, 6):
        add_step(world, number)
    with pytest.raises(RuntimeError, match="both step slots are taken"):
        world.new_step(7)


def test_the_oldest_is_the_running_request_that_arrived_first_and_is_never_preempted() -> None:
    gate, world = Gate(), open_world()
    add_request(world, 1, "admitted")
    oldest, younger = add_request(world, 2), add_request(world, 3)
    assert (oldest.oldest, younger.oldest) == (True, False)
    assert gate.fire(oldest, "preempt") == WAITS
    assert gate.fire(younger, "preempt").moved
