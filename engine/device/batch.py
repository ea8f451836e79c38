"""From a step's arrays to the index tensors that the forward pass reads: made once per step, used in every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quiesce.engine.messages import StepInput
from quiesce.kernels.paged_attention import AttentionPlan, DecodeGroup, PrefillChunk, TiledGroup, aligned_group
from quiesce.kernels.silu_mul import GRAIN

EXACT_ROWS = 32
"""Rows of every matrix product under `batch_invariant`. Results were bit-identical at each place among 4 to 128 rows, in float32 and
bfloat16, one thread and two; 32 is where a product costs little more than at one row and a prompt is not read in crumbs."""
EXACT_TILE = 128
"""Slots of an attention tile under `batch_invariant`, about: rounded to whole blocks and to a multiple of 32."""
GROUP_BYTES = 4 * 2**20
"""Gathered keys of one decode group, about: they should still be in cache when they are multiplied."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the indices depend on besides the step."""

    num_blocks: int
    """Blocks of the pool; the cache has one more, the zero block, at this index."""
    block_size: int
    heads: int
    """Query heads of the tiled path, its padding included."""
    kv_heads: int
    group_slots: int
    """Slots of one decode group, at most, unless a single request has more."""

    @classmethod
    def of(cls, num_blocks: int, block_size: int, heads: int, kv_heads: int, head_bytes: int) -> Shape:
        """`head_bytes` is the size of one head of one token."""
        padded = kv_heads * aligned_group(heads // kv_heads, head_bytes)
        return cls(num_blocks, block_size, padded, kv_heads, max(1, GROUP_BYTES // (kv_heads * head_bytes)))


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one forward pass: T of them, the first `num_real` of which are requests' own and the rest padding."""

    begin: int
    """First token in the step."""
    num_real: int
    positions: Tensor
    """[T] int64"""
    slots: Tensor
    """[num_real · kv_heads] int64, rows of cache.view(-1, dim) that take the new keys and values."""
    plan: AttentionPlan
    ends: Tensor
    """[samples in this pass] int64, tokens of this pass from which a token is sampled, in the order of the requests."""


class Layout:
    """A step token by token: owner, position, block. Refuses a table that does not cover what the step reads."""

    __slots__ = ("contexts", "ends", "owners", "positions", "shape", "slots", "step", "tables")

    def __init__(self, step: StepInput, shape: Shape) -> None:
        counts = step.counts.astype(np.int64)
        self.step, self.shape = step, shape
        self.ends: Ints = np.cumsum(counts)  # [R] one past the last token of each request
        self.owners: Ints = np.repeat(np.arange(len(counts)), counts)  # [T]
        first = np.repeat(step.starts - (self.ends - counts), counts)
        self.positions: Ints = first + np.arange(self.ends[-1])  # [T]
        self.contexts: Ints = step.starts + counts  # [R] slots that the last token of each request sees
        self.tables: Ints = step.block_tables.astype(np.int64)
        used = np.arange(self.tables.shape[1]) * shape.block_size < self.contexts[:, None]
        short = self.tables.shape[1] * shape.block_size < self.contexts.max()
        if short or (used & ((self.tables < 0) | (self.tables >= shape.num_blocks))).any():
            raise ValueError(f"step {step.step}: a block table names no block of the pool for a position the step computes")
        self.tables[~used] = shape.num_blocks  # the zero block
        block = self.tables[self.owners, self.positions // shape.block_size]
        heads = np.arange(shape.kv_heads)
        rows = (block[:, None] * shape.kv_heads + heads) * shape.block_size + (self.positions % shape.block_size)[:, None]
        self.slots: Ints = rows.reshape(-1)

    def gather_rows(self, tables: Ints) -> Ints:
        """[..., blocks] block ids to [..., kv_heads, blocks] rows of cache.view(-1, block_size · dim)."""
        heads = np.arange(self.shape.kv_heads)[:, None]
        return tables[..., None, :] * self.shape.kv_heads + heads

    def blocks_of(self, slots: int) -> int:
        return -(-slots // self.shape.block_size)


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def whole_batch(step: StepInput, shape: Shape) -> Batch:
    """The step as one forward pass."""
    layout = Layout(step, shape)
    single = step.counts == 1
    return Batch(
        begin=0,
        num_real=len(layout.positions),
        positions=_tensor(layout.positions),
        slots=_tensor(layout.slots),
        plan=AttentionPlan(
            decode=tuple(_decode_groups(layout, np.flatnonzero(single))),
            prefill=tuple(_prefill_chunk(layout, request) for request in np.flatnonzero(~single).tolist()),
        ),
        ends=_tensor(layout.ends[step.samples] - 1),
    )


def _decode_groups(layout: Layout, requests: Ints) -> Iterator[DecodeGroup]:
    """Requests of one token, so grouped that at most about half of what is gathered is padding."""
    if not len(requests):
        return
    size, limit = layout.shape.block_size, layout.shape.group_slots
    blocks = -(-layout.contexts[requests] // size)
    total = len(requests) * int(blocks.max())
    if total * size <= limit and 2 * total <= 3 * int(blocks.sum()):
        yield _decode_group(layout, requests)
        return
    order = np.argsort(-blocks, kind="stable")
    needs = blocks[order].tolist()
    begin = 0
    for i, need in enumerate(needs):
        if i > begin and (need * 2 <= needs[begin] or (i - begin + 1) * needs[begin] * size > limit):
            yield _decode_group(layout, requests[order[begin:i]])
            begin = i
    yield _decode_group(layout, requests[order[begin:]])


def _decode_group(layout: Layout, requests: Ints) -> DecodeGroup:
    contexts = layout.contexts[requests]  # [B]
    blocks = layout.blocks_of(int(contexts.max()))
    length = blocks * layout.shape.block_size
    dead = np.arange(length) >= contexts[:, None]  # [B, length]
    everything = len(requests) == len(layout.positions) and bool((np.diff(requests) == 1).all())
    return DecodeGroup(
        rows=None if everything else _tensor(layout.ends[requests] - 1),
        blocks=_tensor(layout.gather_rows(layout.tables[requests, :blocks]).reshape(-1)),
        length=length,
        dead=_tensor(dead[:, None, None, :]) if dead.any() else None,
    )


def _prefill_chunk(layout: Layout, request: int) -> PrefillChunk:
    context, count = int(layout.contexts[request]), int(layout.step.counts[request])
    end = int(layout.ends[request])
    positions = np.arange(context - count, context)
    return PrefillChunk(
        begin=end - count,
        end=end,
        blocks=_tensor(layout.gather_rows(layout.tables[request, : layout.blocks_of(context)]).reshape(-1)),
        context=context,
        visible=None if count == context else _tensor(np.arange(context) <= positions[:, None]),
    )


def exact_batches(step: StepInput, shape: Shape) -> Iterator[Batch]:
    """The step as forward passes of exactly `EXACT_ROWS` tokens, prompt and decode tokens alike, the last one padded.

    Every operation of every pass then has one shape, whatever the step holds, so that a token's result depends on its own request
    alone. Passes run in order, so a token finds the KV of all positions before its own.
    """
    layout = Layout(step, shape)
    ends = layout.ends[step.samples] - 1
    for begin in range(0, len(layout.positions), EXACT_ROWS):
        end = min(begin + EXACT_ROWS, len(layout.positions))
        positions = np.zeros(EXACT_ROWS, np.int64)
        positions[: end - begin] = layout.positions[begin:end]
        tables = np.full((EXACT_ROWS, layout.tables.shape[1]), shape.num_blocks, np.int64)
        tables[: end - begin] = layout.tables[layout.owners[begin:end]]
        yield Batch(
            begin=begin,
            num_real=end - begin,
            positions=_tensor(positions),
            slots=_tensor(layout.slots[begin * shape.kv_heads : end * shape.kv_heads]),
            plan=AttentionPlan(tiled=tuple(_tiled_groups(layout, positions, tables))),
            ends=_tensor(ends[(begin <= ends) & (ends < end)] - begin),
        )


def _tiled_groups(layout: Layout, positions: Ints, tables: Ints) -> Iterator[TiledGroup]:
    shape = layout.shape
    unit = math.lcm(shape.block_size, 32)
    tile = unit * max(1, EXACT_TILE // unit)
    rows = EXACT_ROWS
    while rows > 1 and rows * shape.heads * tile > GRAIN:  # one thread's share, see `silu_mul`
        rows //= 2
    per_tile = tile // shape.block_size
    for begin in range(0, EXACT_ROWS, rows):
        part = slice(begin, begin + rows)
        tiles = int(positions[part].max()) // tile + 1
        padded = np.full((rows, tiles * per_tile), shape.num_blocks, np.int64)
        width = min(padded.shape[1], tables.shape[1])
        padded[:, :width] = tables[part, :width]
        blocks = layout.gather_rows(padded.reshape(rows, tiles, per_tile).swapaxes(0, 1))  # [tiles, rows, kv_heads, per_tile]
        dead = np.arange(tiles * tile) > positions[part, None]  # [rows, tiles · tile]
        yield TiledGroup(
            begin=begin,
            end=begin + rows,
            blocks=_tensor(blocks.reshape(tiles, -1)),
            dead=_tensor(dead.reshape(rows, tiles, 1, 1, tile).swapaxes(0, 1)),
        )
