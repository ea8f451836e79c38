"""What devices share: one worker thread, one queue, and the promises that callers keep. What computes is a runner of their own."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum, auto
from queue import SimpleQueue
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.memory import block_spans
from quiesce.engine.device.runner import Landed
from quiesce.engine.device.spill import Span
from quiesce.engine.device.weight_update import checksum, take_chunk, write_pairs
from quiesce.engine.device.weights import Weights
from quiesce.engine.messages import Checksum, Completion, Fetched, Loaded, Moved, StepInput, StepOutput, WeightsWritten
from quiesce.spec.vocabulary import Policy, Tag
from quiesce.statemachine.effects import Effect, LaunchStep, LoadWeights, Map, Unmap

logger = logging.getLogger("quiesce.device")
CLOSE_TIMEOUT_S = 5.0
"""How long `close` waits for the running step. One that takes longer has failed the engine already; shutdown must not hang on it."""
DEPTH = 2
"""Steps launched and not polled, at most."""


class Place(Enum):
    """Where a tag's memory is, as far as the caller has been told."""

    here = auto()
    moving = auto()
    away = auto()


class TagMemory(Protocol):
    """Whether a tag's memory is here, and where its content waits meanwhile."""

    mapped: bool

    def release(self, spans: Sequence[Span] | None, go_on: Callable[[], None]) -> int:
        """Gives the memory back and keeps the content of these spans, or none. Bytes that were given back."""

    def restore(self, go_on: Callable[[], None]) -> int:
        """Takes the memory again, with the content that was kept. Bytes that were taken."""

    def zero(self) -> None:
        """Makes every byte zero."""

    def close(self) -> None:
        """Drops what was kept. Idempotent."""


class DeviceRunner(Protocol):
    """What computes steps: the model over its arenas. One thread calls it."""

    kv: Tensor
    """[layers, 2, num_blocks + 1, ...]"""

    @property
    def weights(self) -> Weights:
        """The weights as checkpoints have them, good until the next step."""

    def residences(self) -> Mapping[Tag, TagMemory]:
        """The memory under each tag."""

    def poison(self, blocks: NDArray[np.int64]) -> None:
        """Fills blocks of every layer with NaN."""

    def close(self) -> None:
        """Gives all memory back. Idempotent."""


R = TypeVar("R", bound=DeviceRunner)


class WorkerDevice(ABC, Generic[R]):
    """`messages.Device`, but for what computes.

    Work is done in the order it was asked for: all of it shares one queue. A broken promise of the caller (a third step, a step
    before `load`, after `close` or while memory is away) raises at once.

    Args:
        config: dtype, block size, limits.
        info: the checkpoint.
        num_blocks: KV blocks of the pool.
        before_step: called with the step's number on the worker thread just before it runs; tests stall there.
        progress: show a bar while loading, on a terminal.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        config: EngineConfig,
        info: ModelInfo,
        num_blocks: int,
        *,
        before_step: Callable[[int], None] | None = None,
        progress: bool = True,
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, config.block_size
        self._config, self._info, self._progress = config, info, progress
        self._before_step = before_step
        self._wake: Callable[[], None] = lambda: None
        self._runner: R | None = None
        self._work: SimpleQueue[Callable[[], Completion | None] | None] = SimpleQueue()
        self._done: deque[Completion] = deque()
        self._lock = threading.Lock()
        self._launched = 0
        self._places = dict.fromkeys(Tag, Place.here)
        self._policies: dict[Tag, Policy] = {}
        self._residences: Mapping[Tag, TagMemory] = {}
        self._poison_error: Exception | None = None
        self._loading = self._closing = False
        self._thread = threading.Thread(target=self._serve, name=f"quiesce-{self.kind}-device", daemon=True)

    @abstractmethod
    def _make_runner(self) -> R:
        """The model, loaded. Called on the worker thread."""

    @abstractmethod
    def _begin(self, step: StepInput) -> StepOutput | None:
        """Computes a step, or sets it going and reports it later. Raises nothing: what goes wrong is the step's error."""

    def _inside(self) -> AbstractContextManager[object]:
        """What surrounds all work."""
        return torch.inference_mode()

    def _finish(self) -> None:
        """Ends what steps that were set going still do, before their memory goes."""

    def _ask(self, work: Callable[[], Completion | None]) -> None:
        """Queues work that is no step."""
        self._work.put(work)

    def bind(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def load(self) -> None:
        if self._loading or self._closing:
            raise RuntimeError("load is called once, before close")
        self._loading = True
        self._at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        atexit.register(self._at_exit)
        self._work.put(self._load)
        self._thread.start()

    def launch(self, effect: LaunchStep, step: StepInput) -> None:
        if effect.subject != step.step:
            raise RuntimeError(f"step {step.step} was launched by the effect of step {effect.subject}")
        with self._lock:
            if self._closing or not self._loading:
                raise RuntimeError(f"step {step.step} was launched while the device is not loaded")
            if self._launched >= DEPTH:
                raise RuntimeError(f"step {step.step} was launched while {DEPTH} steps are launched and not polled")
            if away := [tag for tag, place in self._places.items() if place is not Place.here]:
                raise RuntimeError(f"step {step.step} was launched while {' and '.join(away)} are away")
            self._launched += 1
        self._work.put(lambda: self._begin(step))

    def poll(self) -> list[Completion]:
        with self._lock:
            done = list(self._done)
            self._done.clear()
            self._launched -= sum(isinstance(completion, StepOutput) for completion in done)
            for completion in done:
                if isinstance(completion, Moved) and completion.to != "zeroed":
                    left = (completion.to == "released") == (completion.error is None)
                    self._places[Tag(completion.tag)] = Place.away if left else Place.here
        return done

    def unmap(self, effect: Unmap, tag: str, policy: str, blocks: Sequence[int]) -> None:
        what, kept = Tag(tag), np.unique(np.array(blocks, np.int64))
        if what is Tag.kv_cache and len(kept) and not 0 <= kept[0] <= kept[-1] < self.num_blocks:
            raise ValueError(f"blocks to keep must be in 0..{self.num_blocks - 1}")
        if policy not in (Policy.offload, Policy.discard):
            raise ValueError(f"policy {policy!r} is none under which memory leaves")
        self._set_out(effect, what, Place.here)
        self._policies[what] = Policy(policy)
        self._ask(lambda: self._unmap(what, Policy(policy), kept))

    def map(self, effect: Map, tag: str, policy: str) -> None:
        what = Tag(tag)
        if policy != self._policies.get(what):
            raise RuntimeError(f"{what} is mapped under {policy!r}; it left under {self._policies.get(what)}")
        self._set_out(effect, what, Place.away)
        self._ask(lambda: self._map(what, Policy(policy)))

    def fetch(self, ticket: int, source: Iterator[tuple[str, Any]]) -> None:
        self._require_loaded("weights were fetched")
        self._ask(lambda: self._fetch(ticket, source))

    def load_weights(self, effect: LoadWeights, pairs: Sequence[tuple[str, Any]]) -> None:
        self._require_loaded("weights were written")
        self._ask(lambda: self._write(pairs))

    def checksum(self, ticket: int) -> None:
        self._require_loaded("a checksum was asked for")
        self._ask(lambda: self._checksum(ticket))

    def poison(self, blocks: Sequence[int]) -> None:
        self._require_loaded("blocks were poisoned")
        if self._places[Tag.kv_cache] is not Place.here:
            raise RuntimeError("blocks were poisoned while their memory is away")
        freed = np.array(blocks, np.int64)
        self._ask(lambda: self._poison(freed))

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._done.clear()
        if self._loading:
            atexit.unregister(self._at_exit)
            self._work.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                logger.error("the device's work does not end; its memory stays mapped until the process ends")

    def _require_loaded(self, what: str) -> None:
        if self._closing or not self._loading:
            raise RuntimeError(f"{what} while the device is not loaded")

    def _set_out(self, effect: Effect, tag: Tag, place: Place) -> None:
        """The tag begins to move, from where it must be."""
        if effect.subject != list(Tag).index(tag):
            raise RuntimeError(f"{tag} was moved by the effect of tag {effect.subject}")
        with self._lock:
            self._require_loaded(f"{tag} was moved")
            if self._places[tag] is not place:
                raise RuntimeError(f"{tag} was moved while it is {self._places[tag].name}, not {place.name}")
            self._places[tag] = Place.moving

    def _go_on(self) -> None:
        """Ends long work between two pieces of it, once the device closes. Nothing is reported then."""
        if self._closing:
            raise RuntimeError("the device is closing")

    def _serve(self) -> None:
        """The worker: until closed, one piece of work after the other; then the memory goes."""
        with self._inside():
            while (work := self._work.get()) is not None and not self._closing:
                completion = work()
                del work  # it holds the step's arrays
                if completion is not None:
                    self._report(completion)
            self._finish()
            for residence in self._residences.values():
                residence.close()
            if self._runner is not None:
                self._runner.close()
                self._runner = None

    def _report(self, completion: Completion) -> None:
        with self._lock:
            if self._closing:
                return
            self._done.append(completion)
        self._wake()

    def _load(self) -> Loaded:
        try:
            runner = self._runner = self._make_runner()
            self._residences = runner.residences()
        except Exception as error:  # noqa: BLE001 - whatever it is, the control plane decides what it means
            return Loaded(error)
        return Loaded()

    def _ready(self, step: StepInput) -> R:
        """The runner, when the step may run; raises what keeps it from that."""
        if self._before_step is not None:
            self._before_step(step.step)
        runner = self._present(*Tag)
        if self._poison_error is not None:
            raise self._poison_error
        return runner

    def _present(self, *tags: Tag) -> R:
        """The runner, whose memory under these tags is here. A touch of what is away would bring it back as zeros, unseen."""
        if self._runner is None:
            raise RuntimeError("the device did not load")
        if away := [tag for tag in tags if not self._residences[tag].mapped]:
            raise RuntimeError(f"the memory of {' and '.join(away)} is away")
        return self._runner

    def _unmap(self, tag: Tag, policy: Policy, blocks: NDArray[np.int64]) -> Moved:
        try:
            runner = self._present(tag)
            num_bytes = (
                runner.weights.arena.num_bytes if tag is Tag.weights else 0
            )  # whatever form they have, they are put back
            spans = None
            if policy is Policy.offload:
                spans = [(0, num_bytes)] if tag is Tag.weights else block_spans(runner.kv, blocks)
            num_bytes = self._residences[tag].release(spans, self._go_on)
        except Exception as error:  # noqa: BLE001 - rolled back; the control plane decides what it means
            return Moved(tag, "released", error=error)
        return Moved(tag, "released", num_bytes)

    def _map(self, tag: Tag, policy: Policy) -> Moved:
        to = "restored"
        try:
            num_bytes = self._residences[tag].restore(self._go_on)
            if tag is Tag.weights or policy is Policy.offload:
                return Moved(tag, to, num_bytes)
            self._report(Moved(tag, to, num_bytes))
            to = "zeroed"
            self._residences[tag].zero()
        except Exception as error:  # noqa: BLE001 - rolled back; the control plane decides what it means
            return Moved(tag, to, error=error)
        return Moved(tag, to)

    def _fetch(self, ticket: int, source: Iterator[tuple[str, Any]]) -> Fetched:
        try:
            return Fetched(ticket, take_chunk(source, self._go_on))
        except Exception as error:  # noqa: BLE001 - it is the source's, and its caller's to hear
            return Fetched(ticket, error=error)
        except BaseException as error:  # noqa: BLE001 - the source would end this thread
            return Fetched(ticket, error=RuntimeError(f"the source of weights raised {error!r}"))

    def _write(self, pairs: Sequence[tuple[str, Any]]) -> WeightsWritten:
        try:
            write_pairs(self._present(Tag.weights).weights, pairs, self._go_on)
        except Exception as error:  # noqa: BLE001 - the control plane decides what it means
            return WeightsWritten(error)
        return WeightsWritten()

    def _checksum(self, ticket: int) -> Checksum:
        try:
            return Checksum(ticket, checksum(self._present(Tag.weights).weights, self._go_on))
        except Exception as error:  # noqa: BLE001 - its caller's to hear
            return Checksum(ticket, error=error)

    def _poison(self, blocks: NDArray[np.int64]) -> None:
        """Poisoning reports nothing, so that what goes wrong in it fails the next step."""
        try:
            if self._runner is not None:
                self._present(Tag.kv_cache).poison(blocks)
        except Exception as error:  # noqa: BLE001 - see above
            self._poison_error = error


def failed(step: StepInput, error: Exception, started_s: float) -> StepOutput:
    """A step that landed with an error."""
    none = np.full(len(step.rows), -1, np.int64)
    return StepOutput(step.step, step.epoch, none, error=error, started_s=started_s, ended_s=time.perf_counter())


def landed(step: StepInput, found: Landed, started_s: float, ended_s: float) -> StepOutput:
    """A step that gave this."""
    return StepOutput(
        step.step,
        step.epoch,
        found.token_ids,
        found.faults,
        found.logprobs,
        found.prompt_logprobs,
        started_s=started_s,
        ended_s=ended_s,
    )


def _close_at_exit(device: weakref.ref[WorkerDevice[Any]]) -> None:
    """A process that leaves without a shutdown: the worker must be out of torch before the interpreter goes."""
    alive = device()
    if alive is not None:
        alive.close()
