"""Sleep and wake: what leaves, how fast, what stays, and that answers are the same afterwards, bit for bit."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import torch

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.decode import random_prompts
from quiesce.engine.bench.gpu.ground import PINNED, Ground, Tell
from quiesce.engine.bench.result import Figure
from quiesce.engine.bench.roofline import Roofline
from quiesce.engine.bench.shapes import QWEN3_06B
from quiesce.engine.sampling_params import SamplingParams

GIVEN_BACK: Final = (0.95, 0.99)
WAKE: Final = (0.6, 0.9)
SLEEP_MS: Final = (100.0, 20.0)
RESIDUE_GB: Final = 0.6
NEIGHBOUR_BYTES: Final = 100 * 10**9
"""What somebody else takes while the engine sleeps."""
PROMPTS: Final = 8
LENGTH: Final = 24
PATIENCE: Final = 10_000
"""Milliseconds for all of them to arrive."""


def measure(ground: Ground, tell: Tell) -> None:
    """The block: the 0.6B shape, ten times."""
    asyncio.run(_measure(ground, tell))


async def _measure(ground: Ground, tell: Tell) -> None:
    if not ground.dry:
        torch.empty(1, device="cuda")  # an empty context takes memory, too
    ground.synchronize()
    empty_bytes = ground.free_bytes()
    config = ground.config(
        QWEN3_06B, max_model_len=2048, max_num_seqs=64, max_num_batched_tokens=8192, kv_cache_memory_bytes=60 * 10**9
    )
    async with ground.engine(config) as engine:
        await sleep_and_wake(ground, tell, engine, "memory", ground.size(10, 2), empty_bytes)


async def sleep_and_wake(ground: Ground, tell: Tell, engine: AsyncEngine, row: str, cycles: int, empty_bytes: int) -> None:
    """So many cycles of level 1. `empty_bytes`: free on the device before the engine was made."""
    info = engine.model.info
    roofline = Roofline(info, ground.machine, ground.dtype.itemsize)
    weight_bytes = roofline.weight_bytes
    if not info.tie_word_embeddings:
        weight_bytes += info.vocab_size * info.hidden_size * ground.dtype.itemsize
    kv_bytes = engine.model.num_blocks * engine.config.block_size * roofline.kv_bytes_per_token
    await _answers(engine)  # compiles
    await engine.reset_prefix_cache()
    before, _ = await _answers(engine)
    num_captured = ground.devices[-1].passes["captured"]
    sleeps, wakes, backs, residues, same, firsts = [], [], [], [], [], []
    for cycle in range(cycles):
        if cycle >= 2 and ground.left_s < 10:
            break
        awake_bytes = ground.free_bytes()
        slept = await engine.sleep(level=1)
        asleep_bytes = ground.free_bytes()
        sleeps.append(slept.duration_s * 1e3)
        backs.append((asleep_bytes - awake_bytes) / (weight_bytes + kv_bytes))
        residues.append((empty_bytes - asleep_bytes) / 1e9)
        if cycle == 0:
            tell(Figure(row, "somebody else takes 100 GB meanwhile", "yes", (_neighbour(ground),), 1.0, at_most=False))
        began_s = time.perf_counter()
        await engine.wake_up()
        wakes.append(weight_bytes / (time.perf_counter() - began_s) / 1e9)
        after, first_s = await _answers(engine)
        firsts.append(first_s * 1e3)
        same.append(float(after == before))
    ceiling = ground.ceilings[PINNED]
    tell(Figure(row, "sleep, weights offloaded, KV discarded", "ms", tuple(sleeps), *SLEEP_MS))
    tell(Figure(row, "memory given back / arenas", "x", tuple(backs), *GIVEN_BACK, at_most=False))
    tell(Figure(row, "still taken while asleep, above an empty context", "GB", tuple(residues), RESIDUE_GB))
    tell(Figure(row, "wake: weights", "GB/s", tuple(wakes), at_most=False))
    tell(Figure(row, "    / pinned copy", "x", tuple(rate / ceiling for rate in wakes), *WAKE, at_most=False))
    tell(Figure(row, f"first tokens of {PROMPTS} prompts after a wake", "ms", tuple(firsts)))
    tell(Figure(row, "answers equal to those before, each cycle", "x", (min(same),), 1.0, at_most=False))
    num_anew = ground.devices[-1].passes["captured"] - num_captured
    tell(Figure(row, "graphs captured anew after a wake", "", (float(num_anew),), 0.0))


async def _answers(engine: AsyncEngine) -> tuple[list[list[int]], float]:
    """Greedy answers to the same prompts, and the seconds until all have their first token.

    They wait behind a pause until all are there: so they share their steps, the same ones each time.
    """
    longest = engine.model.max_model_len - LENGTH
    prompts = random_prompts(PROMPTS, min(200, longest), engine.model.info.vocab_size, 3)
    params = SamplingParams(max_tokens=LENGTH, temperature=0, ignore_eos=True, output_kind="delta")
    firsts = []

    async def ask(prompt: list[int]) -> list[int]:
        found: list[int] = []
        async for output in engine.generate(prompt, params):
            if output.error is not None:
                raise RuntimeError(output.error)
            if not found:
                firsts.append(time.perf_counter())
            found += output.token_ids
        return found

    await engine.pause("keep")
    tasks = [asyncio.create_task(ask(prompt)) for prompt in prompts]
    for _ in range(PATIENCE):
        if engine.status().requests.get("received", 0) == PROMPTS:
            break
        await asyncio.sleep(0.001)
    began_s = time.perf_counter()
    await engine.resume()
    found = list(await asyncio.gather(*tasks))
    return found, max(firsts) - began_s


def _neighbour(ground: Ground) -> float:
    """1 if so much memory can be had while the engine sleeps, in the same process by another allocator; 0 if not."""
    if ground.dry:
        driver = ground.host_driver
        driver.release(driver.create(driver.free_bytes() * 9 // 10 // driver.granularity * driver.granularity))
        return 1.0
    try:
        taken = torch.empty(NEIGHBOUR_BYTES, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return 0.0
    del taken
    torch.cuda.empty_cache()
    return 1.0
