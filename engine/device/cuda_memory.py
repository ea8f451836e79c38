"""Arenas of device memory that leave and come back at the same addresses: reserved once, mapped and unmapped in a few large pieces.

The calls are the CUDA driver's virtual memory management, behind `Driver`, so that everything but the driver itself runs anywhere.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

logger = logging.getLogger("quiesce.device")
ALIGNMENT = 256
"""Bytes: what cuBLAS likes, and more than the 16 by which Triton specialises."""
CHUNK_BYTES = 256 * 2**20
"""Of one piece of physical memory, and of one copy: few calls, and now and then a look whether to go on."""


class DriverError(RuntimeError):
    """The driver refused a call."""


class Driver(Protocol):
    """Virtual memory of one device. Addresses, sizes in bytes and handles are numbers; every call may raise `DriverError`."""

    granularity: int
    """Bytes: sizes are multiples of it."""

    def reserve(self, num_bytes: int) -> int:
        """Takes a range of addresses, without memory."""

    def free_range(self, address: int, num_bytes: int) -> None:
        """Gives a range of addresses back."""

    def create(self, num_bytes: int) -> int:
        """Takes memory, without addresses; returns its handle."""

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        """Puts memory at addresses. What it holds is undefined."""

    def allow_access(self, address: int, num_bytes: int) -> None:
        """Lets the device read and write what is mapped there."""

    def unmap(self, address: int, num_bytes: int) -> None:
        """Takes memory from its addresses."""

    def release(self, handle: int) -> None:
        """Gives memory back."""

    def free_bytes(self) -> int:
        """Memory of the device that nobody has, as the driver counts it."""

    def pin(self, address: int, num_bytes: int) -> None:
        """Locks host memory, so that the device copies it at full speed."""

    def unpin(self, address: int) -> None:
        """Unlocks it."""


def device_view(address: int, num_bytes: int, device: torch.device) -> Tensor:
    """[num_bytes] uint8 over memory that somebody else owns, by a DLPack capsule (https://dmlc.github.io/dlpack/latest/c_api.html).

    The capsule's struct is the C library's memory and its deleter is `free`, so that no Python runs when the last view goes, which
    may be when the interpreter has ended.
    """
    raw = LIBC.malloc(ctypes.sizeof(_Managed))
    managed = _Managed.from_address(raw)
    managed.shape[0] = num_bytes
    managed.tensor.data = address
    managed.tensor.device_type, managed.tensor.device_id = (2, device.index or 0) if device.type == "cuda" else (1, 0)
    managed.tensor.ndim, managed.tensor.code, managed.tensor.bits, managed.tensor.lanes = 1, 1, 8, 1  # uint8
    managed.tensor.shape = raw + _Managed.shape.offset
    managed.tensor.strides = None
    managed.tensor.byte_offset = 0
    managed.context = None
    managed.deleter = ctypes.cast(LIBC.free, ctypes.c_void_p).value
    view: Tensor = torch.utils.dlpack.from_dlpack(_NEW_CAPSULE(raw, b"dltensor", None))
    return view


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class _Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("shape", ctypes.c_int64 * 1),
    ]


LIBC = ctypes.CDLL(None)
LIBC.malloc.restype, LIBC.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_NEW_CAPSULE = ctypes.pythonapi.PyCapsule_New
_NEW_CAPSULE.restype, _NEW_CAPSULE.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


@dataclass(slots=True)
class Chunk:
    """A piece of an arena. What is true of it is looked at before each call of the driver."""

    offset: int
    num_bytes: int
    handle: int | None = None
    """Of its physical memory. None: it has none."""
    is_mapped: bool = False


class VirtualArena:
    """A range of device addresses, seen as bytes by torch. Memory is mapped when it is made.

    Raises:
        DriverError: there are not so many addresses, or not so much memory. Nothing is left behind.
    """

    __slots__ = ("_address", "_bytes", "_chunks", "_driver", "num_bytes")

    def __init__(self, num_bytes: int, driver: Driver, device: torch.device, chunk_bytes: int = CHUNK_BYTES) -> None:
        unit = driver.granularity
        self.num_bytes = max(-(-num_bytes // unit), 1) * unit
        step = -(-chunk_bytes // unit) * unit
        self._driver = driver
        self._chunks = [Chunk(at, min(step, self.num_bytes - at)) for at in range(0, self.num_bytes, step)]
        self._address = driver.reserve(self.num_bytes)
        try:
            self.map()
        except BaseException:
            driver.free_range(self._address, self.num_bytes)
            raise
        self._bytes: Tensor | None = device_view(self._address, self.num_bytes, device)

    @property
    def bytes(self) -> Tensor:
        """[num_bytes] uint8."""
        if self._bytes is None:
            raise RuntimeError("the arena is closed")
        return self._bytes

    @property
    def closed(self) -> bool:
        return self._bytes is None

    def view(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor that lies `offset` bytes into the arena."""
        count = torch.Size(shape).numel() * dtype.itemsize
        if offset % dtype.itemsize or offset + count > self.num_bytes:
            raise ValueError(f"{count} bytes at {offset} do not fit an arena of {self.num_bytes}")
        return self.bytes[offset : offset + count].view(dtype).view(shape)

    def resident_bytes(self) -> int:
        """Physical memory that the arena has."""
        return sum(chunk.num_bytes for chunk in self._chunks if chunk.handle is not None)

    def map(self) -> None:
        """Takes memory for what has none. Its content is undefined.

        Raises:
            DriverError: there is not so much, or the driver fails. What was taken is given back.
        """
        absent = [chunk for chunk in self._chunks if not chunk.is_mapped]
        try:
            for chunk in absent:
                if chunk.handle is None:
                    chunk.handle = self._driver.create(chunk.num_bytes)
                self._driver.map(self._address + chunk.offset, chunk.num_bytes, chunk.handle)
                chunk.is_mapped = True
            self._driver.allow_access(self._address, self.num_bytes)
        except BaseException:
            for error in self._take(absent):
                logger.warning("part of an arena stays in memory: %s", error)
            raise

    def drop(self) -> None:
        """Gives the memory back; the addresses stay. The device must be idle.

        Raises:
            DriverError: the driver lets nothing go. Nothing has changed.
        """
        before = self.resident_bytes()
        errors = self._take(self._chunks)
        if errors and self.resident_bytes() >= before and all(chunk.is_mapped for chunk in self._chunks):
            raise errors[0]
        for error in errors:  # what could not go stays, and is taken up again by `map`
            logger.warning("part of an arena stays in memory: %s", error)

    def _take(self, chunks: Sequence[Chunk]) -> list[DriverError]:
        """Takes the memory of these pieces away, as far as the driver lets it go."""
        errors = []
        for chunk in chunks:
            try:
                if chunk.is_mapped:
                    self._driver.unmap(self._address + chunk.offset, chunk.num_bytes)
                    chunk.is_mapped = False
                if chunk.handle is not None:
                    self._driver.release(chunk.handle)
                    chunk.handle = None
            except DriverError as error:
                errors.append(error)
        return errors

    def close(self) -> None:
        """Gives the memory back, and the addresses unless somebody holds a view of them. Idempotent."""
        if self._bytes is None:
            return
        views = StorageWeakRef(self._bytes.untyped_storage())  # type: ignore[no-untyped-call]
        self._bytes = None
        errors = self._take(self._chunks)
        for error in errors:
            logger.warning("part of an arena stays in memory: %s", error)
        if not errors and views.expired():  # type: ignore[no-untyped-call]
            self._driver.free_range(self._address, self.num_bytes)
