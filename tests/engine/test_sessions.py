"""Sessions: turns with one history, one at a time, closed at once in every state of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.awaits import for_every_await
from quiesce.stateful.driver import VOCAB_SIZE
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.scenario import World, prompt_of, run


def five(max_tokens: int = 5) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


async def say(world: World, session: str, prompt: list[int], max_tokens: int = 5, **options: Any) -> RequestOutput:
    """One turn, to its end."""
    async with aclosing(world.engine.generate(prompt, five(max_tokens), session_id=session, **options)) as outputs:
        async for output in outputs:
            last = output
    return last


def play(folder: Path, body: Callable[[World], Coroutine[Any, Any, None]], **config: Any) -> None:
    """A scenario at whose end no session is left either."""

    async def checked(world: World) -> None:
        await body(world)
        assert world.engine.status().sessions == 0

    run(folder, checked, **config)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  the loop is virtual: this takes no time
        await asyncio.sleep(0)


def test_each_turn_continues_what_was_said_and_finds_it_in_the_cache(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        session = await world.engine.open_session()
        assert world.engine.status().sessions == 1
        first = await say(world, session.id, prompt_of(1, 6))
        second = await say(world, session.id, prompt_of(2, 3))
        said = [*prompt_of(1, 6), *first.token_ids, *prompt_of(2, 3)]
        assert list(second.prompt_token_ids) == said
        assert list(second.token_ids) == true_tokens(said, 5, VOCAB_SIZE)
        assert second.num_cached_tokens == 8, "two full blocks of the first turn"
        assert await world.engine.close_session(session.id)

    play(ledger_folder, body)


def test_an_overlapping_turn_is_refused_and_the_first_is_untouched(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        session = await world.engine.open_session()
        first = asyncio.create_task(say(world, session.id, prompt_of(1, 6)))
        await until(lambda: world.engine.status().live == 1)
        with pytest.raises(errors.TransitionConflict, match="await or abort the turn in hand"):
            await say(world, session.id, prompt_of(2, 3))
        assert list((await first).token_ids) == true_tokens(prompt_of(1, 6), 5, VOCAB_SIZE)
        assert world.engine.status().rejected == 1
        await world.engine.close_session(session.id)

    play(ledger_folder, body)


def test_a_turn_called_while_the_last_one_s_blocks_come_home_waits_and_is_not_refused(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        session = await world.engine.open_session()
        world.loop.hold("step 3")
        first = asyncio.create_task(say(world, session.id, prompt_of(1, 6), 40, request_id="first"))
        await world.loop.wait_settled()
        await world.engine.abort("first")
        assert (await first).finish_reason == "abort"
        assert world.engine.status().requests == {"draining": 1}, "a step still names it"
        turn = asyncio.create_task(say(world, session.id, prompt_of(2, 3)))
        await world.loop.wait_settled()
        assert world.engine.status().live == 0, "the next turn waits"
        world.loop.release("step 3")
        second = await turn
        assert list(second.prompt_token_ids) == prompt_of(2, 3), "an aborted turn is not part of the history"
        await world.engine.close_session(session.id)

    play(ledger_folder, body)


def test_closing_during_a_turn_ends_it_with_its_tokens_so_far(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        session = await world.engine.open_session()
        turn = asyncio.create_task(say(world, session.id, prompt_of(1, 6), 40))
        await until(lambda: world.engine.status().steps_in_flight == 2)
        assert await world.engine.close_session(session.id)
        output = await turn
        assert output.finish_reason == "abort"
        assert list(output.token_ids) == true_tokens(prompt_of(1, 6), 40, VOCAB_SIZE)[: len(output.token_ids)]
        assert not await world.engine.close_session(session.id)
        with pytest.raises(errors.InvalidRequest, match="open_session"):
            await say(world, session.id, prompt_of(2, 3))

    play(ledger_folder, body)


@pytest.mark.parametrize("verb", ["pause", "sleep"])
def test_a_session_outlives_a_pause_and_a_sleep_and_can_be_closed_during_them(ledger_folder: Path, verb: str) -> None:
    async def body(world: World) -> None:
        kept, closed = await world.engine.open_session(), await world.engine.open_session()
        first = await say(world, kept.id, prompt_of(1, 6))
        turn = asyncio.create_task(say(world, closed.id, prompt_of(3, 6), 40))
        await until(lambda: world.engine.status().steps_in_flight == 2)
        await getattr(world.engine, verb)(mode="keep")
        await world.engine.close_session(closed.id)
        assert (await turn).finish_reason == "abort"
        await (world.engine.resume() if verb == "pause" else world.engine.wake_up())
        second = await say(world, kept.id, prompt_of(2, 3))
        said = [*prompt_of(1, 6), *first.token_ids, *prompt_of(2, 3)]
        assert list(second.token_ids) == true_tokens(said, 5, VOCAB_SIZE)
        await world.engine.close_session(kept.id)

    play(ledger_folder, body)


def test_a_session_that_is_idle_too_long_is_closed_and_one_that_talks_is_not(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        idle, talking = await world.engine.open_session(), await world.engine.open_session()
        for number in range(3):
            await asyncio.sleep(8)
            await say(world, talking.id, prompt_of(number, 3), 2)
        assert world.engine.status().sessions == 1
        with pytest.raises(errors.InvalidRequest):
            await say(world, idle.id, prompt_of(1, 3))
        await asyncio.sleep(11)

    play(ledger_folder, body, session_idle_timeout_s=10)


def test_sessions_are_bounded(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        sessions = [await world.engine.open_session() for _ in range(2)]
        with pytest.raises(errors.QueueFull):
            await world.engine.open_session()
        for session in sessions:
            await world.engine.close_session(session.id)
        again = await world.engine.open_session()
        assert again.id not in {session.id for session in sessions}, "an id is never used again"
        await world.engine.close_session(again.id)

    play(ledger_folder, body, max_sessions=2)


def test_shutdown_closes_every_session(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        session = await world.engine.open_session()
        turn = asyncio.create_task(say(world, session.id, prompt_of(1, 6), 40))
        await until(lambda: world.engine.status().steps_in_flight == 2)
        await world.engine.shutdown(timeout=0)
        assert (await turn).finish_reason == "abort"
        with pytest.raises(errors.EngineDead):
            await world.engine.open_session()

    play(ledger_folder, body)


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        ({"prompt": []}, errors.InvalidRequest),
        ({"prompt": [3] * 60}, errors.InvalidRequest),
        ({"prompt": [3], "request_id": "taken"}, errors.DuplicateRequest),
        ({"prompt": [3], "sampling_params": SamplingParams(n=2)}, errors.InvalidRequest),
    ],
    ids=["empty", "too long with what was said", "an id in use", "two answers"],
)
def test_a_turn_that_is_refused_leaves_the_session_as_it_was(
    ledger_folder: Path, turn: dict[str, Any], error: type[Exception]
) -> None:
    async def body(world: World) -> None:
        other = asyncio.create_task(say(world, (await world.engine.open_session()).id, [5], 12, request_id="taken"))
        session = await world.engine.open_session()
        first = await say(world, session.id, prompt_of(1, 6))
        with pytest.raises(error):
            async for _ in world.engine.generate(**turn, session_id=session.id):
                pass
        second = await say(world, session.id, prompt_of(2, 3))
        assert list(second.prompt_token_ids) == [*prompt_of(1, 6), *first.token_ids, *prompt_of(2, 3)]
        await other
        for name in list(world.engine._front.world.sessions):
            await world.engine.close_session(name)

    play(ledger_folder, body)


def test_a_turn_disturbed_at_any_await_leaves_a_session_that_goes_on(ledger_folder: Path) -> None:
    def scenario(loop: DeterministicLoop) -> None:
        async def body(world: World) -> None:
            session = await world.engine.open_session()
            opening = asyncio.create_task(say(world, session.id, prompt_of(1, 6), request_id="opening"))
            await until(lambda: world.engine.status().steps_in_flight == 2)
            await world.engine.abort("opening")
            await asyncio.wait([opening])
            victim = asyncio.create_task(say(world, session.id, prompt_of(2, 4)), name="victim")
            await asyncio.wait([victim])
            last = await say(world, session.id, prompt_of(3, 3))
            assert list(last.token_ids) == true_tokens(last.prompt_token_ids, 5, VOCAB_SIZE)
            await world.engine.close_session(session.id)
            assert world.engine.status().sessions == 0

        run(ledger_folder, body, loop=loop)

    assert for_every_await(scenario, "victim", from_creation=True) >= 3


def test_a_conversation_on_the_real_device_gives_the_tokens_of_the_whole_prompt() -> None:
    async def body() -> None:
        async with AsyncEngine(EngineConfig(num_threads=1, num_kv_blocks=200)) as engine:
            session = await engine.open_session()
            async for output in engine.generate("What is a fence?", five(6), session_id=session.id):
                first = output
            async for output in engine.generate("And a drain?", five(6), session_id=session.id):
                last = output
            said = (*first.prompt_token_ids, *first.token_ids)
            assert last.prompt_token_ids[: len(said)] == said
            async for output in engine.generate(list(last.prompt_token_ids), five(6)):
                alone = output
            assert alone.token_ids == last.token_ids
            await engine.close_session(session.id)

    asyncio.run(body())
