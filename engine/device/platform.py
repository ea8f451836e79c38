"""What the CUDA device stands on: streams, events, graphs, operators and the driver, so that all else runs without a GPU, too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from quiesce.engine.device.cuda_memory import Driver
from quiesce.kernels.gpu.operators import Operators


class Event(Protocol):
    """A point in the device's work."""

    def record(self) -> None:
        """Stands now behind all work given to the device so far."""

    def synchronize(self) -> None:
        """Waits until the device has come to it; raises what went wrong on the way."""


class Platform(Protocol):
    """One device. Work of one thread, inside `entered`, runs in the order it is given; events may be waited for anywhere."""

    @property
    def device(self) -> torch.device:
        """Where tensors are made."""

    @property
    def operators(self) -> Operators:
        """Kernels, or their truths."""

    @property
    def driver(self) -> Driver:
        """Of the device's memory."""

    def entered(self) -> AbstractContextManager[object]:
        """Surrounds all work of the thread that works with the device."""

    def alone(self, go_on: Callable[[], None]) -> AbstractContextManager[object]:
        """Surrounds moves of memory: one engine at a time moves memory of this device. What `go_on` raises ends the wait for it."""

    def copy(self, out: Tensor, source: Tensor) -> None:
        """Copies between host and device, behind the work given so far. Pinned memory may be read or written until an event later on."""

    def run(self, work: Callable[[], None]) -> None:
        """Gives the device work of the operators, behind the work given so far."""

    def event(self) -> Event:
        """A new one, not recorded."""

    def synchronize(self) -> None:
        """Waits until the device is idle."""

    def settle(self) -> None:
        """Waits until the device is idle and gives back memory that was only kept to be used again."""

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Does the work once, then records it: calling the result does it again, over the same tensors.

        Raises:
            RuntimeError: it cannot be recorded.
        """
