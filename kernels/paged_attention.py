"""Attention over a KV cache in blocks, on the CPU: Kwon et al., https://arxiv.org/abs/2309.06180.

    y = softmax(q·Kᵀ / sqrt(dim)) · V   over the positions 0 .. position of the query, for `group` query heads to each KV head

`paged_attention` is the truth, token by token. What runs is chosen by a plan that is made once per step, not once per layer:

    DecodeGroup     single queries of requests with similar contexts, batched: gather, multiply, softmax, multiply
    PrefillChunk    the queries of one request, through torch's fused attention
    TiledGroup      either kind, a fixed number of queries over tiles of fixed length: a result depends on nothing around it

Cache: [num_blocks + 1, kv_heads, block_size, dim], head-major, so that one (block, head) is one contiguous row to gather. The last
block is the zero block: it is never written, and pads tables. A block not named in a table is never read. Slots past the context
may hold anything, NaN too: 0 · NaN is NaN, so it is not enough that their values weigh zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, owners: Tensor, positions: Tensor
) -> Tensor:
    """The truth: each query by itself, in float32.

    Args:
        q: [tokens, heads, dim].
        k_cache, v_cache: [blocks, kv_heads, block_size, dim].
        block_tables: [requests, blocks per request].
        owners: [tokens] request of each query.
        positions: [tokens] position of each query; it sees positions + 1 slots.

    Returns:
        [tokens, heads, dim].
    """
    group, size = q.shape[1] // k_cache.shape[1], k_cache.shape[2]
    out = torch.empty_like(q)
    for token, (owner, position) in enumerate(zip(owners.tolist(), positions.tolist(), strict=True)):
        blocks = block_tables[owner, : position // size + 1].long()
        k = k_cache[blocks].transpose(0, 1).flatten(1, 2)[:, : position + 1].float()  # [kv_heads, context, dim]
        v = v_cache[blocks].transpose(0, 1).flatten(1, 2)[:, : position + 1].float()
        queries = q[token].float().view(-1, group, q.shape[2])  # [kv_heads, group, dim]
        weights = torch.softmax(queries @ k.transpose(1, 2) * q.shape[2] ** -0.5, -1)
        out[token] = (weights @ v).flatten(0, 1).to(q.dtype)
    return out


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """B single queries over `length` slots each."""

    rows: Tensor | None
    """[B] their tokens in the step; None: they are all of it, in order."""
    blocks: Tensor
    """[B · kv_heads · blocks] rows of cache.view(-1, block_size · dim), the zero block past a request's own."""
    length: int
    dead: Tensor | None
    """[B, 1, 1, length] bool, slots past the context. None: there are none."""


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens begin .. end of the step: one request's, which see `context` slots, the last of them all."""

    begin: int
    end: int
    blocks: Tensor
    """[kv_heads · blocks] rows of cache.view(-1, block_size · dim)."""
    context: int
    visible: Tensor | None
    """[end - begin, context] bool. None: the chunk begins at position 0 and is plainly causal."""


@dataclass(frozen=True, slots=True)
class TiledGroup:
    """Tokens begin .. end of the step, of any requests."""

    begin: int
    end: int
    blocks: Tensor
    """[tiles, tokens · kv_heads · blocks per tile] rows of cache.view(-1, block_size · dim)."""
    dead: Tensor
    """[tiles, tokens, 1, 1, tile] bool, slots past the query's position."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Every token of the step is in exactly one entry."""

    decode: tuple[DecodeGroup, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    tiled: tuple[TiledGroup, ...] = ()


class Scratch:
    """Kept buffers for gathered keys and values: fresh ones would fault in tens of megabytes a layer."""

    __slots__ = ("_buffers",)

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def gather(self, name: str, cache: Tensor, blocks: Tensor) -> Tensor:
        """Copies (block, head) rows; [len(blocks), block_size · dim]. Valid until the next call under the same name."""
        rows = cache.view(-1, cache.shape[2] * cache.shape[3])
        size = blocks.shape[0] * rows.shape[1]
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != cache.dtype:
            buffer = self._buffers[name] = torch.empty(size, dtype=cache.dtype)
        out = buffer[:size].view(blocks.shape[0], rows.shape[1])
        return torch.index_select(rows, 0, blocks, out=out)


def write_kv(cache: Tensor, new: Tensor, slots: Tensor) -> None:
    """Stores keys or values [tokens, kv_heads, dim] at `slots` [tokens · kv_heads], rows of cache.view(-1, dim)."""
    cache.view(-1, cache.shape[3]).index_copy_(0, slots, new.reshape(slots.shape[0], cache.shape[3]))


def planned_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, scratch: Scratch) -> Tensor:
    """[tokens, kv_heads, group, dim] queries to [tokens, kv_heads · group · dim]."""
    tokens = q.shape[0]
    if len(plan.decode) == 1 and plan.decode[0].rows is None:
        return _decode(q, k_cache, v_cache, plan.decode[0], scratch).view(tokens, -1)
    out = torch.empty(q.shape, dtype=q.dtype)
    for group in plan.decode:
        if group.rows is None:
            raise ValueError("a decode group that is not the whole step must say which rows it is")
        out.index_copy_(0, group.rows, _decode(q[group.rows], k_cache, v_cache, group, scratch))
    for chunk in plan.prefill:
        out[chunk.begin : chunk.end] = _prefill(q[chunk.begin : chunk.end], k_cache, v_cache, chunk, scratch)
    for tiled in plan.tiled:
        out[tiled.begin : tiled.end] = _tiled(q[tiled.begin : tiled.end], k_cache, v_cache, tiled, scratch)
    return out.view(tokens, -1)


def _decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, group: DecodeGroup, scratch: Scratch) -> Tensor:
    batch, kv_heads, _, dim = q.shape  # [B, kv_heads, group, dim]; grouping beats expanding KV by 4-8x
    k = scratch.gather("k", k_cache, group.blocks).view(batch, kv_heads, group.length, dim)
    v = scratch.gather("v", v_cache, group.blocks).view(batch, kv_heads, group.length, dim)
    scores = torch.matmul(q * dim**-0.5, k.transpose(-1, -2))  # [B, kv_heads, group, length]
    if group.dead is None:
        return torch.matmul(torch.softmax(scores, -1), v)
    weights = torch.softmax(scores.masked_fill_(group.dead, float("-inf")), -1)
    out = torch.matmul(weights, v)
    if out.sum(dtype=torch.float32).isfinite():
        return out
    # A dead value weighs 0 and adds 0, unless it is not finite. That is rare, and to replace values took a fifth of all this.
    return torch.matmul(weights, v.masked_fill_(group.dead.transpose(-1, -2), 0.0))


def _prefill(q: Tensor, k_cache: Tensor, v_cache: Tensor, chunk: PrefillChunk, scratch: Scratch) -> Tensor:
    _, kv_heads, group, dim = q.shape
    shape = (kv_heads, group, chunk.context, dim)
    k = scratch.gather("k", k_cache, chunk.blocks).view(kv_heads, 1, -1, dim)[:, :, : chunk.context].expand(shape)
    v = scratch.gather("v", v_cache, chunk.blocks).view(kv_heads, 1, -1, dim)[:, :, : chunk.context].expand(shape)
    q = q.permute(1, 2, 0, 3)  # [kv_heads, group, tokens, dim]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk.visible, is_causal=chunk.visible is None)
    return out.permute(2, 0, 1, 3)


def aligned_group(group: int, head_bytes: int) -> int:
    """`group` rounded up until the queries of one KV head fill whole cache lines.

    Batched products read one matrix after the other, and MKL rounds differently when a matrix does not begin on a line: found
    with dim 10 and 3 heads to a group, where every second token differed. Usual sizes need no padding.
    """
    unit = 64 // math.gcd(64, head_bytes)
    return -(-group // unit) * unit


def _tiled(q: Tensor, k_cache: Tensor, v_cache: Tensor, tiled: TiledGroup, scratch: Scratch) -> Tensor:
    """Softmax in one pass over tiles: Milakov and Gimelshein, https://arxiv.org/abs/1805.02867.

    A tile past a query's context multiplies its sums by exp(0) and adds 0, so the longest context of the group changes no bit.
    Exponentials are taken over a multiple of 32 elements to a row: torch's scalar loop for the ragged end rounds differently.
    """
    tokens, kv_heads, asked, dim = q.shape
    tile, group = tiled.dead.shape[-1], aligned_group(asked, dim * q.dtype.itemsize)
    q = F.pad(q * dim**-0.5, (0, 0, 0, group - asked)).reshape(-1, group, dim)  # a fresh buffer, always aligned alike
    top = torch.full((tokens, kv_heads, group, 1), float("-inf"))
    total = torch.zeros((tokens, kv_heads, group, 1))
    acc = torch.zeros((tokens, kv_heads, group, dim))
    for blocks, dead in zip(tiled.blocks, tiled.dead, strict=True):
        k = scratch.gather("k", k_cache, blocks).view(-1, tile, dim)  # [tokens · kv_heads, tile, dim]
        v = scratch.gather("v", v_cache, blocks).view(tokens, kv_heads, tile, dim)
        v.masked_fill_(dead.view(tokens, 1, tile, 1), 0.0)
        scores = torch.bmm(q, k.transpose(1, 2)).float().view(tokens, kv_heads, group, tile)
        scores.masked_fill_(dead, float("-inf"))
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        keep = (top - new_top).repeat(1, 1, 1, 32).exp_()[..., :1]
        weights = scores.sub_(new_top).exp_()
        total = total.mul_(keep).add_(weights.sum(-1, keepdim=True))
        part = torch.bmm(weights.to(v.dtype).view(-1, group, tile), v.view(-1, tile, dim))
        acc = acc.mul_(keep).add_(part.view(acc.shape))
        top = new_top
    return acc.div_(total)[:, :, :asked].to(k_cache.dtype)
