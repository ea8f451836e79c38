"""The plain messages between the control plane and a device, and the device's interface. No torch here.

A device runs steps in the order they were launched, one after the other, and up to two may be launched and not landed. All arrays
of a step belong to the device from `launch` on: the control plane never writes to them again.

Shapes: R = requests in the step, T = tokens in the step (the sum of `counts`), B = the longest block table of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiesce.statemachine.effects import LaunchStep, LoadWeights, Map, Unmap

FROM_DEVICE = -1
"""In `StepInput.token_ids`: this token is the one the row sampled in the step launched before; take it from device memory."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What one request of a step wants beyond temperature, top-k, top-p and min-p. Rare, hence sparse."""

    index: int
    """Which request of the step, into `rows`."""
    history: NDArray[np.int64] | None = None
    """[tokens] prompt and output so far, the prompt first; given where a penalty is not neutral or prompt logprobs are asked for."""
    num_prompt_tokens: int = 0
    repetition_penalty: float = 1.0
    """Over prompt and output: positive logits are divided by it, others multiplied (Keskar et al. 2019, as transformers and vLLM do)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Over the output alone: logits less presence·[count > 0] less frequency·count (OpenAI)."""
    bias_ids: NDArray[np.int64] | None = None
    bias: NDArray[np.float32] | None = None
    """[n] token ids and what is added to their logits."""
    banned_ids: NDArray[np.int64] | None = None
    """[n] token ids that cannot be sampled in this step (`min_tokens`)."""
    num_logprobs: int | None = None
    """How many most likely tokens to report beside the sampled one; None: no logprobs, -1: the whole vocabulary."""
    num_prompt_logprobs: int | None = None
    """The same for every prompt position computed in this step but the first of the prompt."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities at one position, of the model's own distribution (before temperature and masks)."""

    token_ids: tuple[int, ...]
    """The token that stands there first, then the most likely ones, most likely first."""
    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]
    """1 is the most likely token."""


@dataclass(slots=True)
class StepInput:
    """One device step over R requests: chunks of prompts and single decode tokens alike."""

    step: int
    """Step number, strictly increasing over the life of the engine."""
    epoch: int
    """The engine's epoch at launch; a result of an older epoch is dropped."""
    version: int
    """Weight version the step computes under."""
    rows: NDArray[np.int32]
    """[R] batch row of each request, 0 <= row < max_num_seqs, distinct. Per-row device state is indexed by it."""
    starts: NDArray[np.int32]
    """[R] first position (0-based, in tokens of the request) computed in this step; all positions before hold valid KV."""
    counts: NDArray[np.int32]
    """[R] positions computed in this step, >= 1."""
    token_ids: NDArray[np.int64]
    """[T] input ids, request after request; `FROM_DEVICE` only for a chunk of one token."""
    block_tables: NDArray[np.int32]
    """[R, B] physical block of each logical block, -1 where the request holds none."""
    samples: NDArray[np.bool_]
    """[R] whether a token is sampled from the last position of the chunk."""
    temperature: NDArray[np.float32]
    """[R] 0 is greedy."""
    top_k: NDArray[np.int32]
    """[R] 0 keeps all tokens."""
    top_p: NDArray[np.float32]
    """[R] 1 keeps all tokens."""
    min_p: NDArray[np.float32]
    """[R] 0 keeps all tokens."""
    noise_keys: NDArray[np.uint64]
    """[R] key of the request's sampling noise: a function of (seed, child index). The noise of a sampled token is a function of this
    key and its position (`starts + counts`) alone, never of the batch."""
    adjustments: tuple[Adjustment, ...] = ()
    """At most one for each request, by rising index. A request with a history is only planned when all its tokens are known here."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step that landed."""

    step: int
    epoch: int
    token_ids: NDArray[np.int64]
    """[R] the sampled token of each request, -1 where none was asked for or the row is faulty."""
    faults: tuple[tuple[int, str], ...] = ()
    """(index into rows, what was wrong) for a request whose own work failed, such as logits that are not finite."""
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()
    """(index into rows, logprobs of its sampled token)"""
    prompt_logprobs: tuple[tuple[int, int, TokenLogprobs], ...] = ()
    """(index into rows, position of the prompt token, its logprobs)"""
    error: Exception | None = None
    """The step as a whole failed; the device's content is not to be trusted."""
    started_s: float = 0.0
    ended_s: float = 0.0
    """When the device began and ended the step, `time.perf_counter` seconds."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The device finished loading: ready, or failed for good with `error`."""

    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """A tag's arena has left, has come back, or could not. `error`: rolled back, nothing has changed, and it may be asked again."""

    tag: str
    to: str
    """`released` (after `unmap`), `restored` (after `map`), or `zeroed` (after `restored`, of KV that was discarded)."""
    num_bytes: int = 0
    """Of memory given back, or taken again: measured on the process, not computed."""
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The next tensors of a source of weights. No pairs and no error: the source has no more."""

    ticket: int
    pairs: tuple[tuple[str, Any], ...] = ()
    """(name, tensor); a tensor has `shape` and `dtype`."""
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class WeightsWritten:
    """A chunk of new weights is in place, or failed half-way."""

    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Checksum:
    """What is loaded, as a hexadecimal digest: of the tensors by name, in the type they are kept in."""

    ticket: int
    digest: str = ""
    error: Exception | None = None


Completion = StepOutput | Loaded | Moved | Fetched | WeightsWritten | Checksum


class Device(Protocol):
    """What the control plane asks of a device. Every call returns at once; work is reported by `poll`.

    `wake` is called (from any thread) whenever a completion can be polled.
    """

    num_blocks: int
    block_size: int

    def bind(self, wake: Callable[[], None]) -> None:
        """Names the function to call when something completed. Called once, before `load`."""

    def load(self) -> None:
        """Starts loading the weights and mapping the arenas; a `Loaded` follows."""

    def launch(self, effect: LaunchStep, step: StepInput) -> None:
        """Queues a step. `effect.subject == step.step`. At most two steps are launched and not polled."""

    def unmap(self, effect: Unmap, tag: str, policy: str, blocks: Sequence[int]) -> None:
        """Gives a tag's memory back; a `Moved` follows. `offload` keeps its content elsewhere, `discard` does not.

        `blocks`: those of the KV that somebody holds or may find; the content of the others need not be kept.
        """

    def map(self, effect: Map, tag: str, policy: str) -> None:
        """Takes the memory again, at the same addresses; a `Moved` follows. Under `offload` with its content.

        KV that was discarded is zeroed without being asked: a second `Moved` says so.
        """

    def fetch(self, ticket: int, source: Iterator[tuple[str, Any]]) -> None:
        """Takes the next tensors from a source, as many as make a chunk; a `Fetched` follows. Writes nothing."""

    def load_weights(self, effect: LoadWeights, pairs: Sequence[tuple[str, Any]]) -> None:
        """Converts tensors, whose names and shapes are known to fit, and writes them; a `WeightsWritten` follows."""

    def checksum(self, ticket: int) -> None:
        """Sums up the weights as they are; a `Checksum` follows."""

    def poll(self) -> list[Completion]:
        """What completed since the last call, in order."""

    def poison(self, blocks: Sequence[int]) -> None:
        """Fills freed blocks with NaN (or the device's like), after the steps launched so far. Used by tests and debugging."""

    def close(self) -> None:
        """Waits for the running step, then gives all memory back. No completion is reported afterwards. Idempotent."""
