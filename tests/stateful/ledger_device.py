"""A device that keeps books instead of computing: it finds every wrong, stale or freed block, at control-plane speed.

Each KV slot holds (token, position, weight version). A step writes its tokens' entries, then reads the whole context *through the
block table* and answers with a hash of what it read. A block freed too early, given twice, looked up under a wrong table or left over
from another version changes the tokens. Work is done when a step completes, not when it is launched: as late as can be.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.messages import FROM_DEVICE, Completion, Loaded, StepInput, StepOutput
from quiesce.engine.noise import MASK, splitmix64
from quiesce.statemachine.effects import LaunchStep

POISON = -7
Offer = Callable[[str, Callable[[], object]], None]


class LedgerDevice:
    """`messages.Device` over books.

    Args:
        vocab_size: answers are in [3, vocab_size): 0 to 2 are left to be stop ids, so that a run's length is the caller's choice.
        offer: called with a name and a completion for each piece of work; None: `complete` is called by hand.
    """

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int, offer: Offer | None = None) -> None:
        self.num_blocks, self.block_size, self.vocab_size = num_blocks, block_size, vocab_size
        self.launched: deque[StepInput] = deque()
        self.steps: list[StepInput] = []
        self.fail_at: dict[int, Exception] = {}
        """Steps that fail, by number."""
        self.fault_at: set[tuple[int, int]] = set()
        """(step number, index of a request in it) whose own work fails."""
        self.load_error: Exception | None = None
        self.closed = False
        self._offer = offer
        self._done: deque[Completion] = deque()
        self._wake: Callable[[], None] = lambda: None
        self._token: NDArray[np.int64] = np.full(num_blocks * block_size, POISON, np.int64)
        self._position: NDArray[np.int64] = np.full(num_blocks * block_size, POISON, np.int64)
        self._version: NDArray[np.int64] = np.full(num_blocks * block_size, POISON, np.int64)
        self._sampled: dict[int, int] = {}

    def bind(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def load(self) -> None:
        self._do("load", self._finish_loading)

    def _finish_loading(self) -> None:
        if not self.closed:
            self._done.append(Loaded(self.load_error))
            self._wake()

    def launch(self, effect: LaunchStep, step: StepInput) -> None:
        if effect.subject != step.step or len(self.launched) >= 2 or self.closed:
            raise RuntimeError(f"step {step.step} cannot be launched: {len(self.launched)} in flight, closed={self.closed}")
        self.launched.append(step)
        self.steps.append(step)
        self._do(f"step {step.step}", self.complete)

    def _do(self, name: str, work: Callable[[], object]) -> None:
        if self._offer is not None:
            self._offer(name, work)

    def complete(self) -> None:
        """Runs the oldest launched step and reports it."""
        if self.closed:
            return
        step = self.launched.popleft()
        self._done.append(self._run(step))
        self._wake()

    def poll(self) -> list[Completion]:
        done = list(self._done)
        self._done.clear()
        return done

    def poison(self, blocks: Sequence[int]) -> None:
        """At once, although steps may be in flight: none of them may name a freed block."""
        for block in blocks:
            self._token[block * self.block_size : (block + 1) * self.block_size] = POISON

    def close(self) -> None:
        self.closed = True
        self.launched.clear()

    def _run(self, step: StepInput) -> StepOutput:
        began = time.perf_counter()
        if step.step in self.fail_at:
            return StepOutput(step.step, step.epoch, np.empty(0, np.int64), error=self.fail_at[step.step])
        answers = np.full(len(step.rows), -1, np.int64)
        faults = []
        ends = np.cumsum(step.counts)
        for index, row in enumerate(step.rows.tolist()):
            start, count = int(step.starts[index]), int(step.counts[index])
            ids = step.token_ids[ends[index] - count : ends[index]].copy()
            if ids[0] == FROM_DEVICE:
                ids[0] = self._sampled.get(row, POISON)
            positions = np.arange(start + count)
            slots = step.block_tables[index, positions // self.block_size] * self.block_size + positions % self.block_size
            self._token[slots[start:]], self._position[slots[start:]], self._version[slots[start:]] = (
                ids,
                positions[start:],
                step.version,
            )
            if (step.step, index) in self.fault_at:
                faults.append((index, "the ledger was told to fault"))
            elif step.samples[index]:
                key = int(step.noise_keys[index]) if step.temperature[index] > 0 else 0
                read = (self._token[slots], self._position[slots], self._version[slots])
                answers[index] = self._sampled[row] = answer(*read, key, self.vocab_size)
        return StepOutput(step.step, step.epoch, answers, tuple(faults), started_s=began, ended_s=time.perf_counter())


def answer(
    tokens: NDArray[np.int64], positions: NDArray[np.int64], versions: NDArray[np.int64], key: int, vocab_size: int
) -> int:
    """The token that follows this context. All [context]."""
    mixed = (tokens + 1) * 0x9E3779B1 + (positions + 1) * 0x85EBCA77 + (versions + 1) * 0xC2B2AE3D
    weight = (positions * 2 + 1) * 0x27D4EB2F
    with np.errstate(over="ignore"):
        total = int((mixed * weight).sum()) & MASK
    return 3 + splitmix64(total ^ key) % (vocab_size - 3)


def true_tokens(prompt: Sequence[int], count: int, vocab_size: int, key: int = 0, version: int = 0) -> list[int]:
    """What an undisturbed request is answered: the truth that no block table has touched."""
    tokens = list(prompt)
    for _ in range(count):
        context = np.array(tokens, np.int64)
        tokens.append(answer(context, np.arange(len(tokens)), np.full(len(tokens), version, np.int64), key, vocab_size))
    return tokens[len(prompt) :]
