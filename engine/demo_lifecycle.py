"""The demo's second act: while clients stream, the operator pauses, sleeps, wakes in two stages, resumes and loads new weights.

Every token is checked: those of the old weights against a run in which nothing happened, those of the new weights against asking
the new weights to go on from the same place. The engine is `batch_invariant`, so that "the same" means bit for bit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.demo_view import say
from quiesce.engine.outputs import RequestOutput, Transition
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tensor_files import expected_tensors

NUM_STREAMS: Final = 6
MAX_TOKENS: Final = 96
QUESTION: Final = "Tell the life of a request."
TUNED: Final = "tuned"
MOVES_AFTER: Final = (10, 48)
"""Tokens of the slowest stream at which the operator sleeps, and at which the new weights come."""


class Act:
    """The streams, and what they have received so far."""

    def __init__(self, engine: AsyncEngine, console: Console) -> None:
        self.engine, self.console = engine, console
        self.received: dict[str, RequestOutput] = {}
        self.progress = asyncio.Event()

    def params(self, number: int, max_tokens: int = MAX_TOKENS) -> SamplingParams:
        return SamplingParams(max_tokens=max_tokens, temperature=0.8, seed=number, ignore_eos=True)

    async def stream(self, number: int, name: str) -> RequestOutput:
        """One client: keeps the latest output, and says that there is one."""
        messages = [{"role": "user", "content": QUESTION}]
        async for output in self.engine.chat(messages, self.params(number), request_id=name):
            self.received[name] = output
            self.progress.set()
        return output

    async def slowest_has(self, num_tokens: int) -> None:
        """Waits until every stream has so many tokens."""
        while len(self.received) < NUM_STREAMS or min(len(output.token_ids) for output in self.received.values()) < num_tokens:
            self.progress.clear()
            await self.progress.wait()

    async def tell(self, what: str, call: Awaitable[Transition]) -> Transition:
        """Waits for a control call and says what it did."""
        result = await call
        status = self.engine.status()
        memory = ", ".join(f"{tag} {state}" for tag, state in status.memory.items())
        freed = f"; {result.freed_bytes / 1e6:.1f} MB given back" if result.freed_bytes else ""
        say(
            self.console,
            f"  {what:34} {result.duration_s * 1e3:7.1f} ms  engine {status.engine}; {memory}; kept {len(result.kept)}{freed}",
        )
        return result

    async def operate(self) -> list[str]:
        """What the operator does, in order. What was not as promised."""
        engine, wrong = self.engine, []
        before = await engine.weights_checksum()
        await self.slowest_has(MOVES_AFTER[0])
        await self.tell("pause(mode='keep')", engine.pause("keep"))
        slept = await self.tell("sleep(level=1)", engine.sleep(level=1))
        frozen = {name: len(output.token_ids) for name, output in self.received.items()}
        if not slept.freed_bytes or slept.aborted:
            wrong.append(f"the sleep gave back {slept.freed_bytes} bytes and aborted {slept.aborted}")
        await self.tell("wake_up(['weights'])", engine.wake_up(["weights"]))
        await self.tell("wake_up(['kv_cache'])", engine.wake_up(["kv_cache"]))
        if {name: len(output.token_ids) for name, output in self.received.items()} != frozen:
            wrong.append("tokens came through a closed gate")
        await self.tell("resume()", engine.resume())
        if await engine.weights_checksum() != before:
            wrong.append("the weights came back changed")
        await self.slowest_has(MOVES_AFTER[1])
        await self.tell(f"update_weights(..., version={TUNED!r})", engine.update_weights(self._tuned(), version=TUNED))
        if await engine.weights_checksum() == before:
            wrong.append("the new weights are the old ones")
        return wrong

    def _tuned(self) -> list[tuple[str, np.ndarray]]:
        """New weights: the last layer's output matrix, other numbers. Over whole weights some tensors are enough."""
        layer = self.engine.model.info.num_layers - 1
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        shape = expected_tensors(self.engine.model.info)[name]
        return [(name, np.random.default_rng(1).normal(0.0, 0.02, shape).astype(np.float32))]

    async def wrong_tokens(self, name: str, number: int, undisturbed: RequestOutput) -> list[str]:
        """Holds a stream against what it should have been."""
        output = self.received[name]
        spans = output.outputs[0].weight_versions
        tokens = output.token_ids
        if len(tokens) != MAX_TOKENS or [version for version, _, _ in spans] != [0, TUNED]:
            return [f"{name} has {len(tokens)} tokens of versions {spans}"]
        switch = spans[1][1]
        if tokens[:switch] != undisturbed.token_ids[:switch]:
            return [f"{name} lost, repeated or invented a token before the update"]
        prompt = {"prompt_token_ids": [*output.prompt_token_ids, *tokens[:switch]]}
        async for again in self.engine.generate(prompt, self.params(number, MAX_TOKENS - switch)):
            rest = again.token_ids
        return [] if rest == tokens[switch:] else [f"{name} lost, repeated or invented a token after the update"]


async def second_act(model: str, num_threads: int, out: Path, console: Console) -> list[str]:
    """Plays it, tells it, and returns what was not right."""
    say(console, "\nSecond act: the operator, while clients stream", "bold")
    config = EngineConfig(
        model=model, num_threads=num_threads, max_model_len=512, num_kv_blocks=256, max_num_seqs=NUM_STREAMS, batch_invariant=True,
        trace_path=out / "second_act.ndjson",
    )  # fmt: skip
    engine = AsyncEngine(config)
    try:
        await engine.start()
        act = Act(engine, console)
        names = {f"stream-{number}": number for number in range(NUM_STREAMS)}
        undisturbed = await _all(act, names)
        act.received.clear()
        async with asyncio.TaskGroup() as group:
            for name, number in names.items():
                group.create_task(act.stream(number, name))
            operating = group.create_task(act.operate())
        wrong = operating.result()
        shown = random.Random(0).choice(list(names))
        found = await asyncio.gather(*(act.wrong_tokens(name, number, undisturbed[name]) for name, number in names.items()))
        wrong += [problem for problems in found for problem in problems]
        spans = act.received[shown].outputs[0].weight_versions
        told = ", ".join(f"tokens {start} to {end} by version {version!r}" for version, start, end in spans)
        say(console, f"  {shown}: {told}")
        if not wrong:
            say(
                console,
                f"  {NUM_STREAMS} streams, {NUM_STREAMS * MAX_TOKENS:,} tokens: none lost, none repeated, none invented",
            )
        return wrong
    finally:
        await engine.shutdown(timeout=0)


async def _all(act: Act, names: Mapping[str, int]) -> dict[str, RequestOutput]:
    """The same questions with nobody at the controls."""
    outputs = await asyncio.gather(*(act.stream(number, name) for name, number in names.items()))
    return dict(zip(names, outputs, strict=True))
