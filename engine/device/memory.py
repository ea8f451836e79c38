"""Arenas: the address ranges that hold weights and KV, mapped by us so that they can be given back without moving."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes. Tensors begin on a cache line, as torch's own do: some matrix kernels choose their path by it."""


def aligned(num_bytes: int) -> int:
    """`num_bytes` rounded up to `ALIGNMENT`."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


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

    def close(self) -> None:
        """Gives the memory back. Idempotent. The address range stays reserved, without content, while somebody holds a view of it."""
        if self._map is None:
            return
        self._map.madvise(mmap.MADV_DONTNEED)
        # Never `mmap.close()`: torch.frombuffer holds the mapping but no export of it, so close would unmap it under living views.
        self._bytes = self._map = None
