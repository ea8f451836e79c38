"""Causal attention of chunks of prompts over a paged KV cache: first chunks, later ones, prefix hits and single tokens alike.

    y = softmax(q·Kᵀ / sqrt(dim)) · V   over the slots 0 .. position of each query

Requests have any number of queries. One program does one KV head and BLOCK_Q queries of one request, whose `group` heads stand
together as rows of one matrix; it finds its request by bisection. Softmax in one pass over tiles of TILE tokens from slot 0: Dao,
https://arxiv.org/abs/2307.08691. Tiles that every query sees whole are not masked.

A tile past a query's position multiplies its sums by 1 and adds 0, so a result does not depend on how the prompt was cut, down to
single tokens: where every bit must be reproducible, decoding rows come here, too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quiesce.kernels.gpu.cost import Cost
from quiesce.kernels.gpu.language import ceil_div, jit, jit_for_any, power_of_two, require_contiguous, tl

ROWS = 128
"""Rows of a program's matrix: queries times padded group. Two warp groups of 64, as Hopper's matrix instruction has them."""
TILE = 64
"""Tokens to a turn of its loop."""
STAGES = 5
"""Keys and values wait for the block table: with two loads in a chain, Triton keeps a tile in flight from 5 stages on."""
LOG2_E = math.log2(math.e)


@jit
def _owner(offsets, block, requests, BLOCK_Q: tl.constexpr):
    """The last request whose blocks begin at or before `block`: request r's begin at offsets[r] // BLOCK_Q + r."""
    low = 0
    high = requests
    while low < high:
        middle = (low + high) // 2
        if tl.load(offsets + middle) // BLOCK_Q + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@jit
def _turn(
    x, acc, total, top, tile, last, position, k_cache, v_cache, table, head, scale,
    MASKED: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values; `last` is how many slots the program's last query sees."""
    n = tile + tl.arange(0, TILE)
    d = tl.arange(0, DIM)
    if MASKED:
        block = tl.load(table + n // BLOCK_SIZE, mask=n < last, other=0).to(tl.int64)
    else:
        block = tl.load(table + n // BLOCK_SIZE).to(tl.int64)
    place = (((block * KV_HEADS + head) * BLOCK_SIZE + n % BLOCK_SIZE) * DIM)[:, None] + d[None, :]
    k = tl.load(k_cache + place, mask=n[:, None] < last, other=0.0) if MASKED else tl.load(k_cache + place)
    scores = tl.dot(x, tl.trans(k), input_precision="tf32x3")
    if MASKED:
        scores = tl.where(n[None, :] <= position[:, None], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    keep = tl.exp2((top - new_top) * scale)
    weights = tl.exp2(tl.fma(scores, scale, -new_top[:, None] * scale))  # one rounding, masked or not
    total = total * keep + tl.sum(weights, 1)
    v = tl.load(v_cache + place, mask=n[:, None] < last, other=0.0) if MASKED else tl.load(v_cache + place)
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision="tf32x3")
    return acc, total, new_top


@jit_for_any("tables", "starts", "offsets", "requests", "table_stride")
def prefill_kernel(
    q, k_cache, v_cache, tables, starts, offsets, out, requests, table_stride, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (KV heads, blocks of queries), the last block first: it is the longest of its request."""
    head = tl.program_id(0)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    request = _owner(offsets, block, requests, BLOCK_Q)
    begin = tl.load(offsets + request)
    count = tl.load(offsets + request + 1) - begin
    first = (block - (begin // BLOCK_Q + request)) * BLOCK_Q  # of the request's queries
    if first >= count:
        return
    start = tl.load(starts + request)
    table = tables + request.to(tl.int64) * table_stride
    row = tl.arange(0, BLOCK_Q * GROUP_BLOCK)
    d = tl.arange(0, DIM)
    query = first + row // GROUP_BLOCK
    member = row % GROUP_BLOCK
    inside = (query < count) & (member < GROUP)
    place = (((begin + query).to(tl.int64) * KV_HEADS + head) * GROUP + member)[:, None] * DIM + d[None, :]
    x = tl.load(q + place, mask=inside[:, None], other=0.0)
    position = start + query
    last = start + tl.minimum(first + BLOCK_Q, count)
    whole = (start + first + 1) // TILE * TILE  # tiles before it are seen whole by every query
    top = tl.full([BLOCK_Q * GROUP_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q * GROUP_BLOCK], tl.float32)
    acc = tl.zeros([BLOCK_Q * GROUP_BLOCK, DIM], tl.float32)
    for tile in range(0, whole, TILE):
        acc, total, top = _turn(x, acc, total, top, tile, last, position, k_cache, v_cache, table, head, scale,
                                False, KV_HEADS, DIM, BLOCK_SIZE, TILE)  # fmt: skip
    for tile in range(whole, last, TILE):
        acc, total, top = _turn(x, acc, total, top, tile, last, position, k_cache, v_cache, table, head, scale,
                                True, KV_HEADS, DIM, BLOCK_SIZE, TILE)  # fmt: skip
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


def configuration(heads: int, kv_heads: int, dim: int, block_size: int, dtype: torch.dtype) -> dict[str, int]:
    """Compile-time parameters of a model's shape.

    float32 is for comparisons: it is multiplied in three parts, for which few rows leave registers.
    """
    group, wide = heads // kv_heads, dtype == torch.float32
    block = power_of_two(group)
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "GROUP_BLOCK": block,
        "DIM": dim,
        "BLOCK_SIZE": block_size,
        "BLOCK_Q": max(1, (16 if wide else ROWS) // block),
        "TILE": TILE // 2 if wide else TILE,
        "num_warps": 4 if wide else 8,
        "num_stages": 3 if wide else STAGES,
    }


def num_query_blocks(tokens: int, requests: int, block_q: int) -> int:
    """Programs along the queries that are enough however `tokens` fall to `requests`."""
    return tokens // block_q + requests


def owner_of_block(offsets: list[int], block: int, block_q: int) -> tuple[int, int]:
    """What program `block` does: its request, and the first of that request's queries (at or past its count: nothing)."""
    request = max(r for r in range(len(offsets) - 1) if offsets[r] // block_q + r <= block)
    return request, (block - (offsets[request] // block_q + request)) * block_q


def prefill_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, starts: Tensor, offsets: Tensor, out: Tensor
) -> None:
    """Scores and sums in float32; weights are rounded to the cache's type before they meet the values.

    The grid follows from shapes alone, so nothing is read back from the device.

    Args:
        q: [tokens, heads, dim], request after request; dim a power of two >= 16.
        k_cache, v_cache: [num_blocks + 1, kv_heads, block_size, dim], the step's own keys and values already written. A slot
            beyond the last query's position is never read.
        tables: [requests, max_blocks] int32, physical block of each logical block; columns contiguous, rows may be strided.
        starts: [requests] int32, position of each request's first query; all slots before hold valid keys and values.
        offsets: [requests + 1] int32, where each request's queries begin in `q`, and their end; a request may have none. Tokens
            past the end are padding: their rows of `out` are not written.
        out: [tokens, heads, dim], written.
    """
    require_contiguous(q=q, k_cache=k_cache, v_cache=v_cache, starts=starts, offsets=offsets, out=out)
    if tables.stride(1) != 1:
        raise ValueError("the tables' columns must be contiguous")
    tokens, heads, dim = q.shape
    kv_heads, block_size = k_cache.shape[1:3]
    requests = starts.shape[0]
    shape = configuration(heads, kv_heads, dim, block_size, q.dtype)
    prefill_kernel[(kv_heads, num_query_blocks(tokens, requests, shape["BLOCK_Q"]))](
        q, k_cache, v_cache, tables, starts, offsets, out, requests, tables.stride(0), dim**-0.5 * LOG2_E, **shape
    )


def prefill_attention_truth(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, starts: Tensor, offsets: Tensor, out: Tensor
) -> None:
    """The same in plain torch, request by request."""
    kv_heads, size, dim = k_cache.shape[1:]
    ends = offsets.tolist()
    for request, start in enumerate(starts.tolist()):
        begin, end = ends[request : request + 2]
        context = start + end - begin
        blocks = tables[request, : ceil_div(context, size)].long()
        k = k_cache[blocks].transpose(0, 1).flatten(1, 2)[:, :context].float()  # [kv_heads, context, dim]
        v = v_cache[blocks].transpose(0, 1).flatten(1, 2)[:, :context].float()
        queries = q[begin:end].float().unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)  # [kv_heads, group, queries, dim]
        scores = queries @ k.unsqueeze(1).transpose(2, 3) * dim**-0.5
        positions = torch.arange(start, context, device=q.device)
        hidden = torch.arange(context, device=q.device) > positions[:, None]
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
        out[begin:end] = (weights @ v.unsqueeze(1)).permute(2, 0, 1, 3).flatten(1, 2).to(out.dtype)


def cost(chunks: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, itemsize: int) -> Cost:
    """`chunks`: (start, count) of each request. Keys and values up to the chunk's end once; 4 · dim operations a pair and head."""
    tokens = sum(count for _, count in chunks)
    context = sum(start + count for start, count in chunks)
    pairs = sum(count * start + count * (count + 1) // 2 for start, count in chunks)
    return Cost((2 * context * kv_heads + 2 * tokens * heads) * dim * itemsize, 4 * pairs * heads * dim)
