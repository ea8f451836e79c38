"""Content of device memory that waits in pinned host memory while the memory is away.

Of the weights there is such a copy from the start, so that they leave without being copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress

import torch
from torch import Tensor

from quiesce.engine.device.cuda_memory import CHUNK_BYTES, Driver, DriverError, VirtualArena
from quiesce.engine.device.memory import Arena, aligned
from quiesce.engine.device.spill import Span


class PinnedMemory:
    """Host memory that the device copies at full speed. Ours, not torch's: its allocator rounds up to powers of two and keeps all.

    Raises:
        DriverError: the system does not lock so much. Nothing is left behind.
    """

    __slots__ = ("_arena", "_driver", "bytes")

    def __init__(self, num_bytes: int, driver: Driver) -> None:
        self._driver, self._arena = driver, Arena(aligned(num_bytes, mmap.PAGESIZE))  # whole pages are locked
        self.bytes: Tensor = self._arena.view(0, (num_bytes,), torch.uint8)
        self._arena.prefer_large_pages()
        try:
            driver.pin(self.bytes.data_ptr(), self._arena.num_bytes)
        except BaseException:
            self._arena.close()
            raise

    def close(self) -> None:
        """Gives the memory back. Idempotent."""
        if not self._arena.closed:
            try:
                self._driver.unpin(self.bytes.data_ptr())
            finally:
                self.bytes = torch.empty(0, dtype=torch.uint8)
                self._arena.close()


class Copy:
    """Spans of an arena, one after the other in pinned memory.

    Raises:
        DriverError: the system does not lock so much. Nothing is left behind.
    """

    __slots__ = ("_spans", "memory")

    def __init__(self, spans: Sequence[Span], driver: Driver) -> None:
        self._spans = tuple(spans)
        self.memory = PinnedMemory(sum(end - begin for begin, end in spans), driver)

    def take(self, arena: VirtualArena, go_on: Callable[[], None]) -> None:
        """Copies from the arena. The device may still be at it afterwards."""
        for offset, begin, end in self._pieces():
            go_on()
            self.memory.bytes[offset : offset + end - begin].copy_(arena.bytes[begin:end], non_blocking=True)

    def give(self, arena: VirtualArena, go_on: Callable[[], None]) -> None:
        """Copies to the arena. The device may still be at it afterwards."""
        for offset, begin, end in self._pieces():
            go_on()
            arena.bytes[begin:end].copy_(self.memory.bytes[offset : offset + end - begin], non_blocking=True)

    def _pieces(self) -> list[tuple[int, int, int]]:
        """(place in the copy, begin, end) of each piece."""
        pieces, offset = [], 0
        for start, stop in self._spans:
            for begin in range(start, stop, CHUNK_BYTES):
                end = min(begin + CHUNK_BYTES, stop)
                pieces.append((offset, begin, end))
                offset += end - begin
        return pieces


class VirtualResidence:
    """Whether an arena's memory is here. Views of it stay valid throughout; while it is away the device must not touch them.

    Args:
        arena: the range.
        driver: the device's.
        synchronize: waits until the device is idle, and gives back what torch keeps to use again.
        lock: held while memory moves: engines that share a device do not move theirs at the same time. Takes `go_on`.
        keeps_copy: keep the copy of everything while the memory is here: then it leaves without being copied.
    """

    __slots__ = ("_arena", "_copy", "_driver", "_keeps_copy", "_lock", "_synchronize", "mapped")

    def __init__(
        self,
        arena: VirtualArena,
        driver: Driver,
        synchronize: Callable[[], None],
        lock: Callable[[Callable[[], None]], AbstractContextManager[object]],
        keeps_copy: bool = False,
    ) -> None:
        self._arena, self._driver, self._synchronize, self._lock = arena, driver, synchronize, lock
        self._keeps_copy = keeps_copy
        self._copy: Copy | None = None
        self.mapped = True

    @property
    def has_copy(self) -> bool:
        return self._copy is not None

    def release(self, spans: Sequence[Span] | None, go_on: Callable[[], None]) -> int:
        """Gives the memory back.

        Args:
            spans: what to keep in host memory meanwhile, or everything where there is a copy that stays; None keeps nothing.
            go_on: called now and then; what it raises ends the copy.

        Returns:
            Bytes of device memory that are free now and were not, as the driver counts them.

        Raises:
            DriverError: the copy or the release failed. Nothing has changed.
        """
        with self._lock(go_on):
            self._synchronize()
            had, before = self._copy, self._driver.free_bytes()
            if spans is not None and had is None:
                self._copy = self._copied([(0, self._arena.num_bytes)] if self._keeps_copy else spans, go_on)
            try:
                self._arena.drop()
            except DriverError:
                if had is None and not self._keeps_copy:
                    self._drop_copy()
                raise
            if spans is None:
                self._drop_copy()
            self.mapped = False
            return max(0, self._driver.free_bytes() - before)

    def restore(self, go_on: Callable[[], None]) -> int:
        """Brings the memory back, and the content where it was kept.

        Returns:
            Bytes of device memory that were free and are not any more.

        Raises:
            DriverError: there is not enough memory now, or the copy failed. Nothing has changed: what was kept is kept.
        """
        with self._lock(go_on):
            before = self._driver.free_bytes()
            self._arena.map()
            try:
                if self._copy is None or not self._keeps_copy:
                    self._arena.bytes.zero_()  # what is not kept may be anything, but never what somebody else left there
                if self._copy is not None:
                    self._copy.give(self._arena, go_on)
                self._synchronize()
            except BaseException:
                self._synchronize()
                with suppress(DriverError):
                    self._arena.drop()
                raise
            if not self._keeps_copy:
                self._drop_copy()
            self.mapped = True
            return max(0, before - self._driver.free_bytes())

    def keep_copy(self, go_on: Callable[[], None]) -> None:
        """Makes the copy that stays, of all of it."""
        if self._copy is None:
            self._copy = self._copied([(0, self._arena.num_bytes)], go_on)

    def refresh(self, spans: Sequence[Span]) -> None:
        """Brings the copy that stays, if there is one, up to date with these spans of the arena."""
        if self._copy is not None:
            for begin, end in spans:
                self._copy.memory.bytes[begin:end].copy_(self._arena.bytes[begin:end], non_blocking=True)
            self._synchronize()

    def zero(self) -> None:
        """Makes every byte zero."""
        self._arena.bytes.zero_()
        self._synchronize()

    def close(self) -> None:
        """Drops what was kept. Idempotent. The arena is its owner's to close."""
        self._drop_copy()

    def _copied(self, spans: Sequence[Span], go_on: Callable[[], None]) -> Copy:
        copy = Copy(spans, self._driver)
        try:
            copy.take(self._arena, go_on)
        except BaseException:
            self._synchronize()
            copy.memory.close()
            raise
        self._synchronize()
        return copy

    def _drop_copy(self) -> None:
        if self._copy is not None:
            self._copy.memory.close()
            self._copy = None
