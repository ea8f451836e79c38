"""The whole engine over random weights: throughput with and without its tricks, steps against the roofline, latency."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import Any, Final

import torch

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.decode import decode_s, random_prompts
from quiesce.engine.bench.gpu.ground import Ground, Tell
from quiesce.engine.bench.gpu.memory import sleep_and_wake
from quiesce.engine.bench.result import Figure
from quiesce.engine.bench.roofline import Roofline, Workload
from quiesce.engine.bench.serving import Load, document, run_load
from quiesce.engine.bench.shapes import QWEN3_06B, QWEN3_8B
from quiesce.engine.sampling_params import SamplingParams

VARIANTS: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "graphs and overlap": ({}, 3),
    "without overlap": ({"overlap": False}, 1),
    "without graphs": ({"enforce_eager": True}, 1),
}
"""What the engine is told, and how often it runs."""
BATCHES: Final = {1: (0.20, 0.35), 32: (0.60, 0.80), 256: (0.60, 0.85)}
"""Rows of a step -> roofline / step: floor and aim."""
CONTEXT: Final = 1024
"""Tokens that a row of a measured step sees, in the mean."""
STEPS: Final = 128
GB: Final = 10**9


def throughput(ground: Ground, tell: Tell) -> None:
    """The block `throughput`: nano-vllm's workload, and steps of the 0.6B shape."""
    workload = Workload.nano_vllm() if not ground.dry else Workload.nano_vllm(4, 4, 12, 500)
    for name, (changes, runs) in VARIANTS.items():
        if ground.out_of_time(tell, "throughput", name, 25):
            return
        asyncio.run(_variant(ground, tell, workload, name, changes, runs))
        _collect(ground)


async def _variant(ground: Ground, tell: Tell, workload: Workload, name: str, changes: dict[str, Any], runs: int) -> None:
    config = ground.config(
        QWEN3_06B, max_model_len=4096, max_num_seqs=256, max_num_batched_tokens=16_384, kv_cache_memory_bytes=36 * GB,
        enable_prefix_caching=False, **changes,
    )  # fmt: skip
    row, found, num_tokens = "throughput", list[float](), sum(workload.output_lens)
    began_s = time.perf_counter()
    async with ground.engine(config) as engine:
        tell(Figure(row, f"start, {name}", "s", (time.perf_counter() - began_s,)))
        roofline = Roofline(engine.model.info, ground.machine, ground.dtype.itemsize)
        await run_workload(engine, Workload(workload.prompts[:8], (8,) * len(workload.prompts[:8])))  # compiles
        for _ in range(1 if ground.dry else runs):
            if found and ground.left_s < 3 * num_tokens / found[-1]:
                break
            found.append(num_tokens / await run_workload(engine, workload))
        tell(Figure(row, f"256 requests of 100-1024 tokens, {name}", "tok/s", tuple(found), at_most=False))
        best = num_tokens / roofline.workload_s(workload)
        plain = not changes
        tell(Figure(row, f"    / roofline of {best:,.0f} tok/s", "x", tuple(rate / best for rate in found),
                    0.5 if plain else None, 0.75 if plain else None, at_most=False))  # fmt: skip
        tell_passes(ground, tell, row)
        if plain:
            await step_ratios(ground, tell, engine, roofline, row)


async def run_workload(engine: AsyncEngine, workload: Workload) -> float:
    """Seconds until every request has all its tokens.

    Raises:
        RuntimeError: one has not.
    """

    async def ask(prompt: Sequence[int], output_len: int) -> None:
        params = SamplingParams(max_tokens=output_len, temperature=0.6, ignore_eos=True, output_kind="final")
        async for output in engine.generate(list(prompt), params):
            if output.error is not None or len(output.token_ids) != output_len:
                raise RuntimeError(f"asked for {output_len} tokens, got {len(output.token_ids)}: {output.error}")

    began_s = time.perf_counter()
    await asyncio.gather(*map(ask, workload.prompts, workload.output_lens))
    return time.perf_counter() - began_s


async def step_ratios(ground: Ground, tell: Tell, engine: AsyncEngine, roofline: Roofline, row: str) -> None:
    """Time of a decode step at each batch size, against the least time over contexts of that length."""
    steps = ground.size(STEPS, 4)
    for real, (floor, aim) in BATCHES.items():
        batch, length = min(real, engine.config.max_num_seqs), ground.size(CONTEXT - STEPS // 2, 10)
        if ground.out_of_time(tell, row, f"decode step, batch {batch}", 10):
            return
        least_s = roofline.decode_s([length + steps // 2] * batch)
        taken = []
        for number in range(ground.size(4, 2)):
            prompts = random_prompts(batch, length, engine.model.info.vocab_size, number)
            wall_s, _ = await decode_s(engine, prompts, steps)
            if number:  # the first one warms up
                taken.append(wall_s)
        tell(Figure(row, f"decode step, batch {batch}", "ms", tuple(s * 1e3 for s in taken)))
        tell(Figure(row, f"    roofline of {least_s * 1e3:.3f} ms / step", "x", tuple(least_s / s for s in taken),
                    floor, aim, at_most=False))  # fmt: skip


def tell_passes(ground: Ground, tell: Tell, row: str) -> None:
    """How the device did its passes: one that had no graph is slow, and must be seen."""
    counts = ground.devices[-1].passes
    tell(Figure(row, "    decode steps that wanted a graph and had none", "steps", (float(counts["eager for want of a graph"]),), 0.0))  # fmt: skip


def latency(ground: Ground, tell: Tell) -> None:
    """The block `latency`: time to the first token and between tokens, with so many clients at a time."""
    asyncio.run(_latency(ground, tell))


async def _latency(ground: Ground, tell: Tell) -> None:
    config = ground.config(
        QWEN3_06B, max_model_len=2048, max_num_seqs=256, max_num_batched_tokens=8192, kv_cache_memory_bytes=24 * GB
    )
    async with ground.engine(config) as engine:
        for clients in (1, 32, 256):
            if ground.out_of_time(tell, "latency", f"{clients} at a time", 8):
                return
            load = Load(
                num_prompts=ground.size(max(2 * clients, 16), 3), input_len=ground.size(512, 8), output_len=ground.size(128, 4),
                concurrency=clients, seed=clients,
            )  # fmt: skip
            seconds, seen = await run_load(engine, load)
            found = document(load, seconds, seen)
            for kind, name in (("ttft", "time to first token"), ("itl", "between tokens")):
                for percent in (50, 99):
                    tell(Figure("latency", f"{clients} at a time, {name}, P{percent}", "ms", (found[f"p{percent}_{kind}_ms"],)))
            tell(Figure("latency", f"{clients} at a time", "tok/s", (found["output_throughput"],), at_most=False))


def large(ground: Ground, tell: Tell) -> None:
    """The block `large`: steps of the 8B shape, then its sleep and wake."""
    asyncio.run(_large(ground, tell))


async def _large(ground: Ground, tell: Tell) -> None:
    ground.synchronize()
    empty_bytes = ground.free_bytes()
    config = ground.config(
        QWEN3_8B, max_model_len=2048, max_num_seqs=256, max_num_batched_tokens=16_384, kv_cache_memory_bytes=48 * GB,
        enable_prefix_caching=False,
    )  # fmt: skip
    began_s = time.perf_counter()
    async with ground.engine(config) as engine:
        tell(Figure("large", "start", "s", (time.perf_counter() - began_s,)))
        roofline = Roofline(engine.model.info, ground.machine, ground.dtype.itemsize)
        await step_ratios(ground, tell, engine, roofline, "large")
        tell_passes(ground, tell, "large")
        await sleep_and_wake(ground, tell, engine, "large", 5, empty_bytes)


def _collect(ground: Ground) -> None:
    """Gives back what an engine that is over has left."""
    ground.devices.clear()
    gc.collect()
    if not ground.dry:
        torch.cuda.empty_cache()
