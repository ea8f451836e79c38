"""The second half of a pass on its own: the waiting queue, who yields, and what is prepared."""

from __future__ import annotations

import heapq
from types import SimpleNamespace
from typing import Any

import pytest

from quiesce.engine.pipeline import Pipeline


def queue_of(*orders: tuple[int, int]) -> tuple[Pipeline, list[Any]]:
    """A pipeline in which somebody waits for each (priority, arrival)."""
    core: Any = SimpleNamespace(world=None, lifecycle=None, pool=None, batch=None)
    pipeline = Pipeline(core)
    waiting: list[Any] = [SimpleNamespace(order=order, state="admitted") for order in orders]
    for request in waiting:
        pipeline.wait(request)
    return pipeline, waiting


def test_places_of_those_that_ended_are_cleared_once_they_are_more_than_half_of_the_queue_and_the_order_stays() -> None:
    orders = [(number * 7 % 10, number) for number in range(10)]
    pipeline, waiting = queue_of(*orders)
    kept = []
    for request in sorted(waiting, key=lambda request: request.order)[:6]:
        request.state = "ended"
        pipeline.wait_no_more()
        kept.append(len(pipeline._waiting))
    assert kept == [10, 10, 10, 10, 10, 4]
    assert [heapq.heappop(pipeline._waiting)[0] for _ in range(4)] == sorted(orders)[6:]


def test_a_cleared_queue_counts_from_nothing_again() -> None:
    pipeline, waiting = queue_of((0, 1), (0, 2), (0, 3), (0, 4), (0, 5))
    kept = []
    for request in waiting:
        request.state = "ended"
        pipeline.wait_no_more()
        kept.append(len(pipeline._waiting))
    assert kept == [5, 5, 2, 2, 0]


def yielding(accepts: bool = True, others: dict[str, Any] | None = None) -> tuple[Pipeline, list[int]]:
    """A pipeline with two running requests and others by state, and the keys of those that it asks to yield."""
    asked: list[int] = []

    def preempt(request: Any) -> bool:
        asked.append(request.key)
        request.state = "admitted"
        return accepts

    nothing = SimpleNamespace(preempted=lambda: None, num_available=0, num_blocks=9)
    running = {key: SimpleNamespace(key=key, name=f"r{key}", state="running") for key in (1, 2)}
    world = SimpleNamespace(by_state={"draining": {}, "retracting": {}, "running": running, **(others or {})})
    core: Any = SimpleNamespace(
        world=world, lifecycle=SimpleNamespace(preempt=preempt), pool=nothing, batch=None, measures=nothing, settle=lambda: None
    )
    return Pipeline(core), asked


def test_the_youngest_yields_where_blocks_are_short() -> None:
    pipeline, asked = yielding()
    assert (pipeline._make_room(), asked) == (True, [2])


@pytest.mark.parametrize("state", ["draining", "retracting"])
def test_nobody_yields_while_blocks_are_on_their_way_home(state: str) -> None:
    pipeline, asked = yielding(others={state: {3: None}})
    assert (pipeline._make_room(), asked) == (False, [])


def test_who_may_not_yield_makes_no_room() -> None:
    pipeline, asked = yielding(accepts=False)
    assert (pipeline._make_room(), asked) == (False, [2])


def test_blocks_are_prepared_for_steps_of_the_cohort_and_for_none_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    core: Any = SimpleNamespace(world=None, lifecycle=None, pool=None, batch=SimpleNamespace(version=7))
    pipeline = Pipeline(core)
    monkeypatch.setattr(pipeline, "_reserve_for", lambda cohort, turn: prepared.append(turn))
    for num_launched in (1, 2, 3):
        monkeypatch.setattr(pipeline, "_cohort", SimpleNamespace(version=7, num_launched=num_launched, horizon=2))
        pipeline.prepare()
    assert prepared == [1]
