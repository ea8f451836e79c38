"""What HTTP costs: streaming tokens a second through `quiesce serve` beside the same load in this process, on the shipped model.

The server is a process of its own, as it is in life; the clients are bare sockets here, so that their own time is small.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.result import Figure
from quiesce.engine.bench.serving import Load, prompts, run_load
from quiesce.engine.config import EngineConfig
from quiesce.engine.model import open_model

ROW: Final = "http"
LOAD: Final = Load(num_prompts=32, input_len=32, output_len=128, num_threads=1)
TOY: Final = Load(num_prompts=2, input_len=8, output_len=4, num_threads=1)
SERVERS: Final = {"streamed over HTTP": (), "streamed over HTTP, the core in a process of its own": ("--backend", "process")}
"""Ways through a server -> its flags."""
ROUNDS: Final = 5
END: Final = b"data: [DONE]"


def measure(quick: bool) -> Iterator[Figure]:
    """The figures of this row: all ways in turns, round after round. With `quick` of a toy."""
    load, rounds = (TOY, 1) if quick else (LOAD, ROUNDS)
    here, *streamed = asyncio.run(_measure(load, rounds))
    size = f"batch {load.num_prompts}"
    yield Figure(ROW, f"in this process, {size}", "tokens/s", tuple(here), at_most=False)
    for way, rates in zip(SERVERS, streamed, strict=True):
        ratios = tuple(one / other for one, other in zip(rates, here, strict=True))
        yield Figure(ROW, f"{way}, {size}", "tokens/s", tuple(rates), at_most=False)
        yield Figure(ROW, f"{way} / in this process, {size}", "x", ratios, at_most=False)


async def _measure(load: Load, rounds: int) -> list[list[float]]:
    """Tokens a second of each round: here, and through each server. Whoever is not measured is idle."""
    config = EngineConfig(model=load.model, num_threads=load.num_threads)
    asked = prompts(load, open_model(config).info.vocab_size)
    found: list[list[float]] = [[] for _ in range(1 + len(SERVERS))]
    servers: list[tuple[subprocess.Popen[str], str]] = []
    try:
        for flags in SERVERS.values():
            servers.append(_serve(load, flags))
        async with AsyncEngine(config) as engine:
            for place in range(rounds + 1):
                seconds = [(await run_load(engine, load))[0]]
                seconds += [await _stream_all(url, load, asked) for _, url in servers]
                if place:  # the first one warms them all
                    for rates, took_s in zip(found, seconds, strict=True):
                        rates.append(load.num_prompts * load.output_len / took_s)
    finally:
        for process, _ in servers:
            process.terminate()
        for process, _ in servers:
            process.communicate()
    return found


def _serve(load: Load, flags: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    """A server, and where it listens.

    Raises:
        RuntimeError: it does not come up.
    """
    command = [
        sys.executable, "-m", "quiesce.engine.cli", "serve", load.model, "--port", "0", "--num-threads", str(load.num_threads), *flags,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(load.num_threads)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    url = "" if process.stdout is None else process.stdout.readline().strip()
    if not url:
        raise RuntimeError(f"no server to measure: {process.communicate()[1]}")
    return process, url


async def _stream_all(url: str, load: Load, asked: list[list[int]]) -> float:
    """Seconds until every prompt is answered.

    Raises:
        RuntimeError: one was not answered whole.
    """
    began_s = time.perf_counter()
    counts = await asyncio.gather(*(_stream(url, _body(load, prompt)) for prompt in asked))
    seconds = time.perf_counter() - began_s
    if any(count != load.output_len for count in counts):
        raise RuntimeError(f"tokens of each answer: {counts}, and {load.output_len} were asked for")
    return seconds


def _body(load: Load, prompt: list[int]) -> dict[str, Any]:
    return {
        "prompt": prompt, "max_tokens": load.output_len, "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


async def _stream(url: str, body: dict[str, Any]) -> int:
    """Tokens of one streamed answer, by its usage."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    writer.write(head.encode() + text)
    last = b""
    while not (line := await reader.readline()).startswith(END):
        if not line:
            raise RuntimeError("the server closed the connection")
        if line.startswith(b"data: "):
            last = line
    writer.close()
    count: int = json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"]
    return count
