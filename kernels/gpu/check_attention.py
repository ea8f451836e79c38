"""Checks of attention over blocks: everything a row may not see is poisoned, and its bits may not depend on what stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quiesce.kernels.gpu.check import Bench, Check
from quiesce.kernels.gpu.decode_attention import num_splits, partial_size
from quiesce.kernels.gpu.operators import TRUTHS

LIMIT = 1.0
"""Of float16 and bfloat16: the weights are rounded, and the result; each gives up to half an eps."""
LIMIT_FLOAT32 = 8.0
LIMIT_TF32 = 64.0
"""Of float32 on a GPU, where products are made of three tf32 parts and lose the last bits."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of attention."""

    kv_heads: int
    group: int
    dim: int
    block_size: int

    def __str__(self) -> str:
        return f"{self.kv_heads} x {self.group} heads of {self.dim}, blocks of {self.block_size}"


def caches(bench: Bench, heads: Heads, lengths: Sequence[int], spare: int) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Keys and values of `lengths` slots in shuffled blocks, NaN everywhere else; and tables, -1 past a request's own blocks.

    `spare` columns are added to the tables' memory and not shown, so that rows are strided.
    """
    size = heads.block_size
    needed = [-(-length // size) for length in lengths]
    order = iter(bench.shuffled(sum(needed) + 3))
    owned = [[next(order) for _ in range(count)] for count in needed]
    shape = (sum(needed) + 3, heads.kv_heads, size, heads.dim)
    k_cache, v_cache = bench.empty(*shape), bench.empty(*shape)
    for blocks, length in zip(owned, lengths, strict=True):
        for cache in (k_cache, v_cache):
            filled = bench.normal(len(blocks), heads.kv_heads, size, heads.dim)
            for place, block in enumerate(blocks):
                inside = min(size, length - place * size)
                cache[block, :, :inside] = filled[place, :, :inside]
    width = max([*needed, 1])
    rows = [blocks + [-1] * (width - len(blocks)) + [-2] * spare for blocks in owned]
    return k_cache, v_cache, bench.ints([entry for row in rows for entry in row]).view(len(rows), -1)[:, :width], owned


def limit(bench: Bench) -> float:
    if bench.dtype != torch.float32:
        return LIMIT
    return LIMIT_FLOAT32 if bench.device == "cpu" else LIMIT_TF32


def decode(heads: Heads, contexts: Sequence[int]) -> Check:
    """Against the truth, and each row's bits alone and under a wider table."""

    def attend(bench: Bench, q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, contexts: Tensor) -> Tensor:
        splits = num_splits(tables.shape[1], heads.block_size)
        partial = bench.empty(partial_size(q.shape[0], q.shape[1], heads.dim, splits), dtype=torch.float32)
        out = bench.empty(*q.shape)
        bench.operators.decode_attention(q, k_cache, v_cache, tables, contexts, partial, out)
        return out

    def run(bench: Bench) -> None:
        k_cache, v_cache, tables, _ = caches(bench, heads, contexts, 3)
        q = bench.normal(len(contexts), heads.kv_heads * heads.group, heads.dim)
        seen = bench.ints(contexts)
        wanted = torch.empty_like(q, dtype=torch.float32)
        TRUTHS.decode_attention(q, k_cache, v_cache, tables, seen, q, wanted)
        got = attend(bench, q, k_cache, v_cache, tables, seen)
        bench.compare("out", got, wanted, limit(bench), 2.0)
        wide = bench.put(torch.cat((tables, tables.new_full((len(contexts), 40), -1)), 1))
        bench.same("under a wider table", attend(bench, q, k_cache, v_cache, wide, seen), got)
        row = len(contexts) - 1
        alone = attend(bench, q[row:].contiguous(), k_cache, v_cache, tables[row:], seen[row:].contiguous())
        bench.same("alone", alone, got[row:])

    return Check("decode_attention", f"{heads}, contexts {', '.join(map(str, contexts))}", run)


def prefill(heads: Heads, chunks: Sequence[tuple[int, int]], padding: int = 0) -> Check:
    """`chunks`: (first position, queries) of each request. Against the truth, and the bits of the last one cut in two."""

    def attend(
        bench: Bench, q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, starts: list[int], ends: list[int]
    ) -> Tensor:
        out = bench.empty(*q.shape)
        bench.operators.prefill_attention(q, k_cache, v_cache, tables, bench.ints(starts), bench.ints([0, *ends]), out)
        return out

    def run(bench: Bench) -> None:
        k_cache, v_cache, tables, _ = caches(bench, heads, [start + count for start, count in chunks], 2)
        ends, total = [], 0
        for _, count in chunks:
            total += count
            ends.append(total)
        starts = [start for start, _ in chunks]
        q = bench.normal(total + padding, heads.kv_heads * heads.group, heads.dim)
        wanted = torch.empty_like(q, dtype=torch.float32)
        TRUTHS.prefill_attention(q, k_cache, v_cache, tables, bench.ints(starts), bench.ints([0, *ends]), wanted)
        got = attend(bench, q, k_cache, v_cache, tables, starts, ends)
        bench.compare("out", got[:total], wanted[:total], limit(bench), 2.0)
        bench.same("padding", got[total:].isnan(), torch.ones_like(got[total:], dtype=torch.bool))
        start, count = chunks[-1]
        cut = count // 3
        last = q[total - count : total].contiguous()
        pieces = [
            attend(bench, last[:cut].contiguous(), k_cache, v_cache, tables[-1:], [start], [cut]),
            attend(bench, last[cut:].contiguous(), k_cache, v_cache, tables[-1:], [start + cut], [count - cut]),
        ]
        bench.same("cut in two", torch.cat(pieces), got[total - count : total])

    return Check("prefill_attention", f"{heads}, chunks {', '.join(f'{a}+{n}' for a, n in chunks)}", run)


def shared_prefix(heads: Heads) -> Check:
    """Two requests whose tables begin with the same blocks, one of them a prefix hit: as if the prefix were its own."""

    def run(bench: Bench) -> None:
        size = heads.block_size
        k_cache, v_cache, tables, owned = caches(bench, heads, [3 * size + 5, 2 * size + 9], 0)
        hit = tables.clone()
        hit[1, :2] = hit[0, :2]
        own = tables.clone()
        for cache in (k_cache, v_cache):
            cache[owned[1][0]], cache[owned[1][1]] = cache[owned[0][0]].clone(), cache[owned[0][1]].clone()
        q = bench.normal(3 * size + 5 + 9, heads.kv_heads * heads.group, heads.dim)
        starts, offsets = bench.ints([0, 2 * size]), bench.ints([0, 3 * size + 5, 3 * size + 14])
        outs = [bench.empty(*q.shape) for _ in range(2)]
        for table, out in zip((hit, own), outs, strict=True):
            bench.operators.prefill_attention(q, k_cache, v_cache, bench.put(table), starts, offsets, out)
        bench.same("a shared prefix and its copy", *outs)
        wanted = torch.empty_like(q, dtype=torch.float32)
        TRUTHS.prefill_attention(q, k_cache, v_cache, hit, starts, offsets, wanted)
        bench.compare("out", outs[0], wanted, limit(bench), 2.0)

    return Check("prefill_attention", f"{heads}, a shared prefix", run)


SHAPES = (
    Heads(2, 1, 64, 16),
    Heads(2, 3, 32, 16),
    Heads(2, 2, 128, 16),
    Heads(1, 4, 64, 32),
    Heads(2, 7, 64, 16),
    Heads(1, 2, 128, 32),
)


def checks() -> list[Check]:
    """Contexts and chunks around the borders of blocks, tiles and splits."""
    made = [decode(heads, (0, 1, 17, 64, 65)) for heads in SHAPES]
    made += [decode(SHAPES[0], (255, 256, 257, 0, 513)), decode(SHAPES[5], (300,)), decode(Heads(1, 2, 64, 16), (2600,))]
    made += [prefill(heads, ((0, 5), (30, 23), (64, 1)), 2) for heads in SHAPES]
    made += [
        prefill(SHAPES[0], ((0, 131), (0, 0), (190, 66), (3, 1), (0, 7))),
        prefill(SHAPES[4], ((62, 3), (63, 2), (127, 40))),
    ]
    return [*made, shared_prefix(SHAPES[3])]


def large_checks() -> list[Check]:
    """The heads of Qwen3 0.6B and 8B, for a GPU."""
    made: list[Check] = []
    for heads in (Heads(8, 2, 128, 16), Heads(8, 4, 128, 16), Heads(8, 4, 128, 32), Heads(4, 7, 128, 16)):
        made.append(decode(heads, (0, 1, 255, 256, 257, 1024, 4095, 2000, 31, 700)))
        made.append(prefill(heads, ((0, 513), (512, 700), (1000, 1), (0, 0), (2047, 33), (0, 1500)), 5))
        made.append(shared_prefix(heads))
    return made
