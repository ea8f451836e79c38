"""CPU decode against transformers' `generate`: same weights, same dtype, one thread, the same number of steps, in turns.

Ours is the whole engine: control plane in its thread, device in its thread, outputs delivered to clients. What is compared is the time
of one decode step, from the first token of the batch to its last.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.gate import Bench
from quiesce.engine.bench.peer_process import PeerError, PeerProcess
from quiesce.engine.bench.result import Figure, ratio
from quiesce.engine.config import EngineConfig
from quiesce.engine.sampling_params import SamplingParams

BOUNDS: Final[dict[tuple[str, int], tuple[float, float | None]]] = {
    ("float32", 1): (1.0, None), ("float32", 8): (1.0, None), ("float32", 32): (1.0, None),
    ("bfloat16", 1): (1.2, 1.5), ("bfloat16", 8): (1.4, 1.8), ("bfloat16", 32): (1.6, 2.2),
}  # fmt: skip
"""(dtype, requests) -> how many times faster: floor and aim."""
GATING_PERCENT: Final = 0.5
"""What the gate may take of a step."""
PROMPT_LEN: Final = 128
BLOCK_SIZE: Final = 128
"""The CPU's best (`reference/performance.md` §4.2)."""


def engine_config(folder: Path, dtype: str, max_num_seqs: int) -> EngineConfig:
    """One thread, like the peer; a pool that never runs short."""
    return EngineConfig(
        model=str(folder), dtype=dtype, num_threads=1, tokenizer_required=False, max_model_len=1024,  # type: ignore[arg-type]
        max_num_seqs=max_num_seqs, max_num_batched_tokens=2048, num_kv_blocks=max_num_seqs * 4 + 16, block_size=BLOCK_SIZE,
        enable_prefix_caching=False,
    )  # fmt: skip


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for _ in range(count)]


async def decode_s(engine: AsyncEngine, prompts: Sequence[Sequence[int]], output_len: int) -> tuple[float, float]:
    """Seconds, wall and processor, of one decode step of a batch: from the moment all have their first token to the last one's end.

    Where answers are so short that they come whole, from the asking.
    """
    params = SamplingParams(max_tokens=output_len, temperature=0, ignore_eos=True, output_kind="delta")
    begun, waiting = asyncio.Event(), len(prompts)
    marks = [(time.perf_counter(), time.process_time(), 0)]
    total = 0

    async def ask(prompt: Sequence[int]) -> None:
        nonlocal waiting, total
        first = True
        async for output in engine.generate(prompt, params):
            total += len(output.token_ids)
            if first and output.token_ids:
                first, waiting = False, waiting - 1
                if waiting == 0:
                    marks.append((time.perf_counter(), time.process_time(), total))
                    begun.set()

    await asyncio.gather(*(ask(prompt) for prompt in prompts))
    wall, cpu, before = marks[-1] if marks[-1][2] < total else marks[0]
    steps = (total - before) / len(prompts)
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


async def _pairs(
    peer: PeerProcess, folder: Path, dtype: str, batches: Sequence[int], rounds: int, output_len: int, prompt_len: int
) -> dict[int, list[tuple[float, float, float, float]]]:
    """For each batch size the rounds: our wall and processor seconds a step, then the peer's. The sides take turns."""
    found: dict[int, list[tuple[float, float, float, float]]] = {batch: [] for batch in batches}
    async with AsyncEngine(engine_config(folder, dtype, max(batches))) as engine:
        vocab_size = engine.model.info.vocab_size
        for number in range(-1, rounds):  # the first round warms both up
            for batch in batches:
                prompts = random_prompts(batch, prompt_len, vocab_size, number + 1)
                ours = await decode_s(engine, prompts, output_len)
                theirs = peer.ask("generate", prompts=prompts, output_len=output_len)
                if number >= 0:
                    found[batch].append((*ours, theirs["seconds"], theirs["cpu_seconds"]))
    return found


def measure(quick: bool, peer: PeerProcess, folder: Path) -> list[Figure]:
    """The row `decode`."""
    rounds, output_len, prompt_len = (1, 6, 16) if quick else (5, 48, PROMPT_LEN)
    figures: list[Figure] = []
    for dtype in dict.fromkeys(dtype for dtype, _ in BOUNDS):
        batches = [batch for kind, batch in BOUNDS if kind == dtype][: 2 if quick else None]
        try:
            peer.ask("load", dtype=dtype)
            pairs = asyncio.run(_pairs(peer, folder, dtype, batches, rounds, output_len, prompt_len))
        except PeerError as error:
            figures.append(Figure("decode", f"{dtype} / generate", "x", skipped=str(error)))
            continue
        gating_us, _ = Bench(stock=False).lives_us(20 if quick else 1000)
        for batch, taken in pairs.items():
            figures += _figures(dtype, batch, taken, gating_us)
    return figures


def _figures(dtype: str, batch: int, taken: Sequence[tuple[float, float, float, float]], gating_us: float) -> list[Figure]:
    ours, ours_cpu, theirs, theirs_cpu = zip(*taken, strict=True)
    floor, aim = BOUNDS[dtype, batch]
    named: dict[str, Any] = {"row": "decode"}
    return [
        ratio("decode", f"{dtype} batch {batch}: / transformers generate", ours, theirs, floor, aim),
        Figure(name="    the same in processor time", unit="x", samples=_quotients(theirs_cpu, ours_cpu), **named),
        Figure(name="    our step", unit="ms", samples=tuple(value * 1e3 for value in ours), **named),
        Figure(
            name="    its events in the gate",
            unit="%",
            samples=tuple(gating_us / 1e4 / value for value in ours),
            floor=GATING_PERCENT,
            **named,
        ),
        Figure(name="    their step", unit="ms", samples=tuple(value * 1e3 for value in theirs), **named),
    ]


def _quotients(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    return tuple(a / b for a, b in zip(above, below, strict=True))
