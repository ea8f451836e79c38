"""What was found true of a batch is believed until something happens to a request, and not a moment longer."""

from __future__ import annotations

from typing import Any

import pytest

from quiesce.spec import CATALOG
from quiesce.spec.guards import parse_guard
from quiesce.statemachine.compile import compile_guard, each_runnable
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.monitor import ConformanceError, Monitor
from quiesce.statemachine.records import RequestRecord, World
from tests.statemachine.interpreter import holds
from tests.statemachine.worlds import add_step, open_world, put, random_world

NAMED = compile_guard("step", "all_named(each.runnable)")
MEMBERS = compile_guard("step", "all_members(each.runnable)")


def serving(count: int = 3) -> tuple[World, Gate, tuple[RequestRecord, ...]]:
    """Requests that run, by declared moves."""
    world, gate = open_world(), Gate()
    requests = tuple(RequestRecord(world, key, f"r{key}") for key in range(1, count + 1))
    for request in requests:
        for event in ("submit", "admit", "start"):
            assert gate.fire(request, event).moved
    return world, gate, requests


def may_be_planned(world: World, requests: tuple[RequestRecord, ...]) -> bool:
    assert NAMED is not None
    return NAMED(world.empty_step, {"requests": requests})


def count_looks(world: World, patch: pytest.MonkeyPatch) -> list[int]:
    looks: list[int] = []
    look = World.all_runnable

    def counted(self: World, requests: Any, each: Any) -> bool:
        def noted(found: Any) -> bool:
            looks.append(len(found))
            return bool(each(found))

        return look(self, requests, noted)

    patch.setattr(World, "all_runnable", counted)
    return looks


def test_a_batch_that_stays_the_same_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world, gate, requests = serving()
    looks = count_looks(world, monkeypatch)
    for number in (1, 2):
        step = world.new_step(number)
        assert gate.fire(step, "plan", {"requests": requests}).moved
        assert gate.fire(step, "launch").moved
    assert looks == [3], "twice planned, twice launched"


@pytest.mark.parametrize("event", ["abort", "device_fault", "eos", "preempt", "fail"])
def test_whatever_happens_to_one_is_seen(event: str) -> None:
    world, gate, requests = serving()
    older = add_step(world, 1, "landed", requests)
    newer = add_step(world, 2, "planned", requests)
    if event == "fail":
        put(world.engine, "failed")
    assert may_be_planned(world, requests)
    assert gate.fire(requests[1], event).moved
    assert not may_be_planned(world, requests)
    assert MEMBERS is not None
    assert not MEMBERS(older, {})
    newer.remove_members([requests[1]])
    assert MEMBERS(newer, {})
    assert sorted(older.members) == [1, 2, 3], "steps of one batch share their members until one loses some"
    assert not may_be_planned(world, requests)


def test_what_was_found_of_one_batch_is_not_believed_of_another() -> None:
    world, gate, requests = serving()
    gate.fire(requests[2], "abort")
    good, bad = requests[:2], requests[1:]
    for _ in range(2):
        assert may_be_planned(world, good)
        assert not may_be_planned(world, bad)
        assert not may_be_planned(world, bad), "asked again of the same batch"
    assert may_be_planned(world, good)
    assert not each_runnable(requests)


def test_runnable_is_what_the_declaration_says() -> None:
    tree = parse_guard(CATALOG.facts["runnable"].when)
    found = set()
    for seed in range(100):
        for request in random_world(seed).requests.values():
            answer = each_runnable([request])
            assert answer == holds(tree, request, {})
            found.add(answer)
    assert found == {True, False}


@pytest.mark.parametrize("event", ["abort", "device_fault", "eos"])
def test_the_monitor_looks_again_once_somebody_is_owed_an_answer(event: str) -> None:
    """R1, also for a launch that does not name the one who is owed."""
    world, gate, requests = serving()
    monitor = Monitor(world)
    gate.watch = monitor.watch
    first = world.new_step(1)
    gate.fire(first, "plan", {"requests": requests})
    gate.fire(first, "launch")
    if event == "eos":
        gate.fire(first, "land")
    gate.fire(requests[0], event)
    second = world.new_step(2)
    gate.fire(second, "plan", {"requests": requests[1:]})
    with pytest.raises(ConformanceError, match="R1_boundary_first"):
        gate.fire(second, "launch")
