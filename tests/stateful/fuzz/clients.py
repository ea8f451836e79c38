"""A client of a fuzzed run: what it asked, all that it was told, and whether that is a legal history with true tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from quiesce.engine.noise import noise_key
from quiesce.engine.outputs import CompletionOutput, RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.driver import VOCAB_SIZE
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.truth import assert_tokens_are_true

Truth = Callable[["Client", CompletionOutput], None]
"""Raises `AssertionError` where a child's tokens are not what its undisturbed request is given."""


@dataclass(slots=True)
class Client:
    """Who asks for one request."""

    name: str
    request_id: str
    prompt: list[int]
    params: SamplingParams
    session: str | None = None
    stop_after: int | None = None
    paced: bool = False
    """Reads only as much as it is told to."""
    priority: int = 0
    outputs: list[RequestOutput] = field(default_factory=list)
    refusal: Exception | None = None
    left: bool = False
    left_in_pass: int = 0
    """The last pass of the core when it left."""
    task: asyncio.Task[None] | None = None
    duplicate: bool = False
    """Its id was in use when it called."""
    _allowance: int = 0
    _turn: asyncio.Future[None] | None = None

    @property
    def last(self) -> RequestOutput | None:
        return self.outputs[-1] if self.outputs else None

    @property
    def finished(self) -> bool:
        return bool(self.outputs) and self.outputs[-1].finished

    def let_read(self, outputs: int) -> None:
        self._allowance += outputs
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def read_on(self) -> None:
        self.paced = False
        self.let_read(0)

    async def may_read(self) -> None:
        while self.paced and self._allowance <= 0:
            self._turn = asyncio.get_running_loop().create_future()
            await self._turn
        self._allowance -= 1

    def check_history(self) -> None:
        """Each output continues the one before; the one terminal is the last; spans cover every token once.

        Raises:
            AssertionError: it is not so.
        """
        seen: dict[int, tuple[int, ...]] = {}
        for place, output in enumerate(self.outputs):
            if output.finished and place != len(self.outputs) - 1:
                raise AssertionError(f"{self.name}: something follows the terminal")
            for child in output.outputs:
                before = seen.get(child.index, ())
                if child.token_ids[: len(before)] != before:
                    raise AssertionError(f"{self.name}: {child.token_ids} does not continue {before}")
                seen[child.index] = child.token_ids
                if (child.finish_reason is not None) < output.finished:
                    raise AssertionError(f"{self.name}: child {child.index} of a finished output has no reason")
        if self.outputs and self.outputs[-1].prompt_token_ids[-len(self.prompt) :] != tuple(self.prompt):
            raise AssertionError(f"{self.name}: its prompt was another")

    def check_end(self, limit: int, allowed: Sequence[str]) -> None:
        """A finished request ended for a reason that may be, at the length that the reason says.

        Args:
            limit: tokens of the context.
            allowed: reasons besides `stop` and `length`.
        """
        if self.last is None or not self.last.finished:
            return
        room = limit - len(self.last.prompt_token_ids)
        longest = min(self.params.max_tokens or room, room)
        stops = self.params.stop_token_ids
        for child in self.last.outputs:
            reason, tokens = child.finish_reason, child.token_ids
            stopped = bool(tokens) and tokens[-1] in stops
            right = {"length": len(tokens) == longest and not stopped, "stop": stopped}.get(str(reason), reason in allowed)
            if not right:
                raise AssertionError(
                    f"{self.name}: ended {reason!r} after {len(tokens)} of {longest} tokens; {self.last.error}"
                )
            if any(token in stops for token in tokens[:-1]) or len(tokens) > longest:
                raise AssertionError(f"{self.name}: tokens follow its end: {tokens}, stops {list(stops)}, at most {longest}")


@lru_cache(maxsize=4096)
def _alone(prompt: tuple[int, ...], count: int, key: int, version: int) -> tuple[int, ...]:
    return tuple(true_tokens(prompt, count, VOCAB_SIZE, key, version))


def ledger_truth(numbers: Mapping[int | str, int]) -> Truth:
    """The ledger device's own arithmetic, across the versions that a child's spans name. `numbers`: version -> what steps carry."""

    def check(client: Client, child: CompletionOutput) -> None:
        if client.last is None:
            return
        key = int(noise_key(client.last.seed or 0, child.index)) if client.params.temperature > 0 else 0
        spans = [(numbers[name], start, end) for name, start, end in child.weight_versions]
        prompt, tokens = client.last.prompt_token_ids, child.token_ids
        if len(spans) == 1 and spans[0][1:] == (0, len(tokens)) and tokens == _alone(prompt, len(tokens), key, spans[0][0]):
            return
        assert_tokens_are_true(client.name, prompt, tokens, spans, key)

    return check
