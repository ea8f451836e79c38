"""Engines whose core is a process of its own: what their tests share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder
from quiesce.stateful.processes import children_of

PROMPT = [5, 9, 11, 20]
PATIENCE_S = 60.0
"""Of a test with a machine that is busy; nothing waits for it to pass."""
SOON_S = 5.0
"""Of an answer to somebody who waits for a dead core: 1 s is promised, the rest is for a machine that is busy."""


def config(**changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "model": str(checkpoint_folder("small")), "backend": "process", "num_threads": 1, "dtype": "float32", "max_model_len": 2000,
        "num_kv_blocks": 512, "max_num_seqs": 8, "max_num_batched_tokens": 64,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))


def asks(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **more)


def leftovers() -> dict[str, set[str]]:
    """What an engine could leave behind: processes, threads, descriptors, folders, shared memory."""
    descriptors = [
        os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")
    ]
    return {
        "processes": {str(pid) for pid in children_of(os.getpid())},
        "threads": {thread.name for thread in threading.enumerate()},
        "descriptors": {f"{link} #{place}" for link in set(descriptors) for place in range(_count(descriptors, link))},
        "folders": {str(path) for path in Path(tempfile.gettempdir()).glob(f"quiesce-{os.getpid()}-*")},
        "shared memory": {name for name in os.listdir("/dev/shm") if "quiesce" in name},
    }


def _count(descriptors: list[str], link: str) -> int:
    kind = link.split(":")[0]
    return sum(one == link for one in descriptors) if ":" not in link else sum(one.split(":")[0] == kind for one in descriptors)


def core_of(engine: AsyncEngine) -> int:
    """The process of an engine's core."""
    pid = engine.core_pid
    assert pid is not None
    return pid


def kill(engine: AsyncEngine, number: int = signal.SIGKILL) -> None:
    os.kill(core_of(engine), number)


async def born(engine: AsyncEngine, after: int | None = None) -> int:
    """Waits for the process of the core, the one that follows `after`; it has said nothing yet."""
    while engine.core_pid in (None, after):  # noqa: ASYNC110  no event says it: nothing has been heard of the core
        await asyncio.sleep(0)
    return core_of(engine)


async def until(happened: Callable[[], bool], engine: AsyncEngine) -> None:
    """Waits for something that shows in the status or the trace: looks whenever an entry comes, and soon after, for the status follows."""
    news = asyncio.Event()
    loop = asyncio.get_running_loop()

    def look(entry: object) -> None:
        loop.call_soon_threadsafe(news.set)

    stop = engine.trace.watch(look)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), SOON_S / 100)
                news.clear()
    finally:
        stop()


async def last(outputs: AsyncGenerator[RequestOutput, None] | AsyncIterator[RequestOutput]) -> RequestOutput:
    found = [output async for output in outputs]
    return found[-1]


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Whatever happened in the block, afterwards there is nothing that was not there before."""
    before = leftovers()
    yield
    after = leftovers()
    assert {name: after[name] - before[name] for name in after} == {name: set() for name in after}
    assert asyncio.all_tasks() == {asyncio.current_task()}
