"""Runs that go wrong say so: deadlocks, endless runs, and everything that a finished run leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

from quiesce.stateful.loop import Deadlock, DeterministicLoop, LeftOver, Livelock


def test_a_deadlock_names_who_waits_where_and_for_what() -> None:
    loop = DeterministicLoop()

    async def client() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        loop.hold("step")
        loop.offer("step", lambda: None)
        await asyncio.create_task(client(), name="client-1")

    with pytest.raises(Deadlock) as caught:
        loop.run(main())
    text = str(caught.value)
    assert "main in " in text
    assert ", for task client-1" in text
    assert "client-1 in " in text
    assert "client (test_reports.py:" in text
    assert "> Event.wait (locks.py:" in text
    assert "<Future pending" in text
    assert "held back: step" in text
    assert not hasattr(caught.value, "__notes__")  # everything is told once


def test_a_run_without_end_is_told_from_a_slow_one() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match="main in "):
        DeterministicLoop(max_turns=1000).run(main())


async def leave_a_task() -> object:
    straggler = asyncio.create_task(asyncio.Event().wait(), name="straggler")
    await asyncio.sleep(0)
    return straggler


async def leave_a_stubborn_task() -> object:
    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    straggler = asyncio.create_task(stubborn(), name="straggler")
    await asyncio.sleep(0)
    return straggler


async def lose_an_exception() -> object:
    async def fail() -> None:
        raise KeyError("lost")

    straggler = asyncio.create_task(fail(), name="straggler")
    await asyncio.sleep(0)
    return straggler


async def lose_a_future(keep: list[object] = []) -> None:  # noqa: B006  # what it keeps is still alive when the run ends
    future = asyncio.get_running_loop().create_future()
    future.set_exception(KeyError("lost"))
    keep[:] = [future]


async def fail_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(int, "lost")
    await asyncio.sleep(0)


async def forget_to_await() -> None:
    asyncio.sleep(1)  # type: ignore[unused-coroutine]


async def count_up() -> AsyncGenerator[int]:
    try:
        for i in range(9):
            yield i
    finally:
        await asyncio.sleep(1)


async def drop_a_generator() -> None:
    async for _ in count_up():
        break


async def keep_a_generator(keep: list[object] = []) -> None:  # noqa: B006
    numbers = count_up()
    keep[:] = [numbers]
    await anext(numbers)


@pytest.mark.parametrize(
    ("main", "left"),
    [
        (leave_a_task, "straggler in Event.wait"),
        (leave_a_stubborn_task, "straggler in "),
        (lose_an_exception, "task straggler failed and nobody asked: KeyError('lost')"),
        (lose_a_future, "a future failed and nobody asked: KeyError('lost')"),
        (fail_in_a_callback, "ValueError"),
        (forget_to_await, "coroutine 'sleep' was never awaited"),
        (drop_a_generator, "async generator count_up was not closed"),
        (keep_a_generator, "async generator count_up was not closed"),
    ],
)
def test_a_run_that_leaves_something_behind_fails(main: Callable[[], Coroutine[Any, Any, object]], left: str) -> None:
    with pytest.raises(LeftOver) as caught:
        DeterministicLoop().run(main())
    assert len(caught.value.items) == 1
    assert left in caught.value.items[0]


def test_a_cancelled_main_does_not_hide_what_it_left() -> None:
    async def main() -> None:
        await leave_a_task()
        raise asyncio.CancelledError

    with pytest.raises(LeftOver, match="straggler"):
        DeterministicLoop().run(main())


def test_a_failed_main_raises_its_own_error_with_what_it_left_as_notes() -> None:
    async def main() -> None:
        await leave_a_task()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        DeterministicLoop().run(main())
    assert "straggler" in caught.value.__notes__[0]


def test_a_clean_run_leaves_nothing_and_returns_what_main_returned() -> None:
    async def main() -> int:
        async with contextlib.aclosing(count_up()) as numbers:
            return await anext(numbers)

    assert DeterministicLoop().run(main()) == 0


class Unsized:
    def __len__(self) -> int:
        raise KeyError(self)


def test_reports_hold_no_addresses_so_that_two_runs_read_alike() -> None:
    async def main() -> None:
        async def fail() -> None:
            raise KeyError(object())

        asyncio.get_running_loop().call_soon(len, Unsized())
        await asyncio.wait([asyncio.create_task(fail())])

    with pytest.raises(LeftOver) as caught:
        DeterministicLoop().run(main())
    assert len(caught.value.items) == 2
    assert "0x" not in str(caught.value)


def test_the_clean_up_of_a_run_chooses_nothing_and_lets_nothing_in() -> None:
    loop = DeterministicLoop(adversarial=True)
    log: list[str] = []
    loop.intrude_at("straggler", 1, lambda task: log.append("intruded"))

    async def straggle() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)

    async def main() -> object:
        stragglers = [asyncio.create_task(straggle(), name="straggler") for _ in range(3)]
        await loop.wait_idle()
        loop.choices.taken.clear()
        loop.offer("step", lambda: log.append("completed"))
        return stragglers

    with pytest.raises(LeftOver):
        loop.run(main())
    assert len(loop.choices.taken) <= 1  # whether the end of main comes before the completion
    assert log == []


def test_other_warnings_pass_through() -> None:
    async def main() -> None:
        warnings.warn("look out", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="look out"):
        DeterministicLoop().run(main())


def test_there_are_no_threads() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="no threads"):
            await asyncio.to_thread(int)

    DeterministicLoop().run(main())
