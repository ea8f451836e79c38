"""The deterministic loop: how time passes, when completions land, and what may be reordered in which mode."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from quiesce.stateful.choices import POS, Drawn, RandomWalk, Replay, Strategy
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.steered import OFFER_PATIENCE, TIME_PATIENCE


async def write(log: list[str], word: str, times: int = 1) -> None:
    for _ in range(times):
        log.append(word)
        await asyncio.sleep(0)


async def spin_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # a busy poll is what is tested
        await asyncio.sleep(0)


def offer_three(loop: DeterministicLoop, channel: str | None = None) -> list[str]:
    """Runs a scenario of three completions and two tasks; returns the order in which all of it happened."""
    log: list[str] = []

    async def main() -> None:
        for word in "abc":
            loop.offer(word, lambda word=word: log.append(word), channel=channel)  # type: ignore[misc]
        await asyncio.gather(write(log, "x"), write(log, "y"))
        await spin_until(lambda: not loop.offered)

    loop.run(main())
    return log


# ---------------------------------------------------------------------------------------------------- time


def test_an_hour_of_sleep_takes_no_time_and_moves_the_clock_by_an_hour() -> None:
    loop = DeterministicLoop()

    async def main() -> float:
        await asyncio.sleep(3600)
        return loop.time()

    assert loop.run(main()) == 3600


def test_stock_timeouts_fire_on_the_virtual_clock() -> None:
    async def main() -> None:
        async with asyncio.timeout(5):
            await asyncio.Event().wait()

    loop = DeterministicLoop()
    with pytest.raises(TimeoutError):
        loop.run(main())
    assert loop.time() == 5


def coincide(strategy: Strategy) -> str:
    log: list[str] = []

    async def sleeper(word: str) -> None:
        await asyncio.sleep(1)
        log.append(word)

    async def main() -> None:
        await asyncio.gather(*map(sleeper, "abcdefgh"))

    DeterministicLoop(strategy).run(main())
    return "".join(log)


def test_timers_that_coincide_fire_in_the_order_they_were_set_unless_chosen_otherwise() -> None:
    assert coincide(Replay([])) == "abcdefgh"
    assert coincide(Replay([7, 0, 1])) == "hacbdefg"


def test_a_timer_that_is_due_does_not_wait_for_the_ready_queue_to_drain() -> None:
    async def main() -> None:
        fired = asyncio.Event()
        asyncio.get_running_loop().call_later(0, fired.set)
        for _ in range(3):
            await asyncio.sleep(0)
        assert fired.is_set()

    DeterministicLoop().run(main())


def test_a_timer_that_is_due_goes_before_a_completion() -> None:
    loop = DeterministicLoop()
    log: list[str] = []

    async def main() -> None:
        landed = asyncio.Event()
        loop.offer("step", landed.set)
        loop.call_later(0, log.append, "timer")
        await landed.wait()
        log.append("step")

    loop.run(main())
    assert log == ["timer", "step"]


def test_work_before_a_timer_is_set_does_not_use_up_its_patience() -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        await write([], "work", times=TIME_PATIENCE + 10)
        loop.call_later(60, lambda: None)
        await write([], "work", times=10)
        assert loop.time() == 0

    loop.run(main())


def test_a_task_that_polls_the_clock_sees_it_move() -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        loop.call_later(7, lambda: None)
        await spin_until(lambda: loop.time() >= 7)

    loop.run(main())


# ---------------------------------------------------------------------------------------------------- completions


def test_completions_wait_until_nothing_else_can_run_when_the_run_is_fifo() -> None:
    assert offer_three(DeterministicLoop()) == ["x", "y", "a", "b", "c"]


def test_a_completion_can_land_between_any_two_turns() -> None:
    landed = {tuple(offer_three(DeterministicLoop(RandomWalk(seed)), channel="device")) for seed in range(60)}
    assert ("a", "b", "c", "x", "y") in landed
    assert ("x", "a", "y", "b", "c") in landed


def test_completions_on_one_channel_land_in_order_and_others_need_not() -> None:
    in_order = {"".join(w for w in offer_three(DeterministicLoop(POS(seed)), "device") if w in "abc") for seed in range(30)}
    assert in_order == {"abc"}
    assert "".join(offer_three(DeterministicLoop(Replay([3])), None))[0] == "c"


def test_a_held_completion_stalls_its_channel_until_it_is_released() -> None:
    loop = DeterministicLoop()
    log: list[str] = []

    async def main() -> None:
        loop.hold("step 1")
        loop.offer("step 1", lambda: log.append("step 1"), channel="device")
        loop.offer("step 2", lambda: log.append("step 2"), channel="device")
        loop.offer("reply", lambda: log.append("reply"))
        await asyncio.sleep(9)
        assert log == ["reply"]
        assert loop.offered == ["step 1", "step 2"]
        loop.release("step 1")
        await asyncio.sleep(9)
        assert log == ["reply", "step 1", "step 2"]

    loop.run(main())


def test_time_may_pass_before_a_completion_only_by_choice() -> None:
    def answer(strategy: Strategy) -> str:
        loop = DeterministicLoop(strategy)

        async def main() -> str:
            reply: asyncio.Future[str] = loop.create_future()
            loop.offer("reply", lambda: None if reply.done() else reply.set_result("answered"))
            try:
                return await asyncio.wait_for(reply, timeout=1)
            except TimeoutError:
                return "timed out"

        return loop.run(main())

    assert answer(Replay([])) == "answered"
    assert answer(Replay([1])) == "timed out"
    assert answer(Replay([1, 1])) == "answered"  # by a reply that overtakes the timer that is already due


def test_a_busy_poll_for_a_completion_ends_because_the_environment_is_fair() -> None:
    loop = DeterministicLoop()
    landed: list[bool] = []

    async def main() -> None:
        loop.offer("step", lambda: landed.append(True))
        await spin_until(lambda: bool(landed))

    loop.run(main())


def test_a_released_completion_is_put_off_like_a_new_one() -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        loop.hold("step")
        loop.offer("step", lambda: None)
        await write([], "work", times=OFFER_PATIENCE + 10)
        loop.release("step")
        await write([], "work", times=10)
        assert loop.offered == ["step"]

    loop.run(main())


def test_wait_idle_returns_before_the_environment_moves() -> None:
    loop = DeterministicLoop()
    log: list[str] = []

    async def main() -> None:
        writer = asyncio.create_task(write(log, "x", times=5))
        loop.offer("step", lambda: log.append("step"))
        await loop.wait_idle()
        log.append("idle")
        await writer

    loop.run(main())
    assert log == ["x"] * 5 + ["idle"]


# ---------------------------------------------------------------------------------------------------- modes


def orders(adversarial: bool, scenario: Callable[[list[str]], Coroutine[Any, Any, None]]) -> set[str]:
    seen = set()
    for seed in range(60):
        log: list[str] = []
        DeterministicLoop(RandomWalk(seed), adversarial=adversarial).run(scenario(log))
        seen.add("".join(log))
    return seen


async def three_writers(log: list[str]) -> None:
    await asyncio.gather(*(write(log, word) for word in "abc"))


async def three_callbacks(log: list[str]) -> None:
    for word in "123":
        asyncio.get_running_loop().call_soon(log.append, word)
    await asyncio.create_task(write(log, "a"))


def test_the_ready_queue_is_fifo_in_strict_mode_whatever_the_strategy() -> None:
    assert orders(False, three_writers) == {"abc"}


def test_any_ready_task_may_go_first_in_adversarial_mode() -> None:
    assert orders(True, three_writers) == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_plain_callbacks_keep_their_order_even_then() -> None:
    assert {order.replace("a", "") for order in orders(True, three_callbacks)} <= {"", "1", "12", "123"}
    assert len(orders(True, three_callbacks)) > 1


def test_a_cancel_scheduled_as_a_callback_is_not_mistaken_for_a_task_step() -> None:
    async def scenario(log: list[str]) -> None:
        loop = asyncio.get_running_loop()
        victim = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        loop.call_soon(lambda: log.append(f"{victim.cancelling()}"))
        loop.call_soon(victim.cancel)
        loop.call_soon(lambda: log.append(f"{victim.cancelling()}"))
        with contextlib.suppress(asyncio.CancelledError):
            await victim

    assert orders(True, scenario) == {"01"}


def test_no_strategy_starves_a_ready_task() -> None:
    async def main() -> None:
        starved = asyncio.create_task(asyncio.sleep(0))
        spinner = asyncio.create_task(write([], "spin", times=100_000))
        await starved
        spinner.cancel()
        await asyncio.wait([spinner])

    DeterministicLoop(Drawn(lambda num_options: num_options - 1), adversarial=True, max_turns=20_000).run(main())


def test_call_soon_threadsafe_works_from_the_one_thread_there_is() -> None:
    async def main() -> None:
        called = asyncio.Event()
        asyncio.get_running_loop().call_soon_threadsafe(called.set)
        await called.wait()

    DeterministicLoop().run(main())
