"""What an engine does is the same wherever its core runs: each behaviour on one engine with a thread and one with a process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from tests.engine.link.cores import PATIENCE_S, PROMPT, asks, config, last, until

LONG = 1500
"""Tokens of an answer that is sure to be under way still when the call after its first token arrives."""
Play = Callable[[Callable[[AsyncEngine], Awaitable[Any]]], Any]


@pytest.fixture(scope="module", params=["thread", "process"])
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    """Runs a behaviour on the one engine there is; afterwards it runs on, and holds nothing of anybody."""
    with asyncio.Runner() as runner:
        engine = AsyncEngine(config(backend=request.param))
        runner.run(engine.start())

        async def played(body: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
            async with asyncio.timeout(PATIENCE_S):
                result = await body(engine)
                status = engine.status
                await until(
                    lambda: status().engine == "running" and status().blocks.held == status().blocks.fenced == 0, engine
                )
            assert status().balanced
            assert status().live == status().streams == 0
            assert not status().pause_owners
            return result

        yield lambda body: runner.run(played(body))
        runner.run(engine.shutdown())
        assert engine.status().engine == "stopped"


async def tokens(engine: AsyncEngine, count: int = 24, **more: Any) -> tuple[int, ...]:
    return (await last(engine.generate(PROMPT, asks(count), **more))).token_ids


def test_what_is_frozen_goes_on_where_it_was(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        whole = await tokens(engine, LONG)
        async with aclosing(engine.generate(PROMPT, asks(LONG), request_id="frozen")) as outputs:
            await anext(outputs)
            paused = await engine.pause("keep")
            assert (paused.state, paused.kept) == ("paused", ("frozen",))
            queued = asyncio.ensure_future(tokens(engine, 3))
            await asyncio.sleep(0)
            assert (await engine.resume()).changed
            assert (await last(outputs)).token_ids == whole
        assert await queued == whole[:3]

    play(body)


def test_a_pause_that_aborts_gives_everybody_the_tokens_so_far(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        whole = await tokens(engine, 8)
        async with aclosing(engine.generate(PROMPT, asks(LONG), request_id="ended")) as outputs:
            first = await anext(outputs)
            assert (await engine.pause()).aborted == ("ended",)
            end = await last(outputs)
            assert (end.finish_reason, end.token_ids[: len(first.token_ids)]) == ("abort", first.token_ids)
            assert end.token_ids[:8] == whole[: len(end.token_ids)]
        with pytest.raises(errors.Unavailable) as refused:
            await tokens(engine)
        assert refused.value.state == "paused"
        assert not (await engine.pause()).changed
        await engine.resume()

    play(body)


def test_a_pause_that_waits_is_superseded_by_a_resume_and_expires_by_its_deadline(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        async with aclosing(engine.generate(PROMPT, asks(LONG), request_id="long")) as outputs:
            await anext(outputs)
            waiting = asyncio.ensure_future(engine.pause("wait"))
            await until(lambda: engine.status().engine == "draining", engine)
            await engine.resume()
            with pytest.raises(errors.TransitionConflict) as overtaken:
                await waiting
            assert overtaken.value.superseded_by == "resume"
            with pytest.raises(errors.DeadlineExceeded):
                await engine.pause("wait", timeout=0.01)
            await engine.abort("long")
            assert (await last(outputs)).finish_reason == "abort"

    play(body)


def test_a_hold_with_a_time_to_live_ends_by_itself(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        await engine.pause(owner="lease", ttl=0.05)
        await until(lambda: engine.status().engine == "running", engine)

    play(body)


def test_memory_comes_back_part_by_part_with_the_same_weights(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        whole, digest = await tokens(engine), await engine.weights_checksum()
        slept = await engine.sleep(level=1)
        assert slept.state == "sleeping"
        assert set(engine.status().memory.values()) == {"released"}
        assert slept.freed_bytes > 0
        with pytest.raises(errors.TransitionConflict, match="wake_up"):
            await engine.weights_checksum()
        assert (await engine.wake_up(["weights"])).state == "partially_awake"
        assert (await engine.wake_up(["kv_cache"])).state == "running"
        assert (await tokens(engine), await engine.weights_checksum()) == (whole, digest)

    play(body)


def test_a_retry_with_the_same_operation_id_is_given_the_first_answer(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        first = await engine.pause(owner="me", operation_id="once")
        await engine.resume(owner="me")
        assert await engine.pause(owner="me", operation_id="once") == first
        assert engine.status().engine == "running"
        with pytest.raises(errors.InvalidRequest):
            await engine.resume(operation_id="once")

    play(body)


def test_a_caller_that_is_cancelled_leaves_and_its_operation_runs_to_its_end(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        async with aclosing(engine.generate(PROMPT, asks(LONG))) as outputs:
            await anext(outputs)
            pausing = asyncio.ensure_future(engine.pause("wait"))
            await until(lambda: engine.status().engine == "draining", engine)
            pausing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pausing
            assert (await last(outputs)).finish_reason == "length"
        await until(lambda: engine.status().engine == "paused", engine)
        await engine.resume()

    play(body)


def test_an_update_that_a_client_holds_open_refuses_what_only_its_end_would_allow(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        digest = await engine.weights_checksum()
        await engine.begin_weight_update()
        with pytest.raises(errors.TransitionConflict) as refused:
            await engine.begin_weight_update()
        assert "abort_weight_update" in refused.value.how_to
        await engine.abort_weight_update()
        assert await engine.weights_checksum() == digest

    play(body)


def test_several_answers_to_one_prompt_each_with_its_logprobs(play: Play) -> None:
    async def body(engine: AsyncEngine) -> RequestOutput:
        params = SamplingParams(n=3, seed=7, max_tokens=6, ignore_eos=True, logprobs=2, prompt_logprobs=0)
        output = await last(engine.generate(PROMPT, params))
        assert [child.index for child in output.outputs] == [0, 1, 2]
        assert all(len(child.logprobs or ()) == 6 for child in output.outputs)
        assert len(output.prompt_logprobs or ()) == len(PROMPT)
        assert output.seed == 7
        again = await last(engine.generate(PROMPT, params))
        assert [child.token_ids for child in again.outputs] == [child.token_ids for child in output.outputs]
        return output

    play(body)


def test_stop_ids_end_an_answer_and_deltas_add_up(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        whole = await tokens(engine)
        stop = next(token for place, token in enumerate(whole) if place > 2 and token not in whole[:place])
        stopped = await last(engine.generate(PROMPT, asks(24, stop_token_ids=[stop])))
        assert (stopped.finish_reason, stopped.outputs[0].stop_reason) == ("stop", stop)
        parts = [output async for output in engine.generate(PROMPT, asks(24, output_kind="delta"))]
        assert (
            sum((part.token_ids for part in parts[:-1]), ())[: len(whole)]
            == whole[: sum(len(part.token_ids) for part in parts[:-1])]
        )
        (only,) = [output async for output in engine.generate(PROMPT, asks(24, output_kind="final"))]
        assert only.token_ids == whole

    play(body)


def test_what_cannot_be_is_refused_by_name_and_changes_nothing(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        before = replace(engine.status(), rejected=0)
        for wrong, field in (([], "prompt"), ([10**6], "prompt"), ([1] * 2000, "prompt"), ({"x": 1}, "prompt")):
            with pytest.raises(errors.InvalidRequest) as refused:
                await last(engine.generate(wrong))
            assert refused.value.field == field
        for work in (engine.sleep(tags=["gpu"]), engine.pause("hard"), engine.resume("update"), engine.update_weights(7)):
            with pytest.raises(errors.InvalidRequest):
                await work
        assert replace(engine.status(), rejected=0) == before

    play(body)


def test_an_id_in_use_is_refused_and_free_again_once_its_terminal_is_delivered(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        async with aclosing(engine.generate(PROMPT, asks(LONG), request_id="one")) as outputs:
            await anext(outputs)
            with pytest.raises(errors.DuplicateRequest):
                await last(engine.generate(PROMPT, request_id="one"))
            assert (await engine.abort_all()).aborted == ("one",)
            assert (await last(outputs)).finish_reason == "abort"
        assert len(await tokens(engine, 2, request_id="one")) == 2

    play(body)


def test_cancelled_at_any_await_a_stream_leaves_nothing(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        for turns in range(8):
            stream = asyncio.ensure_future(last(engine.generate(PROMPT, asks(200), request_id=f"cancelled {turns}")))
            for _ in range(turns):
                await asyncio.sleep(0)
            stream.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stream
        await until(lambda: not engine.request_ids(), engine)

    play(body)


def test_a_cached_prefix_is_forgotten_when_that_is_asked_for(play: Play) -> None:
    async def body(engine: AsyncEngine) -> None:
        prompt = [3 + place % 40 for place in range(100)]

        async def cached() -> int:
            return (await last(engine.generate(prompt, asks(2)))).num_cached_tokens

        await cached()
        assert await cached() > 0
        assert await engine.reset_prefix_cache()
        assert await cached() == 0

    play(body)
