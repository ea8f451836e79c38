"""A step as the CUDA kernels read it: named arrays, one after the other in one buffer, so that they cross to the device in one copy.

A pass is either rows or mixed. In a pass of rows every token has a block table and a context of its own, and there are as many rows
as some bucket has: what is not a token of a request is padding, which sees nothing, writes to the reserved block and samples nothing.
A mixed pass has the requests of one token first and then the chunks of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quiesce.engine.messages import StepInput

UNIT = 64
"""Bytes that each array's place is a multiple of: Triton specialises on 16."""
WIDTHS = 16
"""Blocks that the width of every table is a multiple of, for the same reason: another kernel would be compiled for the others."""
Ints = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]


class Shape(NamedTuple):
    """How many of what a pass has. Passes of one shape are one graph."""

    tokens: int
    singles: int
    """Requests of one token, or rows."""
    chunks: int
    samples: int
    width: int
    """Blocks of a table."""


class Layout:
    """Where named arrays lie in a buffer."""

    __slots__ = ("_places", "num_bytes")

    def __init__(self, fields: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._places: dict[str, tuple[int, int, torch.dtype, tuple[int, ...]]] = {}
        end = 0
        for name, (dtype, shape) in fields.items():
            size = torch.Size(shape).numel() * dtype.itemsize
            self._places[name] = (end, end + size, dtype, shape)
            end = -(-(end + size) // UNIT) * UNIT
        self.num_bytes = end

    def tensors(self, buffer: Tensor) -> dict[str, Tensor]:
        """Views of a buffer [num_bytes or more] uint8."""
        return {name: buffer[begin:end].view(dtype).view(shape) for name, (begin, end, dtype, shape) in self._places.items()}

    def arrays(self, buffer: Tensor) -> dict[str, NDArray[Any]]:
        """The same as numpy sees a buffer of the host."""
        return {name: tensor.numpy() for name, tensor in self.tensors(buffer).items()}


@lru_cache(maxsize=512)
def input_layout(shape: Shape) -> Layout:
    """What a pass is given."""
    i32, i64, f32 = torch.int32, torch.int64, torch.float32
    tokens, samples = (shape.tokens,), (shape.samples,)
    return Layout(
        {
            "ids": (i64, tokens),
            "positions": (i64, tokens),
            "slots": (i64, tokens),
            "rows": (i32, tokens),
            "contexts": (i32, (shape.singles,)),
            "starts": (i32, (shape.chunks,)),
            "offsets": (i32, (shape.chunks + 1,)),
            "ends": (i64, samples),
            "keys": (i64, samples),
            "sampled_at": (i64, samples),
            "temperature": (f32, samples),
            "top_k": (i32, samples),
            "top_p": (f32, samples),
            "min_p": (f32, samples),
            "keep": (i32, samples),
            "tables": (i32, (shape.singles + shape.chunks, shape.width)),
        }
    )


@lru_cache(maxsize=512)
def result_layout(shape: Shape) -> Layout:
    """What a pass gives back."""
    return Layout(
        {
            "sampled": (torch.int64, (shape.samples,)),
            "faults": (torch.int32, (shape.samples,)),
            "lost": (torch.int32, (shape.tokens,)),
        }
    )


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a step, and how what it gives is read."""

    shape: Shape
    owners: Ints
    """[tokens of requests] request of each token, in the pass's order."""
    requests: Ints
    """[n] the requests that sample in this pass."""
    places: Ints
    """[n] their places among the samples."""
    rows_of: Ints
    """[tokens of the step] row of each token in this pass; -1: it is in another one."""


class StepTokens:
    """A step token by token: owner, position, slot.

    Raises:
        ValueError: a block table does not cover what the step reads.
    """

    __slots__ = ("contexts", "counts", "ends", "owners", "positions", "reserved", "size", "slots", "step", "width")

    def __init__(self, step: StepInput, num_blocks: int, block_size: int) -> None:
        counts = step.counts.astype(np.int64)
        tables, self.size = step.block_tables, block_size
        self.step, self.counts, self.reserved = step, counts, num_blocks * block_size
        self.ends: Ints = np.cumsum(counts)  # [R] one past the last token of each request
        self.contexts: Ints = step.starts + counts  # [R]
        self.width = -(-int(self.contexts.max()) // block_size)
        used = np.arange(tables.shape[1]) * block_size < self.contexts[:, None]
        if self.width > tables.shape[1] or (used & ((tables < 0) | (tables >= num_blocks))).any():
            raise ValueError(f"step {step.step}: a block table names no block of the pool for a position the step computes")
        total = int(self.ends[-1])
        if total == len(counts):
            self.owners: Ints = np.arange(total)
            self.positions: Ints = step.starts.astype(np.int64)
        else:
            self.owners = np.repeat(np.arange(len(counts)), counts)
            self.positions = np.arange(total) + np.repeat(step.starts - (self.ends - counts), counts)
        blocks = tables[self.owners, self.positions // block_size].astype(np.int64)
        self.slots: Ints = blocks * block_size + self.positions % block_size

    @property
    def all_single(self) -> bool:
        return len(self.owners) == len(self.counts)

    def rows(self, shape: Shape, begin: int, end: int, arrays: Arrays) -> Pass:
        """Tokens begin .. end of the step as rows; what anybody reads of the arrays is written."""
        step, count = self.step, end - begin
        owners, positions = self.owners[begin:end], self.positions[begin:end]
        for name, own, padding in (
            ("ids", step.token_ids[begin:end], 0),
            ("positions", positions, 0),
            ("slots", self.slots[begin:end], self.reserved),
            ("rows", step.rows[owners], 0),
            ("contexts", positions + 1, 0),
        ):
            arrays[name][:count] = own
            arrays[name][count:] = padding
        width = min(shape.width, step.block_tables.shape[1])
        arrays["tables"][:count, :width] = step.block_tables[owners, :width]
        arrays["offsets"][:] = 0
        arrays["ends"][:] = np.arange(shape.samples)
        last = self.ends - 1
        requests = np.flatnonzero(step.samples & (last >= begin) & (last < end))
        places = last[requests] - begin
        self._sampling(requests, places, arrays)
        rows_of = np.full(len(self.owners), -1)
        rows_of[begin:end] = np.arange(count)
        return Pass(shape, owners, requests, places, rows_of)

    def mixed_shape(self) -> Shape:
        """Of the step as one pass."""
        singles = int((self.counts == 1).sum())
        width = rounded(self.width)
        return Shape(len(self.owners), singles, len(self.counts) - singles, int(self.step.samples.sum()), width)

    def mixed(self, shape: Shape, arrays: Arrays) -> Pass:
        """The whole step as one pass; what anybody reads of the arrays is written."""
        step, single = self.step, self.counts == 1
        order = np.concatenate([np.flatnonzero(single), np.flatnonzero(~single)])
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        tokens = np.argsort(rank[self.owners], kind="stable")  # of the step, in the pass's order
        rows_of = np.empty_like(tokens)
        rows_of[tokens] = np.arange(len(tokens))
        owners = self.owners[tokens]
        chunks = order[shape.singles :]
        requests = np.flatnonzero(step.samples)
        for name, own in (
            ("ids", step.token_ids[tokens]),
            ("positions", self.positions[tokens]),
            ("slots", self.slots[tokens]),
            ("rows", step.rows[owners]),
            ("contexts", self.contexts[order[: shape.singles]]),
            ("starts", step.starts[chunks]),
            ("offsets", np.concatenate([[0], np.cumsum(self.counts[chunks])])),
            ("ends", rows_of[self.ends[requests] - 1]),
        ):
            arrays[name][:] = own
        width = min(shape.width, step.block_tables.shape[1])
        arrays["tables"][:, :width] = step.block_tables[order, :width]  # nothing reads beyond
        places = np.arange(len(requests))
        self._sampling(requests, places, arrays)
        return Pass(shape, owners, requests, places, rows_of)

    def _sampling(self, requests: Ints, places: Ints, arrays: Arrays) -> None:
        step = self.step
        for name, own, padding in (
            ("keys", step.noise_keys.view(np.int64)[requests], 0),
            ("sampled_at", self.contexts[requests], 0),
            ("temperature", step.temperature[requests], 0),
            ("top_k", step.top_k[requests], 0),
            ("top_p", step.top_p[requests], 1),
            ("min_p", step.min_p[requests], 0),
            ("keep", step.rows[requests], -1),
        ):
            if len(places) < len(arrays[name]):
                arrays[name][:] = padding
            arrays[name][places] = own


def rounded(width: int) -> int:
    """The width of a table that has room for so many blocks."""
    return -(-width // WIDTHS) * WIDTHS


def pad(shape: Shape, arrays: Arrays, reserved: int) -> None:
    """A pass of rows that holds no request at all."""
    for name in arrays:
        arrays[name][...] = {"slots": reserved, "keep": -1, "top_p": 1}.get(name, 0)
    arrays["ends"][:] = np.arange(shape.samples)
