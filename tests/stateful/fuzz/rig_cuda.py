"""The CUDA device in the deterministic loop: launching a step and its landing are two things that may happen,
and the device does its work when it lands.

Without a GPU it is on a dry platform: its own code, over the host's memory, with plain torch in the place of its kernels.

Tokens are held against the same request alone on the CPU device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from quiesce.engine.api import AsyncEngine
from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cuda import CudaDevice, Launched, Waiter
from quiesce.engine.device.dry_platform import LazyPlatform
from quiesce.engine.device.platform import Platform
from quiesce.stateful.fuzz.loop_device import WORK, InLoop, real_engine
from quiesce.stateful.fuzz.rig_cpu import CpuRig
from quiesce.stateful.loop import DeterministicLoop


class _LoopPlatform(LazyPlatform):
    def entered(self) -> AbstractContextManager[object]:
        return nullcontext()  # the loop surrounds each piece of work by itself

    def catch_up(self, number: int) -> None:
        import torch

        with torch.inference_mode():
            super().catch_up(number)


def _platform() -> Platform:
    import torch

    if not torch.cuda.is_available():
        return _LoopPlatform()
    from quiesce.engine.device.cuda_platform import CudaPlatform

    return CudaPlatform(batch_invariant=True)


class _LoopWaiter(Waiter):
    """Each landing is something that may happen from outside."""

    def __init__(self, land: Callable[[Launched], None], loop: DeterministicLoop) -> None:
        self._land, self._loop = land, loop
        self._on_the_way: deque[Launched] = deque()

    def put(self, launched: Launched) -> None:
        self._on_the_way.append(launched)
        self._loop.offer(WORK, self._land_next, channel="device landing")

    def _land_next(self) -> None:
        if self._on_the_way:  # work that is no step may have waited for it already
            self._land(self._on_the_way.popleft())

    def drain(self) -> None:
        while self._on_the_way:
            self._land_next()

    def stop(self) -> None:
        self.drain()


class LoopCudaDevice(InLoop, CudaDevice):
    """`CudaDevice` in the loop."""

    def __init__(self, config: EngineConfig, info: ModelInfo, num_blocks: int, loop: DeterministicLoop) -> None:
        super().__init__(config, info, num_blocks, _platform, progress=False)
        self.live_in(loop)
        self._loop = loop

    def _make_waiter(self) -> Waiter:
        return _LoopWaiter(self._land, self._loop)


class CudaRig(CpuRig):
    """A real engine over the CUDA device."""

    def _make(self, folder: Path, settings: Mapping[str, Any]) -> AsyncEngine:
        engine, self.device_in_loop = real_engine(folder, self.loop, settings, LoopCudaDevice)
        return engine
