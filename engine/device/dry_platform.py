"""The CUDA device's ground without a GPU: the operators' plain torch truths, graphs that are done again, and memory of the host.

For dry runs and tests. Everything above it is the code that runs on a GPU. Memory that is not mapped cannot be touched, and memory
that is mapped anew holds rubbish, as on a device.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from quiesce.engine.device.cuda_memory import DriverError
from quiesce.engine.device.platform import Event
from quiesce.kernels.gpu.operators import TRUTHS, Operators

RUBBISH = 0xFF
"""NaN in every floating-point type."""
PROT_NONE, PROT_READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
MAP_FIXED = 0x10
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


class HostDriver:
    """`cuda_memory.Driver` over pages of this process. It keeps book, and refuses what CUDA refuses.

    Args:
        total_bytes: memory of the device.
    """

    def __init__(self, total_bytes: int = 1 << 40, granularity: int = mmap.PAGESIZE) -> None:
        self.granularity = granularity
        self.total_bytes = total_bytes
        self.ranges: dict[int, int] = {}
        """Address and bytes of what is reserved."""
        self.handles: dict[int, int] = {}
        """Bytes of each piece of memory."""
        self.mapped: dict[int, tuple[int, int]] = {}
        """Address to bytes and handle."""
        self.accessible: set[int] = set()
        self.pinned: set[int] = set()
        self._numbers = itertools.count(1)

    def reserve(self, num_bytes: int) -> int:
        address = self._pages(None, num_bytes, PROT_NONE)
        self.ranges[address] = num_bytes
        return address

    def free_range(self, address: int, num_bytes: int) -> None:
        self._require("cuMemAddressFree", self.ranges.get(address) == num_bytes)
        self._require("cuMemAddressFree", not any(address <= begin < address + num_bytes for begin in self.mapped))
        _LIBC.munmap(address, num_bytes)
        del self.ranges[address]

    def create(self, num_bytes: int) -> int:
        self._require("cuMemCreate", num_bytes % self.granularity == 0)
        if num_bytes > self.free_bytes():
            raise DriverError("cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY")
        handle = next(self._numbers)
        self.handles[handle] = num_bytes
        return handle

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        self._require("cuMemMap", address not in self.mapped and self.handles.get(handle) == num_bytes)
        self._require("cuMemMap", handle not in [used for _, used in self.mapped.values()])
        self.mapped[address] = (num_bytes, handle)

    def allow_access(self, address: int, num_bytes: int) -> None:
        inside = {begin: size for begin, (size, _) in self.mapped.items() if address <= begin < address + num_bytes}
        self._require("cuMemSetAccess", sum(inside.values()) == num_bytes)
        for begin, size in inside.items():
            if begin not in self.accessible:
                self.accessible.add(begin)
                self._pages(begin, size, PROT_READ_WRITE)
                _LIBC.memset(begin, RUBBISH, size)

    def unmap(self, address: int, num_bytes: int) -> None:
        self._require("cuMemUnmap", self.mapped.get(address, (0, 0))[0] == num_bytes)
        self._pages(address, num_bytes, PROT_NONE)
        del self.mapped[address]
        self.accessible.discard(address)

    def release(self, handle: int) -> None:
        self._require("cuMemRelease", handle in self.handles)
        del self.handles[handle]

    def free_bytes(self) -> int:
        return self.total_bytes - sum(self.handles.values())

    def pin(self, address: int, num_bytes: int) -> None:
        self._require("cuMemHostRegister", address not in self.pinned)
        self.pinned.add(address)

    def unpin(self, address: int) -> None:
        self._require("cuMemHostUnregister", address in self.pinned)
        self.pinned.remove(address)

    def _require(self, call: str, holds: bool) -> None:
        if not holds:
            raise DriverError(f"{call}: CUDA_ERROR_INVALID_VALUE")

    def _pages(self, address: int | None, num_bytes: int, protection: int) -> int:
        """Fresh pages, at an address or where there is room."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (0 if address is None else MAP_FIXED)
        found: int = _LIBC.mmap(address, num_bytes, protection, flags, -1, 0)
        if found in (None, ctypes.c_void_p(-1).value):
            raise DriverError(f"cuMemAddressReserve: errno {ctypes.get_errno()}")
        return found


class Done:
    """`platform.Event`: where work is done as it is given, every point has been reached."""

    def record(self) -> None:
        """Nothing is on its way."""

    def synchronize(self) -> None:
        """Nothing is to be waited for."""


class DryPlatform:
    """`platform.Platform` on the CPU.

    Args:
        driver: of its memory.
        operators: the truths, or the kernels themselves where Triton interprets them.
    """

    def __init__(self, driver: HostDriver | None = None, operators: Operators = TRUTHS) -> None:
        self.device = torch.device("cpu")
        self.operators = operators
        self.driver = driver or HostDriver()

    def entered(self) -> AbstractContextManager[object]:
        return torch.inference_mode()

    def alone(self, go_on: Callable[[], None]) -> AbstractContextManager[object]:
        return nullcontext()  # each has memory of its own

    def copy(self, out: Tensor, source: Tensor) -> None:
        out.copy_(source)

    def run(self, work: Callable[[], None]) -> None:
        work()

    def event(self) -> Event:
        return Done()

    def synchronize(self) -> None:
        """Nothing is on its way."""

    def settle(self) -> None:
        """Nothing is kept."""

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work


class LazyPlatform(DryPlatform):
    """Does its work as late as a GPU may: when somebody waits for it. Pinned memory written or read too early shows."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._queue: deque[Callable[[], object]] = deque()
        self.num_given = self.num_done = 0

    def copy(self, out: Tensor, source: Tensor) -> None:
        self.run(functools.partial(out.copy_, source))

    def run(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._queue.append(work)
            self.num_given += 1

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        self.synchronize()
        return super().captured(work)

    def event(self) -> Event:
        return _Point(self)

    def synchronize(self) -> None:
        self.catch_up(self.num_given)

    def settle(self) -> None:
        self.synchronize()

    def catch_up(self, number: int) -> None:
        """Does work, in order, until so much of it is done."""
        with self._lock:
            while self.num_done < number:
                self._queue.popleft()()
                self.num_done += 1


class _Point:
    def __init__(self, platform: LazyPlatform) -> None:
        self._platform, self._place = platform, 0

    def record(self) -> None:
        self._place = self._platform.num_given

    def synchronize(self) -> None:
        self._platform.catch_up(self._place)
