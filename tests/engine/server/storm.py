"""Five hundred clients at once, of whom a third vanish, while operators pause, sleep, update and drain around them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quiesce.stateful.http_call import Call, asked

CONTROL: Mapping[str, tuple[str, str]] = {
    "paused": ("/pause?mode=keep&clear_cache=false", "/resume"),
    "asleep": ("/sleep?level=1&mode=keep", "/wake_up"),
    "updating": ("/begin_weight_update?mode=keep", "/finish_weight_update"),
    "draining": ("/pause?mode=wait&clear_cache=false", "/resume"),
}
"""What operators do during a storm -> the call and the one that takes it back."""
MOMENTS = ("half a request", "unanswered", "queued", "streaming", *CONTROL)
"""When a client vanishes: with its request half sent, at once, once all have called, after some tokens, or in a state of the engine."""
MAX_TOKENS = 16
PROMPTS = tuple([3 + (7 * first + 11 * place) % 400 for place in range(length)] for first, length in enumerate((1, 3, 8, 17, 33, 60, 90, 130)))  # fmt: skip


def asks(kind: int, streams: bool = True) -> dict[str, Any]:
    """A call of this kind: its prompt, greedy or sampled. The same kind is the same tokens."""
    prompt, sampled = PROMPTS[kind % len(PROMPTS)], kind >= len(PROMPTS)
    return {
        "prompt": prompt, "max_tokens": MAX_TOKENS, "ignore_eos": True, "stream": streams, "return_token_ids": True,
        "temperature": 1.0 if sampled else 0.0, "seed": kind,
    }  # fmt: skip


KINDS = 2 * len(PROMPTS)


@dataclass(slots=True)
class Client:
    """One caller: what it asks, when it vanishes, and what it was told."""

    kind: int
    leaves: str | None
    after: int
    """Events after which it vanishes, if it leaves while it is told."""
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    """How its answer ended."""
    status: int = 0


def drawn(count: int, seed: int) -> list[Client]:
    """The clients of a storm: every third vanishes at a moment that is drawn."""
    rng = random.Random(seed)
    leavers = set(rng.sample(range(count), count // 3))
    return [
        Client(rng.randrange(KINDS), rng.choice(MOMENTS) if number in leavers else None, rng.randrange(1, MAX_TOKENS))
        for number in range(count)
    ]


class Storm:
    """All clients call at once; the operators' calls follow when enough tokens have come."""

    def __init__(self, url: str, clients: Sequence[Client]) -> None:
        self.url, self.clients = url, clients
        self._listening: dict[str | None, list[asyncio.Task[None]]] = {moment: [] for moment in (None, *MOMENTS)}
        self._num_called = self._num_tokens = 0
        self._all_have_called, self._progress = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Returns when every client has its answer or has left, and the operators have taken back what they did."""
        await asyncio.gather(self._operators(), *(self._client(client) for client in self.clients))

    async def _client(self, client: Client) -> None:
        call = Call(self.url, "/v1/completions", asks(client.kind))
        await call.send(0.5 if client.leaves == "half a request" else 1.0)
        listening = asyncio.create_task(self._listen(client, call))
        self._listening[client.leaves].append(listening)
        if client.leaves in ("half a request", "unanswered"):
            listening.cancel()
        self._called()
        try:
            await listening
        except asyncio.CancelledError:
            if client.leaves is None:
                raise
        finally:
            call.drop()

    def _called(self) -> None:
        self._num_called += 1
        if self._num_called == len(self.clients):
            self._happens("queued")
            self._all_have_called.set()

    def _happens(self, moment: str) -> None:
        """Those who wait for it vanish."""
        for listening in self._listening[moment]:
            listening.cancel()

    async def _listen(self, client: Client, call: Call) -> None:
        client.status = await call.begin()
        async for event in call.events():
            choice = event["choices"][0]
            client.tokens += choice["token_ids"]
            client.reason = choice["finish_reason"]
            self._num_tokens += len(choice["token_ids"])
            self._progress.set()
            if client.leaves == "streaming" and len(client.tokens) >= client.after:
                return

    async def _operators(self) -> None:
        await self._all_have_called.wait()
        step = len(self.clients) * MAX_TOKENS // 2 // (len(CONTROL) + 1)
        for number, (name, (close, open_)) in enumerate(CONTROL.items(), 1):
            while self._num_tokens < number * step:
                self._progress.clear()
                await self._progress.wait()
            closing = asyncio.create_task(self._operate(close))
            if name == "draining":
                self._happens(name)
            await closing
            self._happens(name)
            await self._operate(open_)

    async def _operate(self, path: str) -> None:
        status, answer = await asked(self.url, path, {})
        assert status == 200, (path, answer)
