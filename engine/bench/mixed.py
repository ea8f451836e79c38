"""Mixed lengths with arrivals against transformers' continuous batching, which is what `generate_batch` runs: same requests, same arrivals,
same weights and dtype, one thread, in turns. Neither side's start-up is counted, and the peer's manager is stopped while ours computes.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.decode import engine_config
from quiesce.engine.bench.peer_process import PeerError, PeerProcess, missing
from quiesce.engine.bench.result import Figure
from quiesce.engine.sampling_params import SamplingParams

FLOOR: Final = 3.0
AIM: Final = 6.0
MAX_NUM_SEQS: Final = 32
ARRIVAL_S: Final = 0.01
"""Mean time between arrivals."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Who asks what and when."""

    prompts: list[list[int]]
    output_lens: list[int]
    due_s: list[float]

    @staticmethod
    def of(count: int, longest: int, longest_output: int, vocab_size: int, seed: int) -> Requests:
        """Lengths are even between an eighth of the longest and the longest; arrivals are a Poisson process."""
        rng, at, due = random.Random(seed), 0.0, []
        prompts = [[rng.randrange(3, vocab_size) for _ in range(_length(rng, longest))] for _ in range(count)]
        for _ in prompts:
            due.append(at)
            at += rng.expovariate(1 / ARRIVAL_S)
        return Requests(prompts, [_length(rng, longest_output) for _ in prompts], due)


def _length(rng: random.Random, longest: int) -> int:
    return rng.randint(max(longest // 8, 2), longest)


async def _serve(engine: AsyncEngine, asked: Requests) -> float:
    """Seconds from the first arrival to the last answer's end."""

    async def ask(prompt: list[int], output_len: int, when: float) -> None:
        await asyncio.sleep(max(began + when - time.perf_counter(), 0))
        params = SamplingParams(max_tokens=output_len, temperature=0, ignore_eos=True, output_kind="final")
        async for output in engine.generate(prompt, params):
            if output.error is not None or len(output.token_ids) != output_len:
                raise RuntimeError(f"asked for {output_len} tokens, got {len(output.token_ids)}: {output.error}")

    began = time.perf_counter()
    await asyncio.gather(*map(ask, asked.prompts, asked.output_lens, asked.due_s))
    return time.perf_counter() - began


async def _pairs(
    peer: PeerProcess, folder: Path, dtype: str, rounds: int, sizes: tuple[int, int, int]
) -> list[tuple[float, float]]:
    """Tokens a second, ours and theirs, for each round."""
    found = []
    async with AsyncEngine(engine_config(folder, dtype, MAX_NUM_SEQS)) as engine:
        for number in range(-1, rounds):  # the first round warms both up
            asked = Requests.of(*sizes, engine.model.info.vocab_size, number + 1)
            seconds, num_tokens = await _serve(engine, asked), sum(asked.output_lens)
            theirs = peer.ask(
                "serve", prompts=asked.prompts, output_lens=asked.output_lens, due=asked.due_s, max_num_seqs=MAX_NUM_SEQS
            )
            if theirs["num_tokens"] != num_tokens:
                raise PeerError(f"the peer gave {theirs['num_tokens']} tokens instead of {num_tokens}")
            if number >= 0:
                found.append((num_tokens / seconds, theirs["num_tokens"] / theirs["seconds"]))
    return found


def measure(quick: bool, peer: PeerProcess, folder: Path) -> list[Figure]:
    """The row `mixed`, in bfloat16; skipped, with the reason, where the peer cannot run."""
    name, dtype = "bfloat16: tokens/s / transformers continuous batching", "bfloat16"
    reason = missing("psutil")
    rounds, sizes = (1, (3, 24, 4)) if quick else (3, (48, 256, 96))
    if not reason:
        try:
            peer.ask("load", dtype=dtype)
            pairs = asyncio.run(_pairs(peer, folder, dtype, rounds, sizes))
        except PeerError as error:
            reason = str(error)
    if reason:
        return [Figure("mixed", name, "x", floor=FLOOR, aim=AIM, at_most=False, skipped=reason)]
    return [
        Figure("mixed", name, "x", tuple(ours / theirs for ours, theirs in pairs), FLOOR, AIM, at_most=False),
        Figure("mixed", "    ours", "tok/s", tuple(ours for ours, _ in pairs), at_most=False),
        Figure("mixed", "    theirs", "tok/s", tuple(theirs for _, theirs in pairs), at_most=False),
    ]
