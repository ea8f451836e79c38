"""The CPU device: one worker thread, one queue. Steps really are in flight while the control plane plans the next one."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np
import torch

from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.runner import Runner
from quiesce.engine.messages import Completion, Loaded, StepInput, StepOutput
from quiesce.statemachine.effects import LaunchStep

logger = logging.getLogger("quiesce.device")
CLOSE_TIMEOUT_S = 5.0
"""How long `close` waits for the running step. One that takes longer has failed the engine already; shutdown must not hang on it."""
DEPTH = 2
"""Steps launched and not polled, at most."""


class CpuDevice:
    """`messages.Device` in plain torch.

    Work is done in the order it was asked for: load, steps and poisonings share one queue. A broken promise of the caller
    (a third step, a step before `load` or after `close`) raises at once.

    Args:
        config: dtype, block size, limits.
        info: the checkpoint.
        num_blocks: KV blocks of the pool.
        before_step: called with the step's number on the worker thread just before it runs; tests stall there.
        progress: show a bar while loading, on a terminal.
    """

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
        self._runner: Runner | None = None
        self._work: SimpleQueue[Callable[[], Completion | None] | None] = SimpleQueue()
        self._done: deque[Completion] = deque()
        self._lock = threading.Lock()
        self._launched = 0
        self._poison_error: Exception | None = None
        self._loading = self._closing = False
        self._thread = threading.Thread(target=self._serve, name="quiesce-cpu-device", daemon=True)

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
            self._launched += 1
        self._work.put(lambda: self._step(step))

    def poll(self) -> list[Completion]:
        with self._lock:
            done = list(self._done)
            self._done.clear()
            self._launched -= sum(isinstance(completion, StepOutput) for completion in done)
        return done

    def poison(self, blocks: Sequence[int]) -> None:
        if self._closing or not self._loading:
            raise RuntimeError("blocks were poisoned while the device is not loaded")
        freed = np.array(blocks, np.int64)
        self._work.put(lambda: self._poison(freed))

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._done.clear()
        if self._loading:
            atexit.unregister(self._at_exit)
            self._work.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                logger.error("a device step does not end; its memory stays mapped until the process ends")

    def _serve(self) -> None:
        """The worker: until closed, one piece of work after the other; then the memory goes."""
        with torch.inference_mode():
            while (work := self._work.get()) is not None and not self._closing:
                completion = work()
                del work  # it holds the step's arrays
                if completion is not None:
                    self._report(completion)
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
            if self._config.num_threads is not None:
                torch.set_num_threads(self._config.num_threads)
            self._runner = Runner(self._config, self._info, self.num_blocks, self._progress)
        except Exception as error:  # noqa: BLE001 - whatever it is, the control plane decides what it means
            return Loaded(error)
        return Loaded()

    def _step(self, step: StepInput) -> StepOutput:
        started = time.perf_counter()
        try:
            if self._before_step is not None:
                self._before_step(step.step)
            if self._runner is None:
                raise RuntimeError("the device did not load")
            if self._poison_error is not None:
                raise self._poison_error
            landed = self._runner.run(step)
        except Exception as error:  # noqa: BLE001 - the step lands with it
            none = np.full(len(step.rows), -1, np.int64)
            return StepOutput(step.step, step.epoch, none, error=error, started_s=started, ended_s=time.perf_counter())
        return StepOutput(
            step.step,
            step.epoch,
            landed.token_ids,
            landed.faults,
            landed.logprobs,
            landed.prompt_logprobs,
            started_s=started,
            ended_s=time.perf_counter(),
        )

    def _poison(self, blocks: np.typing.NDArray[np.int64]) -> None:
        """Poisoning reports nothing, so that what goes wrong in it fails the next step."""
        try:
            if self._runner is not None:
                self._runner.poison(blocks)
        except Exception as error:  # noqa: BLE001 - see above
            self._poison_error = error


def _close_at_exit(device: weakref.ref[CpuDevice]) -> None:
    """A process that leaves without a shutdown: the worker must be out of torch before the interpreter goes."""
    alive = device()
    if alive is not None:
        alive.close()
