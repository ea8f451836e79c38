"""A whole engine on the CUDA device over a dry platform, with its real threads: the tokens of the CPU's, whatever happens around them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.device.cuda import CudaDevice
from quiesce.engine.device.dry_platform import DryPlatform, LazyPlatform
from quiesce.engine.messages import Device
from quiesce.engine.model import Model
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder
from quiesce.stateful.driver import assert_nothing_left

PROMPTS = [[5 + n, 60, 7 * n % 250 + 3, *range(10, 10 + 5 * n)] for n in range(8)]
KINDS = [
    SamplingParams(max_tokens=14, temperature=0, ignore_eos=True),
    SamplingParams(max_tokens=9, temperature=0.9, top_k=40, top_p=0.95, seed=5, ignore_eos=True),
    SamplingParams(max_tokens=11, temperature=1.1, seed=6, repetition_penalty=1.2, logprobs=2, ignore_eos=True),
]


def config(**changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "model": str(checkpoint_folder("small")), "num_threads": 1, "dtype": "float32", "max_model_len": 160,
        "num_kv_blocks": 64, "max_num_seqs": 6, "max_num_batched_tokens": 48, "poison_freed_blocks": True,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))


def live(config: EngineConfig, kind: str, body: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
    platforms: list[DryPlatform] = []

    def make_device(config: EngineConfig, model: Model) -> Device:
        if kind == "cpu":
            return CpuDevice(config, model.info, model.num_blocks, progress=False)
        platforms.append(LazyPlatform() if kind == "late cuda" else DryPlatform())
        return CudaDevice(config, model.info, model.num_blocks, lambda: platforms[0], progress=False)

    async def main() -> Any:
        engine = AsyncEngine(config, make_device=make_device)
        async with engine:
            found = await body(engine)
        assert_nothing_left(engine)
        return found

    before = set(threading.enumerate())
    found = asyncio.run(main())
    assert set(threading.enumerate()) <= before
    for platform in platforms:
        driver = platform.driver
        assert (driver.handles, driver.mapped, driver.pinned) == ({}, {}, set())
    return found


async def ask(engine: AsyncEngine, number: int) -> tuple[int, ...]:
    prompt: Sequence[int] = PROMPTS[number]
    tokens: tuple[int, ...] = ()
    async for output in engine.generate(list(prompt), KINDS[number % len(KINDS)]):
        tokens = output.token_ids
    return tokens


async def everybody(engine: AsyncEngine) -> list[tuple[int, ...]]:
    return list(await asyncio.gather(*(ask(engine, number) for number in range(len(PROMPTS)))))


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    """One by one on a quiet CPU device."""

    async def body(engine: AsyncEngine) -> list[tuple[int, ...]]:
        return [await ask(engine, number) for number in range(len(PROMPTS))]

    found: list[tuple[int, ...]] = live(config(batch_invariant=True), "cpu", body)
    assert [len(tokens) for tokens in found] == [KINDS[number % 3].max_tokens for number in range(8)]
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"overlap": False}, {"enforce_eager": True}, {"batch_invariant": True}, {"num_kv_blocks": 11}],
    ids=["graphs", "depth-1", "eager", "invariant", "preempted"],
)
def test_tokens_are_those_of_the_cpu_device(expected: list[tuple[int, ...]], changes: dict[str, Any]) -> None:
    assert live(config(**changes), "cuda", everybody) == expected


@pytest.mark.parametrize("changes", [{}, {"batch_invariant": True, "num_kv_blocks": 13}], ids=["graphs", "invariant"])
def test_a_device_that_is_late_with_everything_changes_no_token(
    expected: list[tuple[int, ...]], changes: dict[str, Any]
) -> None:
    assert live(config(**changes), "late cuda", everybody) == expected


def test_sleep_and_wake_in_the_middle_change_no_token(expected: list[tuple[int, ...]]) -> None:
    async def body(engine: AsyncEngine) -> list[tuple[int, ...]]:
        asked = asyncio.gather(*(ask(engine, number) for number in range(len(PROMPTS))))
        for policy in ("offload", "discard"):
            await asyncio.sleep(0)
            slept = await engine.sleep(tags={"weights": "offload", "kv_cache": policy}, mode="keep")
            assert slept.freed_bytes > 1 << 20
            await engine.wake_up()
        return list(await asked)

    for kind in ("cuda", "late cuda"):
        assert live(config(), kind, body) == expected
