"""The waiting queue on its own: places of those that ended, and the order of those that stay."""

from __future__ import annotations

import heapq
from types import SimpleNamespace
from typing import Any

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
