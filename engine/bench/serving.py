"""`quiesce bench`: throughput, time to first token and inter-token latency of one model under a load of random prompts.

The clients are coroutines of this process, so the figures are the engine's own: no HTTP, no network. Prompts are random token ids from
the seed, with `ignore_eos`, so that every run does the same work.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.profile import Profiler
from quiesce.engine.bench.result import VERSION, machine_facts, percentile
from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import EngineError
from quiesce.engine.link.thread import ThreadLink
from quiesce.engine.sampling_params import SamplingParams

PERCENTILES: Final = (50, 90, 99)
AT_ONCE: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the model."""

    model: str = "tiny"
    num_prompts: int = 64
    input_len: int = 128
    """Tokens of each prompt."""
    output_len: int = 64
    """Tokens of each answer."""
    request_rate: float = AT_ONCE
    """Requests a second, as a Poisson process; infinite: all at once."""
    concurrency: int | None = None
    """Requests that wait for an answer at the same time, at most; None: no bound of the clients' own."""
    seed: int = 0
    num_threads: int | None = None
    dtype: str = "auto"


@dataclass(slots=True)
class Seen:
    """What one client saw, seconds since its call."""

    asked_s: float
    first_s: float | None = None
    last_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    """Between outputs, one for each token after the first; tokens that come together share a gap."""
    num_tokens: int = 0
    error: str = ""

    def note(self, now_s: float, count: int) -> None:
        """`count` tokens came."""
        if self.first_s is None or self.last_s is None:
            self.first_s = now_s
            self.gaps_s += [0.0] * (count - 1)
        else:
            self.gaps_s += [(now_s - self.last_s) / count] * count
        self.num_tokens += count
        self.last_s = now_s


def prompts(load: Load, vocab_size: int) -> list[list[int]]:
    """Random token ids; the first few of a vocabulary are left out, special tokens are often there."""
    rng = random.Random(load.seed)
    low = min(3, vocab_size - 1)
    return [[rng.randrange(low, vocab_size) for _ in range(load.input_len)] for _ in range(load.num_prompts)]


def arrivals(load: Load) -> list[float]:
    """When each client calls, seconds from the start."""
    rng, at, found = random.Random(load.seed + 1), 0.0, []
    for _ in range(load.num_prompts):
        found.append(at)
        if load.request_rate != AT_ONCE:
            at += rng.expovariate(load.request_rate)
    return found


async def _client(engine: AsyncEngine, prompt: Sequence[int], params: SamplingParams, name: str) -> Seen:
    seen = Seen(time.perf_counter())
    try:
        async for output in engine.generate(prompt, params, request_id=name):
            now_s = time.perf_counter()
            if output.token_ids:
                seen.note(now_s, len(output.token_ids))
            if output.error:
                seen.error = output.error
    except EngineError as error:
        seen.error = f"{type(error).__name__}: {error}"
    return seen


async def run_load(engine: AsyncEngine, load: Load) -> tuple[float, list[Seen]]:
    """Lets the clients of a load come and go. Seconds it took, and what each saw."""
    params = SamplingParams(max_tokens=load.output_len, temperature=0, ignore_eos=True, output_kind="delta")
    asked, due = prompts(load, engine.model.info.vocab_size), arrivals(load)
    places = asyncio.Semaphore(load.concurrency or load.num_prompts)

    async def come(number: int) -> Seen:
        await asyncio.sleep(max(began_s + due[number] - time.perf_counter(), 0))
        async with places:
            return await _client(engine, asked[number], params, f"bench-{number}")

    began_s = time.perf_counter()
    seen = await asyncio.gather(*(come(number) for number in range(load.num_prompts)))
    return time.perf_counter() - began_s, list(seen)


async def _measure(load: Load, profiler: Profiler | None) -> dict[str, Any]:
    config = EngineConfig(
        model=load.model, num_threads=load.num_threads, dtype=load.dtype, max_queue=max(load.num_prompts, 1024),  # type: ignore[arg-type]
        tokenizer_required=False,
    )  # fmt: skip
    async with AsyncEngine(config, make_link=ThreadLink if profiler is None else profiler.link) as engine:
        await run_load(
            engine, replace(load, num_prompts=min(2, load.num_prompts), request_rate=AT_ONCE, seed=load.seed + 7)
        )  # warm
        duration_s, seen = await run_load(engine, load)
        status = engine.status()
    return document(load, duration_s, seen) | {"balanced": status.balanced}


def document(load: Load, duration_s: float, seen: Sequence[Seen]) -> dict[str, Any]:
    """The figures, under vLLM's names where it has them."""
    good = [one for one in seen if not one.error and one.first_s is not None]
    num_output = sum(one.num_tokens for one in good)
    num_input = load.input_len * len(good)
    ttft = [(one.first_s - one.asked_s) * 1e3 for one in good if one.first_s is not None]
    tpot = [
        (one.last_s - one.first_s) * 1e3 / (one.num_tokens - 1)
        for one in good
        if one.num_tokens > 1 and one.first_s is not None and one.last_s is not None
    ]
    itl = [gap * 1e3 for one in good for gap in one.gaps_s]
    e2el = [(one.last_s - one.asked_s) * 1e3 for one in good if one.last_s is not None]
    found: dict[str, Any] = {
        "quiesce_bench": VERSION,
        "kind": "serving",
        "load": {name: (None if value == AT_ONCE else value) for name, value in asdict(load).items()},
        "machine": machine_facts(),
        "duration_s": duration_s,
        "completed": len(good),
        "failed": len(seen) - len(good),
        "errors": sorted({one.error for one in seen if one.error}),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(good) / duration_s,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
    }
    for name, samples in (("ttft", ttft), ("tpot", tpot), ("itl", itl), ("e2el", e2el)):
        found[f"mean_{name}_ms"] = sum(samples) / len(samples) if samples else None
        for percent in PERCENTILES:
            found[f"p{percent}_{name}_ms"] = percentile(samples, percent)
    return found


def table(found: dict[str, Any]) -> Table:
    """The same as people know it from vLLM's benchmark."""
    made = Table(title="Serving benchmark result", title_style="bold", show_header=False)
    made.add_column()
    made.add_column(justify="right")
    for title, key, form in (
        ("Successful requests", "completed", "{:,}"),
        ("Failed requests", "failed", "{:,}"),
        ("Benchmark duration (s)", "duration_s", "{:.2f}"),
        ("Total input tokens", "total_input_tokens", "{:,}"),
        ("Total generated tokens", "total_output_tokens", "{:,}"),
        ("Request throughput (req/s)", "request_throughput", "{:.2f}"),
        ("Output token throughput (tok/s)", "output_throughput", "{:,.1f}"),
        ("Total token throughput (tok/s)", "total_token_throughput", "{:,.1f}"),
    ):
        made.add_row(title, form.format(found[key]))
    for title, name in (
        ("Time to first token (ms)", "ttft"),
        ("Time per output token, without the first (ms)", "tpot"),
        ("Inter-token latency (ms)", "itl"),
        ("End-to-end latency (ms)", "e2el"),
    ):
        made.add_section()
        made.add_row(f"{title}: mean", _milliseconds(found[f"mean_{name}_ms"]))
        for percent in PERCENTILES:
            made.add_row(f"    P{percent}", _milliseconds(found[f"p{percent}_{name}_ms"]))
    return made


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def run(load: Load, console: Console, profile: Path | None = None) -> dict[str, Any]:
    """Measures, prints the table, returns the figures. Writes a Chrome trace of the engine's steps to `profile`.

    Raises:
        EngineError: the model cannot be served.
        OSError: the trace cannot be written.
    """
    profiler = Profiler() if profile is not None else None
    found = asyncio.run(_measure(load, profiler))
    if profiler is not None and profile is not None:
        profiler.write(profile)
        console.print(f"profile written to {profile}: open it in https://ui.perfetto.dev or chrome://tracing", markup=False)
    console.print(table(found))
    for error in found["errors"]:
        console.print(f"failed: {error}", style="red", markup=False)
    return found
