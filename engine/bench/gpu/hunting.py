"""A crowd that comes and goes through pauses and sleeps, then the fuzzer on the CUDA device: nothing may be left, nothing found."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from pathlib import Path
from typing import Final

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.decode import random_prompts
from quiesce.engine.bench.gpu.ground import Ground, Tell
from quiesce.engine.bench.result import Figure
from quiesce.engine.bench.shapes import QWEN3_06B
from quiesce.engine.errors import EngineError
from quiesce.engine.sampling_params import SamplingParams

ROW = "fuzz"
HUNT_S: Final = 30.0
CLIENTS: Final = 400
SLACK_BYTES: Final = 2 << 20
"""What the driver may keep for itself between two looks."""


def measure(ground: Ground, tell: Tell) -> None:
    """The block."""
    try:
        asyncio.run(_crowd(ground, tell))
    finally:
        _hunt(ground, tell)  # last: its kernels are those of float32, and compiled first


def _hunt(ground: Ground, tell: Tell) -> None:
    from quiesce.stateful.driver import ledger_checkpoint
    from quiesce.stateful.fuzz.hunt import Hunt

    with tempfile.TemporaryDirectory() as folder:
        hunt = Hunt(ledger_checkpoint(Path(folder)), out=Path("build/fuzz/gpu"), device="cuda", follow_every=0)
        report = hunt.for_seeds(0, 2) if ground.dry else hunt.for_seconds(min(HUNT_S, ground.left_s))
    tell(Figure(ROW, "fuzzed runs", "runs", (float(report.num_runs),), at_most=False))
    tell(Figure(ROW, "    operations", "1/s", (report.coverage.num_actions / max(report.seconds, 1e-9),), at_most=False))
    tell(Figure(ROW, "    kinds of failure", "", (float(len(report.findings)),), 0.0))
    for finding in report.findings:
        tell(Figure(ROW, f"    seed {finding.seed}, written to {finding.path}", "", skipped="found"))


async def _crowd(ground: Ground, tell: Tell) -> None:
    """Clients that leave when they like, between pauses and sleeps; then the books."""
    config = ground.config(
        QWEN3_06B, max_model_len=1024, max_num_seqs=64, max_num_batched_tokens=4096, kv_cache_memory_bytes=8 * 10**9
    )
    rng = random.Random(0)
    async with ground.engine(config) as engine:
        await _wave(engine, rng, 4, ground)
        await engine.sleep()
        await engine.wake_up()
        files, free = len(os.listdir("/proc/self/fd")), ground.free_bytes()
        for _ in range(4):
            wave = asyncio.create_task(_wave(engine, rng, ground.size(CLIENTS // 4, 3), ground))
            await asyncio.sleep(ground.size(200, 5) / 1e3)
            await engine.pause("keep")
            await engine.resume()
            await engine.sleep(tags={"kv_cache": "offload"}, mode="keep")
            await engine.wake_up()
            await wave
        await engine.sleep()
        await engine.wake_up()
        status = engine.status()
        left = {
            "requests": sum(status.requests.values()),
            "streams": status.streams,
            "steps in flight": status.steps_in_flight,
            "blocks held or fenced": status.blocks.held + status.blocks.fenced,
            "file descriptors": len(os.listdir("/proc/self/fd")) - files,
            "device memory beyond 2 MiB": int(abs(ground.free_bytes() - free) > SLACK_BYTES),
        }
        tell(Figure(ROW, f"requests of the crowd, {status.finished.get('abort', 0)} of them left", "", (float(status.accepted),), at_most=False))  # fmt: skip
        for name, count in left.items():
            tell(Figure(ROW, f"    left over: {name}", "", (float(count),), 0.0))


async def _wave(engine: AsyncEngine, rng: random.Random, count: int, ground: Ground) -> None:
    """Clients that read a while; a third of them leave early."""

    async def ask(prompt: list[int], leaves_after: int | None) -> None:
        params = SamplingParams(max_tokens=ground.size(64, 6), temperature=1.0, ignore_eos=True, output_kind="delta")
        seen, stream = 0, engine.generate(prompt, params)
        try:
            async for output in stream:
                seen += len(output.token_ids)
                if leaves_after is not None and seen >= leaves_after:
                    break
        except EngineError:
            return  # refused while the engine sleeps
        finally:
            await stream.aclose()

    prompts = random_prompts(count, ground.size(100, 8), engine.model.info.vocab_size, rng.randrange(1000))
    leaving = [rng.randrange(ground.size(32, 3)) if rng.random() < 1 / 3 else None for _ in prompts]
    await asyncio.gather(*map(ask, prompts, leaving))
