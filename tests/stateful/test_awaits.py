"""Intrusions land at the await they were meant for, and every await can be tried."""

from __future__ import annotations

import asyncio

import pytest

from quiesce.stateful.awaits import FailedAtAwaits, for_every_await
from quiesce.stateful.loop import AT_CREATION, DeterministicLoop, LeftOver


async def write(log: list[str], word: str, times: int = 1) -> None:
    for _ in range(times):
        log.append(word)
        await asyncio.sleep(0)


def test_suspensions_are_counted_and_a_finish_is_none() -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        await asyncio.create_task(write([], "x", times=3), name="writer")

    loop.run(main())
    assert loop.count_suspensions("writer") == 3
    assert loop.count_suspensions(lambda task: task.get_name().startswith("mai")) == 1
    with pytest.raises(LookupError, match="writer"):
        loop.count_suspensions("reader")


@pytest.mark.parametrize(("suspension", "written"), [(AT_CREATION, 0), (0, 1), (1, 2), (2, 3)])
def test_a_cancellation_lands_at_the_chosen_await(suspension: int, written: int) -> None:
    loop = DeterministicLoop()
    log: list[str] = []
    intrusion = loop.cancel_at("writer", suspension)

    async def main() -> None:
        writer = asyncio.create_task(write(log, "x", times=3), name="writer")
        await asyncio.wait([writer])
        assert writer.cancelled()

    loop.run(main())
    assert len(log) == written
    assert "write (test_awaits.py:" in intrusion.where


def test_an_intrusion_runs_once_between_two_steps() -> None:
    loop = DeterministicLoop()
    log: list[str] = []
    loop.intrude_at("main", 1, lambda task: log.append(f"during {task.get_name()}"))
    loop.run(write(log, "x", times=3))
    assert log == ["x", "x", "during main", "x"]


def borrow(loop: DeterministicLoop, *, careful: bool) -> None:
    """A borrower who gives back what it took, unless it is careless and cancelled between the two."""
    free = [1]

    async def borrower() -> None:
        await asyncio.sleep(1)
        block = free.pop()
        try:
            await asyncio.sleep(1)
        except BaseException:
            if careful:
                free.append(block)
            raise
        free.append(block)
        await asyncio.sleep(1)

    async def main() -> None:
        await asyncio.wait([asyncio.create_task(borrower(), name="borrower")])

    loop.run(main())
    assert free == [1], "a block leaked"


def test_every_await_is_tried_and_the_one_that_leaks_is_named() -> None:
    assert for_every_await(lambda loop: borrow(loop, careful=True), "borrower", from_creation=True) == 3
    with pytest.raises(FailedAtAwaits, match="1 of 3 awaits") as caught:
        for_every_await(lambda loop: borrow(loop, careful=False), "borrower")
    assert list(caught.value.failures) == [1]
    assert caught.value.__cause__ is caught.value.failures[1]
    assert "a block leaked" in str(caught.value)
    assert "borrower (test_awaits.py:" in str(caught.value)


def test_trying_every_await_of_a_task_that_never_awaits_is_an_error_and_not_a_success() -> None:
    async def main() -> None:
        pass

    with pytest.raises(LookupError, match="never awaits"):
        for_every_await(lambda loop: loop.run(main()), "main")


def test_any_intrusion_can_be_tried_before_the_first_step_too() -> None:
    landed: list[str] = []
    for_every_await(
        lambda loop: borrow(loop, careful=False),
        "borrower",
        intrude=lambda task: landed.append(task.get_name()),
        from_creation=True,
    )
    assert landed == ["borrower"] * 4


def test_where_several_tasks_match_the_longest_counts_and_the_first_is_hit_once() -> None:
    loop = DeterministicLoop()
    hit: list[str] = []
    loop.intrude_at(lambda task: task.get_name().startswith("writer"), 0, lambda task: hit.append(task.get_name()))

    async def main() -> None:
        writers = [asyncio.create_task(write([], "x", times), name=f"writer-{times}") for times in (2, 5, 3)]
        await asyncio.gather(*writers)

    loop.run(main())
    assert hit == ["writer-2"]
    assert loop.count_suspensions(lambda task: task.get_name().startswith("writer")) == 5


def test_a_scenario_that_changes_from_run_to_run_is_told_so() -> None:
    lengths = iter([3, 3, 1, 3])

    def scenario(loop: DeterministicLoop) -> None:
        async def main() -> None:
            await asyncio.wait([asyncio.create_task(write([], "x", times=next(lengths)), name="writer")])

        loop.run(main())

    with pytest.raises(FailedAtAwaits, match="not deterministic") as caught:
        for_every_await(scenario, "writer")
    assert list(caught.value.failures) == [1]


def test_a_scenario_that_drives_the_loop_itself_must_clean_up_too() -> None:
    async def main() -> object:
        straggler = asyncio.create_task(asyncio.sleep(9), name="straggler")
        await asyncio.sleep(0)
        return straggler

    with pytest.raises(LeftOver, match="straggler"):
        for_every_await(lambda loop: loop.run_until_complete(main()), "straggler")
