"""A device that keeps books instead of computing: it finds every wrong, stale or freed block, at control-plane speed.

Each KV slot holds (token, position, weight version). A step writes its tokens' entries, then reads the whole context *through the
block table* and answers with a hash of what it read. A block freed too early, given twice, looked up under a wrong table or left over
from another version changes the tokens. Work is done when it completes, not when it is asked for: as late as can be.

Memory that leaves takes its entries along: what comes back is what was to be kept, and poison elsewhere. The weights are a digest for
each tensor that was written; answers do not depend on them but through `step.version`, which is what the control plane says of them.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.messages import (
    FROM_DEVICE,
    Checksum,
    Completion,
    Fetched,
    Loaded,
    Moved,
    StepInput,
    StepOutput,
    WeightsWritten,
)
from quiesce.engine.noise import MASK, splitmix64
from quiesce.statemachine.effects import LaunchStep, LoadWeights, Map, Unmap

POISON = -7
CHUNK = 2
"""Tensors of a chunk: few, so that a small model has several."""
WEIGHTS_BYTES = 1 << 20
"""What the weights are said to take."""
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
        self.fail_move: set[tuple[str, str]] = set()
        """(tag, `released`, `restored` or `zeroed`) that fail, each once."""
        self.fail_write: Exception | None = None
        """The next chunk is written by half, once."""
        self.fail_fetch: Exception | None = None
        """The next fetch fails, once."""
        self.told: dict[type[Completion], Completion] = {}
        """What was reported last, of each kind."""
        self.tensors: dict[str, str] = {}
        """The weights: what was written since the load, or since they were discarded, as a digest for each name."""
        self.places = {"weights": "here", "kv_cache": "here"}
        """Where each tag's memory is: `here`, `moving` or `away`. KV that comes back empty is here once it is zeroed."""
        self.closed = False
        self._offer = offer
        self._queue: deque[Callable[[], Completion]] = deque()
        self._done: deque[Completion] = deque()
        self._wake: Callable[[], None] = lambda: None
        self._token: NDArray[np.int64] = np.full(num_blocks * block_size, POISON, np.int64)
        self._position: NDArray[np.int64] = np.full(num_blocks * block_size, POISON, np.int64)
        self._version: NDArray[np.int64] = np.full(num_blocks * block_size, POISON, np.int64)
        self._books = (self._token, self._position, self._version)
        self._kept: dict[str, tuple[str, Any]] = {}
        self._sampled: dict[int, int] = {}

    def bind(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def load(self) -> None:
        self._ask("load", lambda: Loaded(self.load_error))

    def launch(self, effect: LaunchStep, step: StepInput) -> None:
        if effect.subject != step.step or len(self.launched) >= 2 or self.closed:
            raise RuntimeError(f"step {step.step} cannot be launched: {len(self.launched)} in flight, closed={self.closed}")
        if set(self.places.values()) != {"here"}:
            raise RuntimeError(f"step {step.step} was launched while {self.places}")
        self.launched.append(step)
        self.steps.append(step)
        self._ask(f"step {step.step}", lambda: self._run(self.launched.popleft()))

    def unmap(self, effect: Unmap, tag: str, policy: str, blocks: Sequence[int]) -> None:
        self._set_out(tag, "here")
        self._ask(f"unmap {tag}", lambda: self._leave(tag, policy, list(blocks)))

    def map(self, effect: Map, tag: str, policy: str) -> None:
        if self._kept.get(tag, ("",))[0] != policy:
            raise RuntimeError(f"{tag} is mapped under {policy}, under which it did not leave")
        self._set_out(tag, "away")
        self._ask(f"map {tag}", lambda: self._return(tag, policy))

    def fetch(self, ticket: int, source: Iterator[tuple[str, Any]]) -> None:
        self._ask(f"fetch {ticket}", lambda: self._fetch(ticket, source))

    def load_weights(self, effect: LoadWeights, pairs: Sequence[tuple[str, Any]]) -> None:
        if self.launched or self.places["weights"] != "here":
            raise RuntimeError(f"weights were written while {len(self.launched)} steps are in flight and {self.places}")
        self._ask("load_weights", lambda: self._write(pairs))

    def checksum(self, ticket: int) -> None:
        self._ask(f"checksum {ticket}", lambda: self._sum_up(ticket))

    def _set_out(self, tag: str, place: str) -> None:
        if self.launched or self.closed or self.places[tag] != place:
            raise RuntimeError(f"{tag} was moved while {self.places}, {len(self.launched)} in flight, closed={self.closed}")
        self.places[tag] = "moving"

    def _ask(self, name: str, work: Callable[[], Completion]) -> None:
        self._queue.append(work)
        if self._offer is not None:
            self._offer(name, self.complete)

    def complete(self) -> None:
        """Does the oldest piece of work that was asked for, and reports it."""
        if not self.closed:
            self._tell(self._queue.popleft()())

    def repeat(self, kind: type[Completion]) -> bool:
        """Reports the last completion of a kind once more, as a device does that cannot be believed. Whether there was one."""
        if kind in self.told and not self.closed:
            self._tell(self.told[kind])
        return kind in self.told

    def _tell(self, completion: Completion) -> None:
        self.told[type(completion)] = completion
        self._done.append(completion)
        self._wake()

    def poll(self) -> list[Completion]:
        done = list(self._done)
        self._done.clear()
        return done

    def poison(self, blocks: Sequence[int]) -> None:
        """At once, although steps may be in flight: none of them may name a freed block."""
        if self.places["kv_cache"] != "here":
            raise RuntimeError(f"blocks were poisoned while {self.places}")
        self._token[self._slots(blocks)] = POISON

    def close(self) -> None:
        self.closed = True
        self.launched.clear()
        self._queue.clear()
        self._kept.clear()

    def _slots(self, blocks: Sequence[int]) -> NDArray[np.int64]:
        return (np.array(blocks, np.int64)[:, None] * self.block_size + np.arange(self.block_size)).ravel()

    def _leave(self, tag: str, policy: str, blocks: list[int]) -> Moved:
        if failure := self._failure(tag, "released", "here"):
            return failure
        kept: Any = None
        if tag == "weights":
            kept, self.tensors = self.tensors, {}
        else:
            slots = self._slots(blocks)
            kept = (slots, [book[slots] for book in self._books])
            for book in self._books:
                book.fill(POISON)
        self._kept[tag] = (policy, kept if policy == "offload" else None)
        self.places[tag] = "away"
        return Moved(tag, "released", self._num_bytes(tag))

    def _return(self, tag: str, policy: str) -> Moved:
        if failure := self._failure(tag, "restored", "away"):
            return failure
        _, kept = self._kept.pop(tag)
        if policy == "discard" and tag == "kv_cache":
            self._ask("zero kv_cache", self._zero)
            return Moved(tag, "restored", self._num_bytes(tag))
        if kept is not None and tag == "weights":
            self.tensors = kept
        elif kept is not None:
            for book, entries in zip(self._books, kept[1], strict=True):
                book[kept[0]] = entries
        self.places[tag] = "here"
        return Moved(tag, "restored", self._num_bytes(tag))

    def _zero(self) -> Moved:
        """Poison, where a real device has zeros: nobody may read either."""
        if failure := self._failure("kv_cache", "zeroed", "moving"):
            return failure
        self.places["kv_cache"] = "here"
        return Moved("kv_cache", "zeroed")

    def _failure(self, tag: str, to: str, place: str) -> Moved | None:
        """The completion of a move that was told to fail; the tag is where it was."""
        if (tag, to) not in self.fail_move:
            return None
        self.fail_move.discard((tag, to))
        self.places[tag] = place
        return Moved(tag, to, error=OSError(f"the ledger was told not to have {tag} {to}"))

    def _num_bytes(self, tag: str) -> int:
        return WEIGHTS_BYTES if tag == "weights" else sum(book.nbytes for book in self._books)

    def _fetch(self, ticket: int, source: Iterator[tuple[str, Any]]) -> Fetched:
        failure, self.fail_fetch = self.fail_fetch, None
        if failure is not None:
            return Fetched(ticket, error=failure)
        try:
            return Fetched(ticket, tuple((name, np.asarray(value).copy()) for name, value in islice(source, CHUNK)))
        except Exception as error:  # noqa: BLE001 - the source's own
            return Fetched(ticket, error=error)

    def _write(self, pairs: Sequence[tuple[str, Any]]) -> WeightsWritten:
        failure, self.fail_write = self.fail_write, None
        for name, value in pairs[: len(pairs) // 2] if failure else pairs:
            array = np.asarray(value)
            head = f"{name} {array.dtype} {array.shape}\n".encode()
            self.tensors[name] = hashlib.sha256(head + array.tobytes()).hexdigest()
        return WeightsWritten(failure)

    def _sum_up(self, ticket: int) -> Checksum:
        if self.places["weights"] != "here":
            return Checksum(ticket, error=RuntimeError(f"the weights are {self.places['weights']}"))
        return Checksum(ticket, self.digest)

    @property
    def digest(self) -> str:
        """A function of what was written, in whatever order."""
        return hashlib.sha256(repr(sorted(self.tensors.items())).encode()).hexdigest()

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
    total = int((mixed * weight).sum()) & MASK
    return 3 + splitmix64(total ^ key) % (vocab_size - 3)


def true_tokens(prompt: Sequence[int], count: int, vocab_size: int, key: int = 0, version: int = 0) -> list[int]:
    """What an undisturbed request is answered: the truth that no block table has touched."""
    tokens = list(prompt)
    for _ in range(count):
        context = np.array(tokens, np.int64)
        tokens.append(answer(context, np.arange(len(tokens)), np.full(len(tokens), version, np.int64), key, vocab_size))
    return tokens[len(prompt) :]
