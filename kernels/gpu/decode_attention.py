"""Attention of single queries over a paged KV cache, split along the context: Dao et al., "Flash-Decoding",
https://crfm.stanford.edu/2023/10/12/flashdecoding.html, over the blocks of Kwon et al., https://arxiv.org/abs/2309.06180.

    y = softmax(q·Kᵀ / sqrt(dim)) · V   over the first `context` slots of each row

One program does one KV head of one row over SPLIT tokens; a second kernel combines the splits. A split is SPLIT tokens whatever the
batch is, so the bits of a row depend on the row alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quiesce.kernels.gpu.cost import Cost
from quiesce.kernels.gpu.language import ceil_div, jit_for_any, power_of_two, require_contiguous, tl

SPLIT = 256
"""Tokens to a program."""
TILE = 64
"""Tokens to a turn of its loop."""
STAGES = 5
"""Keys and values wait for the block table: with two loads in a chain, Triton keeps a tile in flight from 5 stages on."""
COMBINED = 8
"""Splits to a turn of the combining loop."""
LOG2_E = math.log2(math.e)


@jit_for_any("tables", "contexts", "table_stride")
def decode_split_kernel(
    q, k_cache, v_cache, tables, contexts, sums, stats, table_stride, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid (splits, KV heads, rows). `scale` is in units of log2, as exp2 is the machine's own."""
    split = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    begin = split * SPLIT
    context = tl.load(contexts + row)
    if begin >= context:
        return
    end = tl.minimum(begin + SPLIT, context)
    member = tl.arange(0, GROUP_BLOCK)
    d = tl.arange(0, DIM)
    queries = (row * KV_HEADS + head) * GROUP + member
    x = tl.load(q + queries[:, None] * DIM + d[None, :], mask=member[:, None] < GROUP, other=0.0)
    top = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    acc = tl.zeros([GROUP_BLOCK, DIM], tl.float32)
    for tile in range(begin, end, TILE):
        n = tile + tl.arange(0, TILE)
        seen = n < end
        block = tl.load(tables + row * table_stride + n // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
        slot = ((block * KV_HEADS + head) * BLOCK_SIZE + n % BLOCK_SIZE) * DIM
        k = tl.load(k_cache + slot[:, None] + d[None, :], mask=seen[:, None], other=0.0)
        scores = tl.dot(x, tl.trans(k), input_precision="tf32x3")
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        keep = tl.exp2((top - new_top) * scale)
        weights = tl.exp2(tl.fma(scores, scale, -new_top[:, None] * scale))
        total = total * keep + tl.sum(weights, 1)
        v = tl.load(v_cache + slot[:, None] + d[None, :], mask=seen[:, None], other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision="tf32x3")
        top = new_top
    part = queries * tl.num_programs(0) + split
    inside = member < GROUP
    tl.store(sums + part[:, None] * DIM + d[None, :], acc, mask=inside[:, None])
    tl.store(stats + part * 2, top, mask=inside)
    tl.store(stats + part * 2 + 1, total, mask=inside)


@jit_for_any("contexts", "splits")
def decode_combine_kernel(
    sums, stats, contexts, out, splits, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, SPLIT: tl.constexpr, COMBINED: tl.constexpr,
):  # fmt: skip
    """Grid (heads, rows)."""
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, DIM)
    count = tl.cdiv(tl.load(contexts + row), SPLIT)
    first = (row * HEADS + head) * splits
    top = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([DIM], tl.float32)
    for begin in range(0, count, COMBINED):
        split = begin + tl.arange(0, COMBINED)
        inside = split < count
        tops = tl.load(stats + (first + split) * 2, mask=inside, other=float("-inf"))
        totals = tl.load(stats + (first + split) * 2 + 1, mask=inside, other=0.0)
        parts = tl.load(sums + (first + split)[:, None] * DIM + d[None, :], mask=inside[:, None], other=0.0)
        new_top = tl.maximum(top, tl.max(tops, 0))
        keep = tl.exp2((top - new_top) * scale)
        weights = tl.exp2((tops - new_top) * scale)
        total = total * keep + tl.sum(totals * weights, 0)
        acc = acc * keep + tl.sum(parts * weights[:, None], 0)
        top = new_top
    y = tl.where(count > 0, acc / total, 0.0)
    tl.store(out + (row * HEADS + head) * DIM + d, y.to(out.dtype.element_ty))


def num_splits(max_blocks: int, block_size: int) -> int:
    """Splits that tables of `max_blocks` columns can need."""
    return ceil_div(max_blocks * block_size, SPLIT)


def partial_size(rows: int, heads: int, dim: int, splits: int) -> int:
    """float32 elements of the scratch `partial`: a weighted sum, a maximum and a total for each row, head and split."""
    return rows * heads * splits * (dim + 2)


def split_configuration(heads: int, kv_heads: int, dim: int, block_size: int, dtype: torch.dtype) -> dict[str, int]:
    """Compile-time parameters of the first kernel. The matrix instruction has 16 rows, so groups are padded to them.

    float32 is for comparisons: it is multiplied in three parts, for which half a tile leaves registers.
    """
    group, wide = heads // kv_heads, dtype == torch.float32
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "GROUP_BLOCK": max(16, power_of_two(group)),
        "DIM": dim,
        "BLOCK_SIZE": block_size,
        "TILE": TILE // 2 if wide else TILE,
        "SPLIT": SPLIT,
        "num_warps": 4,
        "num_stages": 3 if wide else STAGES,
    }


def combine_configuration(heads: int, dim: int) -> dict[str, int]:
    """Compile-time parameters of the second."""
    return {"HEADS": heads, "DIM": dim, "SPLIT": SPLIT, "COMBINED": COMBINED, "num_warps": 2}


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, contexts: Tensor, partial: Tensor, out: Tensor
) -> None:
    """Scores and sums in float32; weights are rounded to the cache's type before they meet the values.

    A captured launch covers contexts up to tables.shape[1] · block_size: give a narrower view of the tables for short contexts.

    Args:
        q: [rows, heads, dim], dim a power of two >= 16.
        k_cache, v_cache: [num_blocks + 1, kv_heads, block_size, dim]. A slot beyond a context is never read.
        tables: [rows, max_blocks] int32, physical block of each logical block; columns contiguous, rows may be strided.
        contexts: [rows] int32, slots the row sees; 0 is a padding row.
        partial: float32 scratch of at least `partial_size` elements.
        out: [rows, heads, dim], written; zeros in padding rows.

    Raises:
        ValueError: `partial` is too small, or a tensor is not contiguous.
    """
    require_contiguous(q=q, k_cache=k_cache, v_cache=v_cache, contexts=contexts, partial=partial, out=out)
    rows, heads, dim = q.shape
    kv_heads, block_size = k_cache.shape[1:3]
    splits = num_splits(tables.shape[1], block_size)
    needed = partial_size(rows, heads, dim, splits)
    if partial.numel() < needed or tables.stride(1) != 1:
        raise ValueError(
            f"partial must have {needed} elements and has {partial.numel()}; the tables' columns must be contiguous"
        )
    sums = partial.view(-1)
    stats = sums[rows * heads * splits * dim :]
    scale = dim**-0.5 * LOG2_E
    decode_split_kernel[(splits, kv_heads, rows)](
        q, k_cache, v_cache, tables, contexts, sums, stats, tables.stride(0), scale,
        **split_configuration(heads, kv_heads, dim, block_size, q.dtype),
    )  # fmt: skip
    decode_combine_kernel[(heads, rows)](sums, stats, contexts, out, splits, scale, **combine_configuration(heads, dim))


def decode_attention_truth(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, contexts: Tensor, partial: Tensor, out: Tensor
) -> None:
    """The same in plain torch, row by row; `partial` is not used."""
    dim, group, size = q.shape[2], q.shape[1] // k_cache.shape[1], k_cache.shape[2]
    for row, context in enumerate(contexts.tolist()):
        if context == 0:
            out[row] = 0.0
            continue
        blocks = tables[row, : ceil_div(context, size)].long()
        k = k_cache[blocks].transpose(0, 1).flatten(1, 2)[:, :context].float()  # [kv_heads, context, dim]
        v = v_cache[blocks].transpose(0, 1).flatten(1, 2)[:, :context].float()
        queries = q[row].float().view(-1, group, dim)  # [kv_heads, group, dim]
        out[row] = (torch.softmax(queries @ k.transpose(1, 2) * dim**-0.5, -1) @ v).flatten(0, 1).to(out.dtype)


def cost(contexts: list[int], heads: int, kv_heads: int, dim: int, itemsize: int) -> Cost:
    """Reads keys and values of every context once, queries once, writes results; partial sums stay in the L2 cache."""
    tokens, rows = sum(contexts), len(contexts)
    return Cost((2 * tokens * kv_heads + 2 * rows * heads) * dim * itemsize, 4 * tokens * heads * dim)
