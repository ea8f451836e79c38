"""The CPU device. Steps really are in flight, on the worker thread, while the control plane plans the next one."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from quiesce.engine.device.memory import Residence
from quiesce.engine.device.runner import Runner
from quiesce.engine.device.worker import WorkerDevice, failed, landed
from quiesce.engine.messages import StepInput, StepOutput
from quiesce.spec.vocabulary import Tag


class CpuDevice(WorkerDevice[Runner]):
    """`messages.Device` in plain torch."""

    kind = "cpu"
    _residences: Mapping[Tag, Residence]

    def _make_runner(self) -> Runner:
        if self._config.num_threads is not None:
            torch.set_num_threads(self._config.num_threads)
        return Runner(self._config, self._info, self.num_blocks, self._progress)

    def _begin(self, step: StepInput) -> StepOutput:
        return self._step(step)

    def _step(self, step: StepInput) -> StepOutput:
        started_s = time.perf_counter()
        try:
            return landed(step, self._ready(step).run(step), started_s, time.perf_counter())
        except Exception as error:  # noqa: BLE001 - the step lands with it
            return failed(step, error, started_s)
