"""The matrices of the weights as the processor's kernels read them, instead of as checkpoints have them.

A packed matrix takes the place of the plain one, whose pages go back to the system, so that weights are in memory once. (A head that
is the embedding, too, is the exception: rows of it are looked up, so it is there in both forms.) Whoever reads, writes, keeps or
releases weights wants them plain: `unpack` comes first, and the next step packs again. (What `weights` calls packed, several tensors
of a checkpoint in one matrix, is plain here.)
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from dataclasses import replace

import torch
from torch import Tensor

from quiesce.engine.device.weights import LayerWeights, Weights
from quiesce.kernels.linear import can_pack, pack, packed_memory

logger = logging.getLogger("quiesce.device")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Matrix:
    """One matrix, which is in its arena or packed."""

    __slots__ = ("_packed", "_plain", "_stays")

    def __init__(self, plain: Tensor, stays: bool = False) -> None:
        self._plain, self._stays = plain, stays
        self._packed: Tensor | None = None

    @property
    def now(self) -> Tensor:
        """What products are made with."""
        return self._plain if self._packed is None else self._packed

    def pack(self) -> None:
        if self._packed is None:
            self._packed = pack(self._plain)
            if not self._stays:
                give_back(self._plain.data_ptr(), self._plain.nbytes)

    def unpack(self) -> None:
        if self._packed is not None:
            # The allocator may keep the memory of what is dropped, and weights go when memory is wanted: its pages are given back first.
            if not self._stays:
                dense = self._packed.to_dense()
                self._plain.copy_(dense)
                give_back(dense.data_ptr(), dense.nbytes)
            give_back(*packed_memory(self._packed))
            self._packed = None


class PackedWeights:
    """The weights as the forward pass takes them. Packed or not, its results are those of the same numbers."""

    __slots__ = ("_head", "_layers", "_pays", "embed", "head", "is_packed", "layers", "norm")

    def __init__(self, weights: Weights) -> None:
        self.embed, self.norm, self.is_packed = weights.embed, weights.norm, False
        self._pays = can_pack(weights.embed.dtype)
        self._head = Matrix(weights.head, stays=weights.head is weights.embed)
        self._layers = [
            (layer, Matrix(layer.qkv), Matrix(layer.out), Matrix(layer.gate_up), Matrix(layer.down)) for layer in weights.layers
        ]
        self._refresh()

    def pack(self) -> None:
        """Packs every matrix, where that pays. Idempotent.

        Raises:
            MemoryError, RuntimeError: there is no memory for it. The weights are as they were.
        """
        if self.is_packed or not self._pays:
            return
        try:
            for matrix in self._matrices():
                matrix.pack()
        except BaseException:
            self.unpack()
            raise
        self.is_packed = True
        self._refresh()

    def unpack(self) -> None:
        """Puts every matrix back into its place in the arena. Idempotent, and may be called again after an error."""
        with torch.inference_mode():  # where the arena was made
            for matrix in self._matrices():
                matrix.unpack()
        if self.is_packed:
            self.is_packed = False
            self._refresh()

    def close(self) -> None:
        """Drops every tensor."""
        self.embed = self.norm = torch.empty(0)
        self._head, self._layers = Matrix(self.embed), []
        self._refresh()

    def _matrices(self) -> list[Matrix]:
        return [self._head, *(matrix for _, *matrices in self._layers for matrix in matrices)]

    def _refresh(self) -> None:
        self.head = self._head.now
        self.layers: list[LayerWeights] = [
            replace(layer, qkv=qkv.now, out=out.now, gate_up=gate_up.now, down=down.now)
            for layer, qkv, out, gate_up, down in self._layers
        ]


def give_back(address: int, num_bytes: int) -> None:
    """Gives the pages that lie wholly in this range of private memory back to the system. They read as zeros until written again."""
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if length > 0 and _LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED):
        logger.warning("pages of the weights stay in memory: errno %d", ctypes.get_errno())
