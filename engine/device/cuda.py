"""The CUDA device. The worker gives the device its next step while the one before is at it; a second thread waits for results."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from queue import Queue
from typing import Any

import torch

from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cuda_flight import Flight
from quiesce.engine.device.cuda_residence import VirtualResidence
from quiesce.engine.device.cuda_runner import CudaRunner
from quiesce.engine.device.platform import Platform
from quiesce.engine.device.worker import WorkerDevice, failed, landed
from quiesce.engine.messages import Completion, StepInput, StepOutput, WeightsWritten
from quiesce.spec.vocabulary import Tag


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that was launched, or could not be."""

    step: StepInput
    started_s: float
    flight: Flight | None
    error: Exception | None = None


class Waiter:
    """Lands steps in the order they were launched, on a thread of its own.

    Args:
        land: waits for a step and reports it; raises nothing.
    """

    def __init__(self, land: Callable[[Launched], None]) -> None:
        self._land = land
        self._queue: Queue[Launched | None] = Queue()
        self._thread = threading.Thread(target=self._serve, name="quiesce-cuda-waiter", daemon=True)
        self._thread.start()

    def put(self, launched: Launched) -> None:
        """Takes a step to wait for."""
        self._queue.put(launched)

    def drain(self) -> None:
        """Waits until every step taken so far is reported."""
        self._queue.join()

    def stop(self) -> None:
        """Ends the thread, after the steps taken so far."""
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        with torch.inference_mode():
            while (launched := self._queue.get()) is not None:
                self._land(launched)
                self._queue.task_done()


class CudaDevice(WorkerDevice[CudaRunner]):
    """`messages.Device` on a GPU, or on whatever `make_platform` makes.

    Work that is no step waits until the steps before it have landed, so that results come in the order that they were asked for.
    """

    kind = "cuda"
    _residences: Mapping[Tag, VirtualResidence]

    def __init__(
        self,
        config: EngineConfig,
        info: ModelInfo,
        num_blocks: int,
        make_platform: Callable[[], Platform],
        *,
        before_step: Callable[[int], None] | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(config, info, num_blocks, before_step=before_step, progress=progress)
        self._make_platform = make_platform
        self._stack = ExitStack()
        self._waiter: Waiter | None = None
        self._ended_s = 0.0

    @property
    def passes(self) -> Counter[str]:
        """How its passes were done so far (`CudaRunner.counts`)."""
        return Counter() if self._runner is None else self._runner.counts.copy()

    def _inside(self) -> AbstractContextManager[object]:
        return self._stack

    def _make_runner(self) -> CudaRunner:
        platform = self._make_platform()  # in this thread: memory is mapped into the context that is current
        self._stack.enter_context(platform.entered())
        runner = CudaRunner(self._config, self._info, self.num_blocks, platform, self._go_on, self._progress)
        self._waiter = self._make_waiter()
        return runner

    def _make_waiter(self) -> Waiter:
        return Waiter(self._land)

    def _begin(self, step: StepInput) -> StepOutput | None:
        started_s = time.perf_counter()
        launched: Launched
        try:
            runner = self._ready(step)
            started_s = time.perf_counter()
            launched = Launched(step, started_s, runner.launch(step))
        except Exception as error:  # noqa: BLE001 - the step lands with it
            launched = Launched(step, started_s, None, error)
        if self._waiter is None:  # it never loaded
            return failed(step, launched.error or RuntimeError("the device did not load"), started_s)
        self._waiter.put(launched)
        return None

    def _land(self, launched: Launched) -> None:
        """On the waiter's thread."""
        step = launched.step
        try:
            if launched.flight is None:
                raise launched.error or RuntimeError("the step was not launched")
            launched.flight.event.synchronize()
            found = launched.flight.read()
        except Exception as error:  # noqa: BLE001 - the step lands with it
            self._report(failed(step, error, launched.started_s))
            return
        started_s, self._ended_s = max(launched.started_s, self._ended_s), time.perf_counter()
        self._report(landed(step, found, started_s, self._ended_s))

    def _ask(self, work: Callable[[], Completion | None]) -> None:
        super()._ask(functools.partial(self._after_steps, work))

    def _after_steps(self, work: Callable[[], Completion | None]) -> Completion | None:
        if self._waiter is not None:
            self._waiter.drain()
        return work()

    def _write(self, pairs: Sequence[tuple[str, Any]]) -> WeightsWritten:
        """The copy in host memory follows, whatever became of the write."""
        written = super()._write(pairs)
        if self._runner is None or not self._residences[Tag.weights].mapped:
            return written
        try:
            self._runner.refresh_copy([name for name, _ in pairs])
        except Exception as error:  # noqa: BLE001 - the control plane decides what it means
            return WeightsWritten(written.error or error)
        return written

    def _finish(self) -> None:
        if self._waiter is not None:
            self._waiter.stop()
            self._waiter = None
