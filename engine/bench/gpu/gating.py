"""What the gate costs a step on the device: its share of the time, and the same batch with every event decided twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.decode import decode_s, random_prompts
from quiesce.engine.bench.gpu.ground import Ground, Tell
from quiesce.engine.bench.gpu.serving import GB
from quiesce.engine.bench.result import Figure
from quiesce.engine.bench.shapes import QWEN3_06B
from quiesce.engine.core import Core
from quiesce.engine.link.thread import ThreadLink
from quiesce.statemachine.gate import Outcome
from quiesce.statemachine.machine import NO_DATA
from quiesce.statemachine.records import Record

ROW = "gating"
BOUNDS: Final = {1: None, 32: 0.5, 256: 0.5}
"""Rows of a step -> per cent of the step that gating may take."""
BLOCKS = 5


class Meter:
    """Hung into a gate: counts its time, or has it decide everything twice."""

    def __init__(self) -> None:
        self.mode = "as it is"
        self.spent_ns = 0

    def link(self, core: Core, call_in_loop: Callable[..., object]) -> ThreadLink:
        """What an engine takes as `make_link`."""
        fire, may = core.gate.fire, core.gate.may

        def metered(record: Record, event: str, data: Any = NO_DATA) -> Outcome:
            if self.mode == "timed":
                began = time.perf_counter_ns()
                outcome = fire(record, event, data)
                self.spent_ns += time.perf_counter_ns() - began
                return outcome
            if self.mode == "twice":
                may(record, event, data)
            return fire(record, event, data)

        core.gate.fire = metered  # type: ignore[method-assign]
        return ThreadLink(core, call_in_loop)


def measure(ground: Ground, tell: Tell) -> None:
    """The block."""
    asyncio.run(_measure(ground, tell))


async def _measure(ground: Ground, tell: Tell) -> None:
    config = ground.config(
        QWEN3_06B, max_model_len=2048, max_num_seqs=256, max_num_batched_tokens=16_384, kv_cache_memory_bytes=24 * GB,
        enable_prefix_caching=False,
    )  # fmt: skip
    meter = Meter()
    async with ground.engine(config, make_link=meter.link) as engine:
        for rows, bound in BOUNDS.items():
            if not ground.out_of_time(tell, ROW, f"batch {rows}", 6):
                await _share(ground, tell, engine, meter, min(rows, engine.config.max_num_seqs), bound)
        if not ground.out_of_time(tell, ROW, "decided twice", 8):
            await _twice(ground, tell, engine, meter)


async def _share(ground: Ground, tell: Tell, engine: AsyncEngine, meter: Meter, rows: int, bound: float | None) -> None:
    """The clock around each event counts as the gate's, so this is an upper bound."""
    steps, shares = ground.size(128, 4), []
    for number in range(ground.size(4, 2)):
        prompts = random_prompts(rows, ground.size(256, 8), engine.model.info.vocab_size, number)
        meter.mode, meter.spent_ns = "timed", 0
        began = time.perf_counter_ns()
        await decode_s(engine, prompts, steps)
        if number:  # the first one warms up
            shares.append(100 * meter.spent_ns / (time.perf_counter_ns() - began))
    meter.mode = "as it is"
    tell(Figure(ROW, f"the gate's part of the time, batch {rows}", "%", tuple(shares), bound))


async def _twice(ground: Ground, tell: Tell, engine: AsyncEngine, meter: Meter) -> None:
    """In turns, so that a slow moment strikes both."""
    rows, ratios = min(256, engine.config.max_num_seqs), []
    for number in range(ground.size(BLOCKS, 1)):
        prompts = random_prompts(rows, ground.size(128, 8), engine.model.info.vocab_size, 100 + number)
        seconds = {}
        for meter.mode in ("as it is", "twice") if number % 2 else ("twice", "as it is"):
            seconds[meter.mode], _ = await decode_s(engine, prompts, ground.size(128, 4))
        ratios.append(seconds["twice"] / seconds["as it is"])
    meter.mode = "as it is"
    tell(Figure(ROW, f"step with every event decided twice / once, batch {rows}", "x", tuple(ratios)))
