"""The whole engine on the real CPU device with the shipped model: threads, torch, paged KV. Tokens never depend on what happens around."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.model import Model
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder
from quiesce.stateful.driver import assert_nothing_left

GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
QUESTIONS = (
    "Which events are legal for a request that is running?",
    "Which events are legal for a request that is received?",
    "Where does a request go from draining on reap?",
    "Can a step be launched while it is landed?",
    "What does paused mean?",
    "What is a stream?",
)


def config(**changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "model": str(checkpoint_folder("small")),
        "num_threads": 1, "dtype": "float32", "max_model_len": 160, "num_kv_blocks": 64, "max_num_seqs": 8,
        "max_num_batched_tokens": 64, "poison_freed_blocks": True,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))


def live(
    config: EngineConfig, body: Callable[[AsyncEngine], Awaitable[Any]], before_step: Callable[[int], None] | None = None
) -> Any:
    """Runs a scenario on the stock event loop and a real device, and checks that nothing is left: no block, stream, task or thread."""

    def make_device(config: EngineConfig, model: Model) -> CpuDevice:
        return CpuDevice(config, model.info, model.num_blocks, before_step=before_step, progress=False)

    async def main() -> Any:
        engine = AsyncEngine(config, make_device=make_device)
        async with engine:
            result = await body(engine)
        assert_nothing_left(engine)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    before = set(threading.enumerate())
    result = asyncio.run(main())
    assert set(threading.enumerate()) <= before
    return result


async def ask(engine: AsyncEngine, question: str, params: SamplingParams = GREEDY, **options: Any) -> list[RequestOutput]:
    return [output async for output in engine.chat([{"role": "user", "content": question}], params, **options)]


async def answers(
    engine: AsyncEngine, questions: Sequence[str] = QUESTIONS, params: SamplingParams = GREEDY
) -> list[tuple[int, ...]]:
    """Every question at once; the tokens of each answer."""
    return [
        outputs[-1].token_ids for outputs in await asyncio.gather(*(ask(engine, question, params) for question in questions))
    ]


async def one_by_one(engine: AsyncEngine, params: SamplingParams = GREEDY) -> list[tuple[int, ...]]:
    return [(await ask(engine, question, params))[-1].token_ids for question in QUESTIONS]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def undisturbed(request: pytest.FixtureRequest) -> tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]]:
    """(dtype, greedy answers, sampled answers) of each question by itself on a quiet batch-invariant engine."""
    quiet = config(batch_invariant=True, dtype=request.param, enable_prefix_caching=False, max_num_batched_tokens=512)

    async def body(engine: AsyncEngine) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        return await one_by_one(engine), await one_by_one(engine, SAMPLED)

    return (request.param, *live(quiet, body))


SAMPLED = replace(GREEDY, temperature=0.9, seed=5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"overlap": False},
        {"max_num_batched_tokens": 9, "max_num_seqs": 4},
        {"num_kv_blocks": 12},
        {"block_size": 4, "num_kv_blocks": 48, "max_num_batched_tokens": 16},
    ],
    ids=["batched", "depth-1", "chunked", "preempted", "chunked-and-preempted"],
)
def test_batch_invariant_tokens_are_the_same_bits_in_every_surrounding(
    undisturbed: tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]], changes: dict[str, Any]
) -> None:
    dtype, greedy, sampled = undisturbed

    async def body(engine: AsyncEngine) -> None:
        assert await answers(engine) == greedy
        assert await answers(engine) == greedy, "the second time through the prefix cache"
        assert await answers(engine, params=SAMPLED) == sampled

    live(config(batch_invariant=True, dtype=dtype, **changes), body)


def test_preemption_really_happens_on_the_small_pool() -> None:
    """What the surrounding "preempted" above rests on."""

    async def body(engine: AsyncEngine) -> int:
        await answers(engine)
        return sum(entry.get("event") == "preempt" for entry in engine._core.trace.entries)

    assert live(config(num_kv_blocks=12), body) > 0


@pytest.mark.parametrize(
    "changes", [{}, {"overlap": False}, {"max_num_batched_tokens": 9, "max_num_seqs": 4}, {"num_kv_blocks": 12}], ids=str
)
def test_the_fast_path_gives_the_same_greedy_tokens_in_float32(
    undisturbed: tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]], changes: dict[str, Any]
) -> None:
    dtype, greedy, _ = undisturbed
    if dtype == "bfloat16":
        return  # without batch_invariant, bfloat16 promises no equality

    async def body(engine: AsyncEngine) -> None:
        assert await answers(engine) == greedy

    live(config(**changes), body)


class Stall:
    """Holds chosen steps of a real device until they are let go."""

    def __init__(self, *steps: int) -> None:
        self.gates = {step: threading.Event() for step in steps}
        self.reached = {step: threading.Event() for step in steps}

    def __call__(self, step: int) -> None:
        if step in self.gates:
            self.reached[step].set()
            assert self.gates[step].wait(60)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110  the core has its own thread; there is nothing here to wait on
            await asyncio.sleep(0.001)


def test_both_slots_stalled_an_abort_of_the_request_only_the_second_names_waits_for_the_second() -> None:
    """On real threads: the client is answered at once, the blocks come home when the newer step has retired, not before."""
    stall = Stall(1, 2)

    async def body(engine: AsyncEngine) -> None:
        long = asyncio.create_task(ask(engine, QUESTIONS[0] * 3, request_id="older"))
        await until(lambda: engine.status().steps_in_flight == 2)
        late = asyncio.create_task(ask(engine, QUESTIONS[2], request_id="newer"))
        stall.gates[1].set()
        await until(lambda: stall.reached[2].is_set() and engine.status().steps_in_flight == 2)
        result = await engine.abort("older")
        assert result.aborted == ("older",)
        outputs = await long
        assert outputs[-1].finish_reason == "abort"
        status = engine.status()
        assert status.requests.get("draining") == 1
        assert status.blocks.fenced > 0
        assert not late.done()
        stall.gates[2].set()
        assert (await late)[-1].finish_reason == "length"
        await until(lambda: engine.status().blocks.fenced == 0)

    live(config(max_num_batched_tokens=16), body, stall)


def test_clients_that_vanish_and_aborts_at_random_leave_nothing_and_disturb_nobody() -> None:
    async def body(engine: AsyncEngine) -> None:
        truth = await one_by_one(engine)
        rng = np.random.default_rng(3)

        async def client(number: int) -> None:
            question = number % len(QUESTIONS)
            patience = int(rng.integers(1, 12)) if number % 3 == 0 else 1000
            seen: tuple[int, ...] = ()
            stream = engine.chat([{"role": "user", "content": QUESTIONS[question]}], GREEDY, request_id=f"c{number}")
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    assert truth[question][: len(output.token_ids)] == output.token_ids
                    assert output.token_ids[: len(seen)] == seen
                    seen = output.token_ids
                    patience -= 1
                    if number % 5 == 1 and len(seen) > 6:
                        await engine.abort(f"c{number}")
                    if patience == 0:
                        break
            if number % 3 and number % 5 != 1:
                assert seen == truth[question]

        for _ in range(2):
            await asyncio.gather(*(client(number) for number in range(40)))
            await until(lambda: not engine.request_ids() and engine.status().live == 0)

    live(config(num_kv_blocks=24), body)


def test_a_device_step_that_never_ends_fails_the_engine_and_shutdown_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.engine.device.worker.CLOSE_TIMEOUT_S", 0.05)
    stall = Stall(3)

    async def main() -> None:
        def make_device(config: EngineConfig, model: Model) -> CpuDevice:
            return CpuDevice(config, model.info, model.num_blocks, before_step=stall, progress=False)

        async with AsyncEngine(config(step_timeout_s=0.2), make_device=make_device) as engine:
            outputs = await ask(engine, QUESTIONS[0])
            assert outputs[-1].finish_reason == "error"
            assert "did not land" in (outputs[-1].error or "")
            with pytest.raises(errors.EngineDead):
                await ask(engine, QUESTIONS[0])
        assert engine.status().engine == "stopped"

    asyncio.run(main())
    stall.gates[3].set()
    for thread in threading.enumerate():
        if thread.name == "quiesce-cpu-device":
            thread.join()


def test_words_not_noise() -> None:
    async def body(engine: AsyncEngine) -> None:
        outputs = await ask(
            engine, "Where does a request go from draining on reap?", replace(GREEDY, ignore_eos=False, max_tokens=60)
        )
        assert "ended" in outputs[-1].text
        assert outputs[-1].finish_reason == "stop"
        assert "".join(dict.fromkeys(outputs[-1].text)), "text, decoded"

    live(config(dtype="auto"), body)


def test_an_engine_belongs_to_one_loop() -> None:
    engine = AsyncEngine(config())

    async def first() -> None:
        await engine.start()

    async def second() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            await anext(engine.generate([4, 5]))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    asyncio.run(second())
    loop.run_until_complete(engine.shutdown(timeout=0))
    loop.close()
