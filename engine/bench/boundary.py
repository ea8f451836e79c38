"""What it costs to have the core in a process of its own: the same load on the shipped model, both ways, in turns.

Both engines are there all the time; the one whose turn it is not does nothing. Thirty-two clients, each with one answer at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Literal

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.result import Figure
from quiesce.engine.bench.serving import Load, run_load
from quiesce.engine.config import EngineConfig

ROW: Final = "boundary"
CLIENTS: Final = 32
FLOOR: Final = 0.85
WAYS: Final[tuple[Literal["thread", "process"], ...]] = ("thread", "process")


def measure(quick: bool) -> Iterator[Figure]:
    """The figures of this row."""
    load = Load(num_prompts=2 * CLIENTS, input_len=64, output_len=64, concurrency=CLIENTS, num_threads=1)
    if quick:
        load = replace(load, num_prompts=4, input_len=8, output_len=4)
    rates = asyncio.run(_measure(load, 1 if quick else 7))
    ratios = tuple(process / thread for thread, process in zip(*(rates[way] for way in WAYS), strict=True))
    yield Figure(ROW, f"core in a process / in a thread, batch {CLIENTS}", "x", ratios, FLOOR, at_most=False)
    for way in WAYS:
        yield Figure(ROW, f"    core in a {way}", "tok/s", tuple(rates[way]), at_most=False)


async def _measure(load: Load, rounds: int) -> dict[str, list[float]]:
    """Tokens a second, for each way and round. The first round warms up."""
    configs = [EngineConfig(num_threads=1, max_num_seqs=CLIENTS, backend=way) for way in WAYS]
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    async with AsyncEngine(configs[0]) as thread, AsyncEngine(configs[1]) as process:
        both = list(zip(WAYS, (thread, process), strict=True))
        for number in range(-1, rounds):
            for way, engine in both if number % 2 else reversed(both):
                seconds, seen = await run_load(engine, replace(load, seed=number + 1))
                failed = [one.error for one in seen if one.error]
                if failed:
                    raise RuntimeError(f"core in a {way}: {failed[0]}")
                if number >= 0:
                    rates[way].append(sum(one.num_tokens for one in seen) / seconds)
    return rates
