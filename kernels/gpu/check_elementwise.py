"""Checks of norms, the gate, the write to the cache, and the lookups."""

from __future__ import annotations

import torch

from quiesce.kernels.gpu.check import Bench, Check
from quiesce.kernels.gpu.operators import TRUTHS
from quiesce.kernels.rope import frequencies, rope_table

EPS = 1e-6
FLOAT32 = 16.0
"""In float32 nothing is rounded at the end, and a GPU's exponential and root are good to a few eps."""


def add_rms_norm(tokens: int, width: int, add: bool) -> Check:
    """The residual's bits are those of the truth, as both round once."""

    def run(bench: Bench) -> None:
        x = bench.normal(tokens, width) if add else None
        residual, weight, out = bench.normal(tokens, width, scale=3.0), bench.normal(width), bench.empty(tokens, width)
        residual_wanted, wanted = residual.clone(), torch.empty_like(out, dtype=torch.float32)
        TRUTHS.add_rms_norm(x, residual_wanted, weight, EPS, wanted)
        bench.operators.add_rms_norm(x, residual, weight, EPS, out)
        bench.same("residual", residual, residual_wanted)
        bench.compare("out", out, wanted, FLOAT32 if bench.dtype == torch.float32 else 1.0)

    return Check("add_rms_norm", f"{tokens} x {width}{' add' if add else ''}", run)


def silu_mul(tokens: int, width: int) -> Check:
    def run(bench: Bench) -> None:
        gate_up, out = bench.normal(tokens, 2 * width, scale=3.0), bench.empty(tokens, width)
        wanted = torch.empty_like(out, dtype=torch.float32)
        TRUTHS.silu_mul(gate_up, wanted)
        bench.operators.silu_mul(gate_up, out)
        bench.compare("out", out, wanted, FLOAT32 if bench.dtype == torch.float32 else 1.0)

    return Check("silu_mul", f"{tokens} x {width}", run)


def rope_write(tokens: int, kv_heads: int, group: int, dim: int, block_size: int, norm: bool) -> Check:
    """Every third token is written nowhere."""

    def run(bench: Bench) -> None:
        heads, blocks = kv_heads * group, -(-tokens // block_size) + 2
        places = bench.shuffled(blocks * block_size)[:tokens]
        slots = bench.ints([-1 if token % 3 == 2 else place for token, place in enumerate(places)], torch.int64)
        positions = bench.ints([bench.integer(0, 500) for _ in range(tokens)], torch.int64)
        cos, sin = (bench.put(table) for table in rope_table(500, frequencies(dim, 1e4), bench.dtype))
        qkv = bench.normal(tokens, (heads + 2 * kv_heads) * dim)
        q_norm, k_norm = (bench.normal(dim), bench.normal(dim)) if norm else (None, None)
        got = bench.empty(tokens, heads, dim), *(bench.empty(blocks, kv_heads, block_size, dim) for _ in range(2))
        wanted = [torch.full_like(tensor, float("nan"), dtype=torch.float32) for tensor in got]
        TRUTHS.rope_write(qkv, positions, slots, cos, sin, q_norm, k_norm, EPS, *wanted)
        bench.operators.rope_write(qkv, positions, slots, cos, sin, q_norm, k_norm, EPS, *got)
        limit = FLOAT32 if bench.dtype == torch.float32 else 1.0
        for name, one, right in zip(("queries", "keys", "values"), got, wanted, strict=True):
            bench.same(f"where {name} are written", one.isnan(), right.isnan())
            bench.compare(name, one.nan_to_num(), right.nan_to_num(), limit, 1.0)

    name = f"{tokens} tokens, {kv_heads} x {group} heads of {dim}, blocks of {block_size}{', normed' if norm else ''}"
    return Check("rope_write", name, run)


def input_ids(tokens: int) -> Check:
    """Two of three ids come from the device, some rows have none; rows of the others are not read."""

    def run(bench: Bench) -> None:
        rows = bench.shuffled(tokens + 5)[:tokens]
        chained = [token % 3 > 0 for token in range(tokens)]
        host = bench.ints([-1 if here else token + 7 for token, here in enumerate(chained)], torch.int64)
        next_token = bench.ints([-1 if row % 5 == 0 else row + 100 for row in range(tokens + 5)], torch.int64)
        owners = bench.ints([row if here else -1 for row, here in zip(rows, chained, strict=True)])
        out, lost = bench.empty(tokens, dtype=torch.int64), bench.empty(tokens, dtype=torch.int32)
        wanted, wanted_lost = out.clone(), lost.clone()
        TRUTHS.input_ids(host, owners, next_token, wanted, wanted_lost)
        bench.operators.input_ids(host, owners, next_token, out, lost)
        bench.same("ids", out, wanted)
        bench.same("lost", lost, wanted_lost)

    return Check("input_ids", f"{tokens} tokens", run)


def keep_sampled(samples: int) -> Check:
    """Every fourth is padding; a sampled -1 is kept as well."""

    def run(bench: Bench) -> None:
        rows = bench.ints([-1 if i % 4 == 3 else row for i, row in enumerate(bench.shuffled(samples + 3)[:samples])])
        sampled = bench.ints([-1 if i % 7 == 1 else i for i in range(samples)], torch.int64)
        got = bench.empty(samples + 3, dtype=torch.int64)
        wanted = got.clone()
        TRUTHS.keep_sampled(sampled, rows, wanted)
        bench.operators.keep_sampled(sampled, rows, got)
        bench.same("next tokens", got, wanted)

    return Check("keep_sampled", f"{samples} samples", run)


def checks() -> list[Check]:
    """Odd sizes, and rows longer than a block."""
    made = [add_rms_norm(*shape, add) for shape in ((1, 64), (3, 80), (5, 1030)) for add in (True, False)]
    made += [silu_mul(1, 48), silu_mul(3, 1030), silu_mul(2, 2048)]
    made += [rope_write(7, 2, group, 64, 16, group != 2) for group in (1, 2, 4, 7)]
    made += [rope_write(5, 1, 2, 128, 32, True), rope_write(4, 2, 3, 32, 8, False)]
    return [*made, input_ids(1), input_ids(300), keep_sampled(1), keep_sampled(270)]


def large_checks() -> list[Check]:
    """The shapes of Qwen3 0.6B and 8B, for a GPU."""
    made = [add_rms_norm(tokens, width, True) for tokens in (1, 300) for width in (1024, 4096)]
    made += [silu_mul(tokens, width) for tokens in (1, 300) for width in (3072, 12_288)]
    made += [rope_write(tokens, 8, group, 128, 16, True) for tokens in (1, 300) for group in (2, 4)]
    return [*made, input_ids(4000), keep_sampled(1000)]
