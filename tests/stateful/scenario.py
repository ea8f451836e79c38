"""Short words for tests over the real engine and the ledger device, inside the deterministic loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quiesce.engine.api import AsyncEngine
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.choices import Strategy
from quiesce.stateful.driver import VOCAB_SIZE, assert_nothing_left, ledger_config, ledger_engine
from quiesce.stateful.ledger_device import LedgerDevice, true_tokens
from quiesce.stateful.loop import DeterministicLoop


@dataclass(slots=True)
class Client:
    """One client and all that it has seen."""

    name: str
    prompt: list[int]
    max_tokens: int
    outputs: list[RequestOutput] = field(default_factory=list)

    @property
    def truth(self) -> list[int]:
        return true_tokens(self.prompt, self.max_tokens, VOCAB_SIZE)

    @property
    def tokens(self) -> list[int]:
        return list(self.outputs[-1].token_ids) if self.outputs else []

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[-1].finish_reason if self.outputs else None

    def assert_history_is_legal(self) -> None:
        """Each output extends the one before, all are a prefix of the truth, and nothing follows the one terminal."""
        seen: list[int] = []
        for number, output in enumerate(self.outputs):
            tokens = list(output.token_ids)
            if tokens[: len(seen)] != seen or tokens != self.truth[: len(tokens)]:
                raise AssertionError(f"{self.name}: output {number} is {tokens}, after {seen}; the truth is {self.truth}")
            if output.finished and number != len(self.outputs) - 1:
                raise AssertionError(f"{self.name}: something follows the terminal")
            seen = tokens


def prompt_of(number: int, length: int) -> list[int]:
    return [3 + (7 * number + 11 * place) % (VOCAB_SIZE - 3) for place in range(length)]


class World:
    """A running engine over a ledger device, and clients."""

    def __init__(self, loop: DeterministicLoop, engine: AsyncEngine, device: LedgerDevice) -> None:
        self.loop, self.engine, self.device = loop, engine, device

    async def ask(self, client: Client, stop_after: int | None = None, **options: Any) -> Client:
        """Streams a client's request; `stop_after` outputs the client hangs up."""
        params = SamplingParams(max_tokens=client.max_tokens, temperature=0, ignore_eos=True)
        stream = self.engine.generate(client.prompt, params, request_id=client.name, **options)
        async with aclosing(stream) as outputs:
            async for output in outputs:
                client.outputs.append(output)
                if stop_after is not None and len(client.outputs) >= stop_after:
                    break
        return client

    async def ask_all(self, clients: Sequence[Client]) -> None:
        await asyncio.gather(*(self.ask(client) for client in clients))


Body = Callable[[World], Awaitable[None]]


def run(
    folder: Path, body: Body, strategy: Strategy | None = None, loop: DeterministicLoop | None = None, **config: Any
) -> AsyncEngine:
    """Runs a scenario on a fresh engine, shuts it down, and checks that nothing is left."""
    loop = loop or DeterministicLoop(strategy, timely=True)
    kept: list[AsyncEngine] = []

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(folder, **config))
        kept.append(engine)
        async with engine:
            await body(World(loop, engine, device))
            await loop.wait_settled()
            if engine.status().engine == "running":
                assert_nothing_left(engine)
        assert_nothing_left(engine)

    loop.run(main())
    return kept[0]
