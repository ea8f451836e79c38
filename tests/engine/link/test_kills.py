"""The core is killed at drawn points of its protocol, again and again on one engine: everybody is answered, and a new core serves.

`QUIESCE_KILLS=50` (and `QUIESCE_KILL_SEED`) makes it a longer run; the slowest answer is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.tiny import checkpoint_folder
from tests.engine.link.cores import PROMPT, SOON_S, asks, born, config, core_of, kill, nothing_left, until

NUM_KILLS = int(os.environ.get("QUIESCE_KILLS", "10"))
SEED = int(os.environ.get("QUIESCE_KILL_SEED", "1"))
NUM_STREAMS = 3


class Scene:
    """What goes on in an engine when its core is killed."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.refused: set[str] = set()
        """Streams that were answered with an error of the call."""
        self.tasks: list[asyncio.Task[Any]] = []
        self.killed_s: float | None = None

    def ask(self, *, prompt: list[int] = PROMPT, max_tokens: int = 1500) -> None:
        name = f"r{len(self.outputs)}-{time.monotonic_ns()}"
        self.outputs[name] = []
        self.tasks.append(asyncio.create_task(self._listen(name, prompt, max_tokens)))

    async def _listen(self, name: str, prompt: list[int], max_tokens: int) -> None:
        try:
            async for output in self.engine.generate(prompt, asks(max_tokens), request_id=name):
                self.outputs[name].append(output)
        except errors.Unavailable:
            self.refused.add(name)

    def call(self, work: Coroutine[Any, Any, Any]) -> None:
        """A control call; it may be answered before the kill, else with an error."""

        async def called() -> None:
            with contextlib.suppress(errors.Unavailable, errors.TransitionConflict):
                await work

        self.tasks.append(asyncio.create_task(called()))

    async def all_speak(self) -> None:
        await until(lambda: all(self.outputs.values()), self.engine)

    def kill(self) -> None:
        """Now."""
        if self.killed_s is None:
            self.killed_s = time.monotonic()
            kill(self.engine)

    async def at(self, machine: str, *events: str) -> None:
        """Kills in the moment in which a transition shows."""
        seen = asyncio.Event()
        loop = asyncio.get_running_loop()

        def look(entry: dict[str, Any]) -> None:
            if entry.get("machine") == machine and entry.get("event") in events:
                self.kill()
                loop.call_soon_threadsafe(seen.set)

        stop = self.engine.trace.watch(look)
        try:
            await seen.wait()
        finally:
            stop()

    async def everybody(self) -> float:
        """Waits for every answer and looks at them. Seconds from the kill to the last."""
        assert self.killed_s is not None
        await asyncio.gather(*self.tasks)
        took_s = time.monotonic() - self.killed_s
        for name, outputs in self.outputs.items():
            if name in self.refused:
                assert not outputs
                continue
            assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
            end = outputs[-1]
            assert end.finish_reason in ("error", "length")
            assert end.retryable == (end.finish_reason == "error")
            for output in outputs:
                assert end.token_ids[: len(output.token_ids)] == output.token_ids
        return took_s


async def while_opening(scene: Scene) -> None:
    kill(scene.engine, signal.SIGSTOP)  # what is sent is not acknowledged any more
    for _ in range(NUM_STREAMS):
        scene.ask()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    scene.kill()


async def in_mid_prefill(scene: Scene) -> None:
    scene.ask(prompt=[3 + place % 50 for place in range(1500)])
    await scene.at("request", "admit", "start")


async def in_mid_stream(scene: Scene) -> None:
    for _ in range(NUM_STREAMS):
        scene.ask()
    await scene.all_speak()
    scene.kill()


async def at_an_end(scene: Scene) -> None:
    for length in (3, 5, 1500):
        scene.ask(max_tokens=length)
    await scene.at("request", "eos", "finish")


async def in_mid_drain(scene: Scene) -> None:
    scene.ask()
    await scene.all_speak()
    scene.call(scene.engine.pause(mode="wait"))
    await scene.at("engine", "pause")


async def in_mid_sleep(scene: Scene) -> None:
    scene.ask()
    await scene.all_speak()
    scene.call(scene.engine.sleep(mode="keep"))
    await scene.at("memory", "release")


async def in_mid_wake(scene: Scene) -> None:
    await scene.engine.sleep()
    scene.call(scene.engine.wake_up())
    await scene.at("memory", "restore")


async def in_mid_update(scene: Scene) -> None:
    scene.ask()
    await scene.all_speak()
    scene.call(scene.engine.update_weights(checkpoint_folder("small")))
    await scene.at("weights", "begin", "begin_in_place", "load")


async def with_an_open_update(scene: Scene) -> None:
    await scene.engine.begin_weight_update()
    scene.call(scene.engine.generate(PROMPT).__anext__())
    scene.call(scene.engine.sleep())
    scene.kill()


async def in_mid_reply(scene: Scene) -> None:
    scene.call(scene.engine.weights_checksum())
    scene.call(scene.engine.pause())
    scene.call(scene.engine.reset_prefix_cache())
    await scene.at("engine", "pause", "drained_pause")


POINTS: tuple[Callable[[Scene], Awaitable[None]], ...] = (
    while_opening, in_mid_prefill, in_mid_stream, at_an_end, in_mid_drain, in_mid_sleep, in_mid_wake, in_mid_update, with_an_open_update,
    in_mid_reply,
)  # fmt: skip


async def kill_while_connecting(engine: AsyncEngine, old: int) -> None:
    """The core that follows the killed one is killed, too, before it has said anything."""
    os.kill(await born(engine, old), signal.SIGKILL)


@pytest.mark.timeout(60 * NUM_KILLS)
def test_everybody_is_answered_wherever_the_core_is_killed_and_a_new_core_serves() -> None:
    rng = random.Random(SEED)
    points = [*rng.sample(POINTS, len(POINTS)), *rng.choices(POINTS, k=max(NUM_KILLS - len(POINTS), 0))][:NUM_KILLS]
    slowest: dict[str, float] = {}

    async def main() -> None:
        async with nothing_left(), AsyncEngine(config(max_restarts=2 * NUM_KILLS)) as engine:
            for number, point in enumerate(points):
                scene, old = Scene(engine), core_of(engine)
                await point(scene)
                took_s = await scene.everybody()
                slowest[point.__name__] = max(slowest.get(point.__name__, 0.0), took_s)
                assert took_s < SOON_S, point.__name__
                assert engine.status().balanced
                if number == len(points) // 2:
                    await kill_while_connecting(engine, old)
                await engine.start()
                assert core_of(engine) != old
            outputs = [output async for output in engine.generate(PROMPT, asks(3))]
            assert outputs[-1].finish_reason == "length"

    asyncio.run(main())
    print({name: round(took_s, 3) for name, took_s in sorted(slowest.items(), key=lambda one: -one[1])})
