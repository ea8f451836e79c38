"""Arenas: the address ranges that hold weights and KV, mapped by us so that they can be given back without moving.

`Arena` is the range, `Residence` whether its memory is here, and `Spill` (spill.py) where the content waits meanwhile.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quiesce.engine.device.spill import Span, Spill

logger = logging.getLogger("quiesce.device")
ALIGNMENT = 64
"""Bytes. Tensors begin on a cache line, as torch's own do: some matrix kernels choose their path by it."""
PAGEMAP = Path("/proc/self/pagemap")
OURS_ALONE = np.uint64(1 << 56)
"""Of a page's eight bytes in `PAGEMAP`: it is in memory, and in no other process. Not set for the page of zeros that reads of
untouched memory see (https://docs.kernel.org/admin-guide/mm/pagemap.html)."""
PAGES_AT_ONCE = 1 << 17


def aligned(num_bytes: int, unit: int = ALIGNMENT) -> int:
    """`num_bytes` rounded up to a multiple of `unit`."""
    return -(-num_bytes // unit) * unit


class AnyArena(Protocol):
    """A range of addresses that tensors lie in, wherever its memory is."""

    num_bytes: int

    def view(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor that lies `offset` bytes into the arena."""

    def resident_bytes(self) -> int:
        """Memory that the arena takes."""

    @property
    def closed(self) -> bool:
        """Whether it has given everything back for good."""

    def close(self) -> None:
        """Gives the memory back. Idempotent."""


class Arena:
    """A private anonymous mapping, seen as bytes by torch.

    Private, never shared: `madvise(MADV_DONTNEED)` on a shared mapping keeps its pages, so sleep would give nothing back.
    A fresh mapping reads as zeros and takes memory page by page, when it is first written.
    """

    __slots__ = ("_bytes", "_map", "num_bytes")

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = max(aligned(num_bytes), mmap.PAGESIZE)
        self._map: mmap.mmap | None = mmap.mmap(-1, self.num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._bytes: Tensor | None = torch.frombuffer(self._map, dtype=torch.uint8)

    def view(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor that lies `offset` bytes into the arena."""
        if self._bytes is None:
            raise RuntimeError("the arena is closed")
        count = torch.Size(shape).numel() * dtype.itemsize
        if offset % dtype.itemsize or offset + count > self.num_bytes:
            raise ValueError(f"{count} bytes at {offset} do not fit an arena of {self.num_bytes}")
        return self._bytes[offset : offset + count].view(dtype).view(shape)

    @property
    def closed(self) -> bool:
        return self._bytes is None

    def memory(self) -> memoryview:
        """The bytes, to be read from and written to files. Release it before the arena is closed."""
        if self._map is None:
            raise RuntimeError("the arena is closed")
        return memoryview(self._map)

    def prefer_large_pages(self) -> None:
        """Asks for pages of 2 MiB, of which fewer are to be found and locked. The system need not have any."""
        if self._map is not None:
            with suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)

    def drop(self) -> None:
        """Gives the pages back: they read as zeros, at the same addresses, until they are written again.

        Raises:
            OSError: the system refuses, as it does for locked pages. Pages before those may be gone.
        """
        if self._map is None:
            raise RuntimeError("the arena is closed")
        self._map.madvise(mmap.MADV_DONTNEED)

    def resident_bytes(self) -> int:
        """Memory that the arena takes, as the system counts its pages. Nothing that other threads allocate changes it.

        Where the system does not say so much, it is the memory of the whole process: still good for differences.
        """
        if self._bytes is None:
            raise RuntimeError("the arena is closed")
        first, left, total = self._bytes.data_ptr() // mmap.PAGESIZE, -(-self.num_bytes // mmap.PAGESIZE), 0
        try:
            with PAGEMAP.open("rb", buffering=0) as file:
                while left > 0:
                    pages = np.frombuffer(os.pread(file.fileno(), min(left, PAGES_AT_ONCE) * 8, first * 8), np.uint64)
                    if not len(pages):
                        raise OSError(f"{PAGEMAP} ends early")
                    total += int(np.count_nonzero(pages & OURS_ALONE))
                    first, left = first + len(pages), left - len(pages)
        except OSError:
            total = int(Path("/proc/self/statm").read_text().split()[1])
        return total * mmap.PAGESIZE

    def close(self) -> None:
        """Gives the memory back. Idempotent. The address range stays reserved, without content, while somebody holds a view of it."""
        if self._map is None:
            return
        with suppress(OSError):  # pages locked in memory stay until the mapping goes, with its last view
            self._map.madvise(mmap.MADV_DONTNEED)
        # Never `mmap.close()`: torch.frombuffer holds the mapping but no export of it, so close would unmap it under living views.
        self._bytes = self._map = None


def block_spans(kv: Tensor, blocks: NDArray[np.int64]) -> list[Span]:
    """Where KV blocks lie in an arena that begins with `kv` [layers, 2, blocks, ...], by rising address; neighbours are one span.

    Args:
        blocks: [n], rising.
    """
    if not len(blocks):
        return []
    ends = np.flatnonzero(np.diff(blocks, append=blocks[-1] + 2) != 1)
    begins = np.concatenate([[0], ends[:-1] + 1])
    block_bytes = kv[0, 0, 0].nbytes
    runs = [
        (int(blocks[begin]) * block_bytes, (int(blocks[end]) + 1) * block_bytes)
        for begin, end in zip(begins, ends, strict=True)
    ]
    planes = range(0, kv.nbytes, kv[0, 0].nbytes)
    return [(plane + begin, plane + end) for plane in planes for begin, end in runs]


class Residence:
    """Whether an arena's memory is here. Views of it stay valid throughout; what they would show is nothing while it is away."""

    __slots__ = ("_arena", "_spill", "mapped")

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._spill: Spill | None = None
        self.mapped = True

    def release(self, spans: Sequence[Span] | None, go_on: Callable[[], None]) -> int:
        """Gives the memory back.

        Args:
            spans: what to keep in a file meanwhile; None keeps nothing.
            go_on: called now and then; what it raises ends the copy.

        Returns:
            Bytes of memory that the process has less.

        Raises:
            OSError: the copy or the release failed. Nothing has changed.
        """
        before = self._arena.resident_bytes()
        with self._arena.memory() as memory:
            spill = None if spans is None else Spill(memory, spans, go_on)
        try:
            self._arena.drop()
        except OSError as error:
            if self._arena.resident_bytes() >= before:
                if spill is not None:
                    spill.close()
                raise
            # Some pages went before one that would not. What counts is in the spill, or was to be lost: this is released.
            logger.warning("part of an arena stays in memory: %s", error)
        self.mapped, self._spill = False, spill
        return before - self._arena.resident_bytes()

    def restore(self, go_on: Callable[[], None]) -> int:
        """Brings the memory back, and the content where it was kept. Else pages come when they are first written, as in a new arena.

        Returns:
            Bytes of memory that the process has more.

        Raises:
            OSError: the copy failed. Nothing has changed: the memory is away, what was kept is kept.
        """
        before = self._arena.resident_bytes()
        if self._spill is not None:
            try:
                with self._arena.memory() as memory:
                    self._spill.read_back(memory, go_on)
            except BaseException:
                with suppress(OSError):
                    self._arena.drop()
                raise
            self._spill.close()
            self._spill = None
        self.mapped = True
        return self._arena.resident_bytes() - before

    def zero(self) -> None:
        """Makes every byte zero, whatever became of it."""
        try:
            self._arena.drop()
        except OSError:
            self._arena.view(0, (self._arena.num_bytes,), torch.uint8).zero_()

    def close(self) -> None:
        """Drops what was kept. Idempotent. The arena is its owner's to close."""
        if self._spill is not None:
            self._spill.close()
            self._spill = None
