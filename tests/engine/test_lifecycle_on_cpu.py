"""Pause, sleep, wake and new weights on the real device: real arenas, real threads, real memory, and the same tokens as undisturbed."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.outputs import RequestOutput, Transition
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tensor_files import expected_tensors
from quiesce.engine.tiny import checkpoint_folder
from tests.engine.device.sleep_tools import open_files, rss
from tests.engine.test_on_cpu import QUESTIONS, config, live

SAMPLED = SamplingParams(max_tokens=60, temperature=0.9, seed=5, ignore_eos=True)
Disturb = Callable[[AsyncEngine], Awaitable[object]]


class Listener:
    """Asks every question at once and keeps the latest output of each."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.latest: dict[str, RequestOutput] = {}
        self.news = asyncio.Event()

    async def one(self, question: str) -> None:
        messages = [{"role": "user", "content": question}]
        async for output in self.engine.chat(messages, SAMPLED, request_id=question):
            self.latest[question] = output
            self.news.set()

    async def has(self, num_tokens: int) -> None:
        """Waits until everybody has as many tokens."""
        while len(self.latest) < len(QUESTIONS) or min(len(out.token_ids) for out in self.latest.values()) < num_tokens:
            self.news.clear()
            await self.news.wait()

    async def all(self, disturb: Disturb | None = None) -> dict[str, tuple[int, ...]]:
        """The tokens of every answer, with something done when everybody has some."""
        async with asyncio.TaskGroup() as group:
            for question in QUESTIONS:
                group.create_task(self.one(question))
            if disturb is not None:
                await self.has(8)
                await disturb(self.engine)
        assert {out.finish_reason for out in self.latest.values()} == {"length"}
        return {question: out.token_ids for question, out in self.latest.items()}


async def pause_and_resume(engine: AsyncEngine) -> None:
    paused = await engine.pause("keep")
    assert (paused.state, paused.changed, paused.aborted) == ("paused", True, ())
    assert sorted(paused.kept) == sorted(QUESTIONS)
    status = engine.status()
    assert (status.steps_in_flight, status.blocks.fenced, status.admission) == (0, 0, "queue")
    assert (await engine.resume()).state == "running"


async def clear_the_cache(engine: AsyncEngine) -> None:
    await engine.pause("keep", clear_cache=True)
    blocks = engine.status().blocks
    assert (blocks.held, blocks.cached, blocks.fenced) == (0, 0, 0)
    await engine.resume()


def sleep_and_wake(weights: str, kv_cache: str) -> Disturb:
    async def disturb(engine: AsyncEngine) -> None:
        slept = await engine.sleep(tags={"weights": weights, "kv_cache": kv_cache}, mode="keep")
        assert slept.state == "sleeping"
        assert slept.aborted == ()
        assert slept.freed_bytes > 0
        assert (await engine.wake_up(["kv_cache"])).state == "partially_awake"
        await engine.wake_up(["weights"])
        if weights == "discard":
            assert engine.status().weights == (0, "undefined")
            await engine.update_weights(checkpoint_folder("small"), version=0)
        assert engine.status().engine == "running"

    return disturb


async def update_with_the_same(engine: AsyncEngine) -> None:
    before = await engine.weights_checksum()
    await engine.update_weights(checkpoint_folder("small"), version="same")
    assert await engine.weights_checksum() == before


@pytest.mark.parametrize(
    "disturb",
    [
        pause_and_resume,
        clear_the_cache,
        sleep_and_wake("offload", "offload"),
        sleep_and_wake("offload", "discard"),
        sleep_and_wake("discard", "discard"),
        update_with_the_same,
    ],
    ids=["keep", "keep and clear", "both offloaded", "KV discarded", "both discarded, healed", "updated with the same weights"],
)
@pytest.mark.parametrize("num_kv_blocks", [64, 16], ids=["room for all", "preempting"])
def test_what_is_frozen_goes_on_bit_for_bit(disturb: Disturb, num_kv_blocks: int) -> None:
    async def body(engine: AsyncEngine) -> None:
        undisturbed = await Listener(engine).all()
        assert await Listener(engine).all(disturb) == undisturbed

    live(config(batch_invariant=True, num_kv_blocks=num_kv_blocks), body)


def test_spans_say_which_version_made_which_tokens_and_the_new_weights_go_on_from_there() -> None:
    """What follows the switch is what the new weights say to the same beginning."""

    async def body(engine: AsyncEngine) -> None:
        undisturbed = await Listener(engine).all()
        norm = {"model.norm.weight": np.linspace(0.5, 2.0, engine.model.info.hidden_size, dtype=np.float32)}
        listener = Listener(engine)
        await listener.all(lambda engine: engine.update_weights(norm.items(), version="tuned"))
        for question, output in listener.latest.items():
            (old, _, switch), (new, _, end) = output.outputs[0].weight_versions
            assert (old, new, end) == (0, "tuned", 60)
            assert output.token_ids[:switch] == undisturbed[question][:switch]
            beginning = {"prompt_token_ids": [*output.prompt_token_ids, *output.token_ids[:switch]]}
            params = SamplingParams(max_tokens=60 - switch, temperature=0.9, seed=5, ignore_eos=True)
            async for again in engine.generate(beginning, params):
                rest = again.token_ids
            assert rest == output.token_ids[switch:]
        assert any(output.token_ids != undisturbed[question] for question, output in listener.latest.items())

    live(config(batch_invariant=True), body)


def test_a_sleep_gives_back_all_but_a_twentieth_of_the_arenas_by_the_process_s_own_count() -> None:
    """The pool is filled first: what was never written was never taken."""

    async def body(engine: AsyncEngine) -> None:
        prompts = [[5 + number] * 127 for number in range(170)]

        async def fill(number: int) -> None:
            async for _ in engine.generate(prompts[number], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)):
                pass

        await asyncio.gather(*(fill(number) for number in range(len(prompts))))
        await engine.reset_prefix_cache()
        info = engine.model.info
        weights = 4 * sum(int(np.prod(shape)) for shape in expected_tensors(info).values())
        block = 4 * 2 * info.num_layers * info.num_kv_heads * info.head_dim * engine.config.block_size
        arenas = weights + block * engine.status().blocks.total
        gc.collect()
        before = rss()
        slept = await engine.sleep(level=2)
        given_back = before - rss()
        assert given_back >= 0.95 * arenas, (given_back, arenas)
        assert slept.freed_bytes >= 0.95 * arenas
        await engine.wake_up()
        await engine.update_weights(checkpoint_folder("small"))

    live(config(num_kv_blocks=1200, max_queue=200), body)


def test_two_hundred_sleeps_leave_no_memory_descriptor_task_or_thread_behind() -> None:
    async def body(engine: AsyncEngine) -> None:

        async def cycle(number: int) -> None:
            await engine.sleep(level=1 + number % 2, mode="keep")
            await engine.wake_up()
            if number % 2:
                await engine.update_weights(checkpoint_folder("small"))

        def counts() -> tuple[int, int, int]:
            return len(open_files()), threading.active_count(), len(asyncio.all_tasks())

        for number in range(10):
            await cycle(number)
        gc.collect()
        before, memory = counts(), rss()
        for number in range(200):
            await cycle(number)
        gc.collect()
        assert counts() == before
        assert rss() - memory < 4_000_000
        assert engine.status().engine == "running"

    live(config(), body)


def test_a_second_engine_on_the_same_machine_does_not_notice_a_sleep() -> None:
    async def body(engine: AsyncEngine) -> None:
        async with AsyncEngine(config()) as other:
            undisturbed = await Listener(other).all()
            answers = asyncio.create_task(Listener(other).all())
            await engine.sleep()
            assert await answers == undisturbed
            await engine.wake_up()

    live(config(), body)


def test_a_cancelled_sleep_call_sleeps_all_the_same() -> None:
    async def body(engine: AsyncEngine) -> None:
        call = asyncio.create_task(engine.sleep())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        again: Transition = await engine.sleep()
        assert (again.state, engine.status().engine) == ("sleeping", "sleeping")
        await engine.wake_up()

    live(config(), body)


def test_a_missing_or_broken_source_is_refused_before_anything_stops(tmp_path: Any) -> None:
    async def body(engine: AsyncEngine) -> None:
        listener = Listener(engine)
        answering = asyncio.create_task(listener.all())
        await listener.has(2)
        torn = tmp_path / "torn.safetensors"
        torn.write_bytes(os.urandom(100))
        for source in (tmp_path / "nothing", torn, {}, {"model.norm.weight": np.ones(3, np.float32)}, 7):
            with pytest.raises(errors.InvalidRequest):
                await engine.update_weights(source)
            assert engine.status().engine == "running"
        await answering
        assert engine.status().weights == (0, "stable")

    live(config(), body)


def test_what_is_remembered_for_a_retry_keeps_no_tensor_alive() -> None:
    """Of a source that was refused half-way, too: a thousand remembered updates must not hold a thousand models."""

    class Kept(np.ndarray):  # a plain array cannot be referred to weakly
        pass

    async def body(engine: AsyncEngine) -> None:
        async def refused(kept: Kept) -> None:
            with pytest.raises(errors.InvalidRequest, match="accepted"):
                await engine.update_weights(iter([("model.norm.weight", kept)]), operation_id="once")

        tensor = np.ones(3, np.float32).view(Kept)
        alive = weakref.ref(tensor)
        await refused(tensor)
        del tensor
        await asyncio.sleep(0)  # the loop has let go of the call that it was waking
        gc.collect()
        assert alive() is None
        with pytest.raises(errors.InvalidRequest, match="accepted"):
            await engine.update_weights(iter(()), operation_id="once")
        assert engine.status().weights == (0, "stable")

    live(config(), body)
