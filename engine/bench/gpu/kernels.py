"""The operators on the device: against their plain torch truths on fresh random numbers, then against the machine's ceilings.

Inputs are bfloat16, truths compute in float32 and keep it. What no operator may read (free blocks, slots past a context) is NaN.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quiesce.engine.bench.gpu.ground import COPY, MATMUL, ROTATED, Ground, Tell
from quiesce.engine.bench.result import Figure
from quiesce.kernels.gpu import decode_attention, prefill_attention, sampler
from quiesce.kernels.gpu.check_sampler import right_tokens
from quiesce.kernels.gpu.operators import KERNELS, TRUTHS, Operators
from quiesce.kernels.rope import rope_table

ROW = "kernels"
NAN = float("nan")
BLOCK_SIZE = 32
HEADS = {"0.6B": (16, 8, 128), "8B": (32, 8, 128)}
"""Heads, KV heads and dimension of each shape."""
ROUNDING = 2.0
"""Units in the last place, of the value and of the largest beside it, that a result may be off: it is rounded twice at most."""


def measure(ground: Ground, tell: Tell) -> None:
    """The block."""
    seed = secrets.randbits(32)
    torch.manual_seed(seed)
    tell(Figure(ROW, "seed of the random numbers", "", (float(seed),)))
    operators = TRUTHS if ground.dry else KERNELS
    for name, error in Checks(ground, operators).all():
        tell(Figure(ROW, f"{name}: largest error / what rounding allows", "x", (error,), 1.0))
    tell(Figure(ROW, "sampler: tokens other than the truth's", "of 256", (float(_tokens_wrong(ground, operators)),), 0.0))
    for shape in HEADS:
        for rows, context in ((1, 1024), (32, 1024), (256, 1024), (8, 16_384)):
            if not ground.out_of_time(tell, ROW, "decode attention", 8):
                _decode_rate(ground, tell, operators, shape, ground.size(rows, 2), ground.size(context, 40))
        for count, length in ((1, 4096), (8, 1024)):
            if not ground.out_of_time(tell, ROW, "prefill attention", 8):
                _prefill_rate(ground, tell, operators, shape, ground.size(count, 2), ground.size(length, 20))
    _row_rates(ground, tell, operators)
    _sampler_rate(ground, tell, operators)


def _off(found: Tensor, wanted: Tensor, eps: float) -> float:
    """Largest error in units of what rounding to `eps` allows."""
    found, wanted = found.double(), wanted.double()
    if bool(found.isnan().any()):
        return float("inf")
    allowed = ROUNDING * eps * (wanted.abs() + wanted.abs().amax(-1, keepdim=True)) / 2 + 1e-30
    return float(((found - wanted).abs() / allowed).max())


class Checks:
    """Each operator once at odd sizes."""

    def __init__(self, ground: Ground, operators: Operators) -> None:
        self.ground, self.operators = ground, operators
        self.eps = float(torch.finfo(ground.dtype).eps)

    def all(self) -> list[tuple[str, float]]:
        return [
            ("add_rms_norm", self.add_rms_norm()),
            ("rope_write", self.rope_write()),
            ("decode_attention", self.decode()),
            ("prefill_attention", self.prefill()),
            ("silu_mul", self.silu_mul()),
            ("input_ids and keep_sampled", self.lookup()),
        ]

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.ground.device).to(self.ground.dtype)

    def add_rms_norm(self) -> float:
        x, residual, weight = self.random(257, 1024), self.random(257, 1024), self.random(1024)
        out, wanted = torch.full_like(x, NAN), torch.empty(x.shape, device=x.device)
        expected = residual.clone()
        self.operators.add_rms_norm(x, residual, weight, 1e-6, out)
        TRUTHS.add_rms_norm(x, expected, weight, 1e-6, wanted)
        return max(_off(out, wanted, self.eps), _off(residual, expected, self.eps))

    def silu_mul(self) -> float:
        gate_up = self.random(129, 2 * 3072)
        out = torch.full((129, 3072), NAN, device=gate_up.device, dtype=gate_up.dtype)
        wanted = torch.empty(out.shape, device=out.device)
        self.operators.silu_mul(gate_up, out)
        TRUTHS.silu_mul(gate_up, wanted)
        return _off(out, wanted, self.eps)

    def rope_write(self) -> float:
        tokens, (heads, kv_heads, dim), blocks = 75, HEADS["0.6B"], 9
        qkv, device = self.random(tokens, (heads + 2 * kv_heads) * dim), self.ground.device
        turns = 1e6 ** -(torch.arange(0, dim, 2) / dim)
        cos, sin = (part.to(device) for part in rope_table(512, turns, torch.float32))
        norms = self.random(dim), self.random(dim)
        positions = torch.randint(0, 512, (tokens,), device=device)
        slots = torch.randperm(blocks * BLOCK_SIZE, device=device)[:tokens]
        slots[::7] = -1
        cache = (blocks + 1, kv_heads, BLOCK_SIZE, dim)
        out = [torch.zeros(shape, device=device, dtype=qkv.dtype) for shape in ((tokens, heads, dim), cache, cache)]
        wanted = [torch.zeros(shape, device=device) for shape in ((tokens, heads, dim), cache, cache)]
        self.operators.rope_write(qkv, positions, slots, cos, sin, *norms, 1e-6, *out)
        TRUTHS.rope_write(qkv, positions, slots, cos, sin, *norms, 1e-6, *wanted)
        return max(_off(a, b, self.eps) for a, b in zip(out, wanted, strict=True))

    def decode(self) -> float:
        contexts = [0, 1, 31, 32, 33, 255, 256, 257, 1000]
        heads, kv_heads, dim = HEADS["0.6B"]
        k, v, tables = paged(self.ground, contexts, kv_heads, dim)
        q = self.random(len(contexts), heads, dim)
        seen = torch.tensor(contexts, dtype=torch.int32, device=q.device)
        splits = decode_attention.num_splits(tables.shape[1], BLOCK_SIZE)
        partial = torch.full((decode_attention.partial_size(len(contexts), heads, dim, splits),), NAN, device=q.device)
        out, wanted = torch.full_like(q, NAN), torch.empty(q.shape, device=q.device)
        self.operators.decode_attention(q, k, v, tables, seen, partial, out)
        TRUTHS.decode_attention(q, k, v, tables, seen, partial, wanted)
        return _off(out, wanted, self.eps)

    def prefill(self) -> float:
        chunks = [(0, 1), (0, 130), (64, 100), (512, 33), (100, 1)]
        heads, kv_heads, dim = HEADS["0.6B"]
        k, v, tables = paged(self.ground, [start + count for start, count in chunks], kv_heads, dim)
        starts, offsets = _cumulated(self.ground, chunks)
        q = self.random(int(offsets[-1]), heads, dim)
        out, wanted = torch.full_like(q, NAN), torch.empty(q.shape, device=q.device)
        self.operators.prefill_attention(q, k, v, tables, starts, offsets, out)
        TRUTHS.prefill_attention(q, k, v, tables, starts, offsets, wanted)
        return _off(out, wanted, self.eps)

    def lookup(self) -> float:
        """0 or infinite: ids are right or wrong."""
        device, rows = self.ground.device, torch.randperm(300, dtype=torch.int32)[:260].to(self.ground.device)
        host_ids = torch.where(torch.rand(260, device=device) < 0.5, -1, torch.randint(0, 1000, (260,), device=device))
        following = [torch.randint(-1, 1000, (300,), device=device)]
        following.append(following[0].clone())
        ids = [torch.empty_like(host_ids) for _ in range(2)]
        lost = [torch.empty(260, dtype=torch.int32, device=device) for _ in range(2)]
        for operators, after, out, gone in zip((self.operators, TRUTHS), following, ids, lost, strict=True):
            operators.input_ids(host_ids, rows, after, out, gone)
            operators.keep_sampled(out, rows, after)
        same = all(torch.equal(*pair) for pair in (following, ids, lost))
        return 0.0 if same else float("inf")


def paged(ground: Ground, contexts: Sequence[int], kv_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of these contexts in blocks dealt at random, NaN wherever nobody may look; and the tables."""
    held = [-(-context // BLOCK_SIZE) for context in contexts]
    order = torch.randperm(sum(held) + 3).tolist()
    tables = torch.zeros((len(contexts), max(max(held), 1)), dtype=torch.int32)
    shape = (len(order) + 1, kv_heads, BLOCK_SIZE, dim)
    k, v = (torch.full(shape, NAN, device=ground.device, dtype=ground.dtype) for _ in range(2))
    for row, (context, count) in enumerate(zip(contexts, held, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks, dtype=torch.int32)
        for cache in (k, v):
            filled = torch.randn((count, kv_heads, BLOCK_SIZE, dim), device=ground.device)
            if context % BLOCK_SIZE:
                filled[-1, :, context % BLOCK_SIZE :] = NAN
            cache[blocks] = filled.to(ground.dtype)
    return k, v, tables.to(ground.device)


def _cumulated(ground: Ground, chunks: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    starts, counts = zip(*chunks, strict=True)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return (torch.tensor(starts, dtype=torch.int32, device=ground.device), offsets.to(torch.int32).to(ground.device))


def _parameters(ground: Ground, rows: int) -> tuple[Tensor, ...]:
    """Temperature, top-k, top-p, min-p, keys and positions, of all kinds."""
    device = ground.device
    temperature = torch.rand(rows, device=device).where(torch.rand(rows, device=device) < 0.8, 0.0)
    top_k = torch.randint(1, 100, (rows,), dtype=torch.int32, device=device)
    top_k = top_k.where(torch.rand(rows, device=device) < 0.5, 0)
    top_p = torch.rand(rows, device=device).where(torch.rand(rows, device=device) < 0.5, 1.0)
    min_p = (torch.rand(rows, device=device) / 10).where(torch.rand(rows, device=device) < 0.3, 0.0)
    keys = torch.randint(-(1 << 62), 1 << 62, (rows,), device=device)
    return temperature, top_k, top_p, min_p, keys, torch.randint(0, 4096, (rows,), device=device)


def _tokens_wrong(ground: Ground, operators: Operators) -> int:
    """Rows whose token is wrong: not the truth's, nor one that masses rounded to float32 may give instead."""
    rows, vocab = ground.size(256, 8), ground.size(151_936, 500)
    logits = 3 * torch.randn(rows, vocab, device=ground.device)
    given = _parameters(ground, rows)
    scratch = torch.empty(sampler.scratch_size(rows, vocab), dtype=torch.float64, device=ground.device)
    found, wanted = (torch.full((rows,), -7, device=ground.device) for _ in range(2))
    faults = torch.empty(rows, dtype=torch.int32, device=ground.device)
    operators.sample(logits, *given, found, faults, scratch)
    TRUTHS.sample(logits, *given, wanted, faults, scratch)
    other = (found != wanted).nonzero().flatten().tolist()
    temperature, top_k, top_p, min_p, keys, positions = (parameter.tolist() for parameter in given)
    return sum(
        int(found[row])
        not in right_tokens(logits[row], (temperature[row], top_k[row], top_p[row], min_p[row]), keys[row], positions[row])
        for row in other
    )


# ---- rates ------------------------------------------------------------------------------------------------------------------


def _rotated(num_bytes: int, make: Callable[[], tuple[Tensor, ...]], most: int) -> list[tuple[Tensor, ...]]:
    """So many sets that one is not in the cache any more when its turn comes again."""
    return [make() for _ in range(min(max(ROTATED // num_bytes, 1), most))]


def _decode_rate(ground: Ground, tell: Tell, operators: Operators, shape: str, rows: int, context: int) -> None:
    heads, kv_heads, dim = HEADS[shape]
    contexts = [context] * rows
    cost = decode_attention.cost(contexts, heads, kv_heads, dim, ground.dtype.itemsize)
    sets = _rotated(cost.bytes, lambda: paged(ground, contexts, kv_heads, dim), 1 if ground.dry else 28)
    q = torch.randn(rows, heads, dim, device=ground.device).to(ground.dtype)
    seen = torch.tensor(contexts, dtype=torch.int32, device=ground.device)
    splits = decode_attention.num_splits(sets[0][2].shape[1], BLOCK_SIZE)
    partial = torch.empty(decode_attention.partial_size(rows, heads, dim, splits), device=ground.device)
    out = torch.empty_like(q)
    seconds = ground.captured_seconds(
        lambda call: operators.decode_attention(q, *sets[call % len(sets)], seen, partial, out), calls=max(len(sets), 10)
    )
    rates = tuple(cost.bytes / s / 1e9 for s in seconds)
    share = tuple(rate / ground.ceilings[COPY] for rate in rates)
    what = f"decode attention {shape}, {rows} rows of {context}"
    tell(Figure(ROW, what, "GB/s", rates, at_most=False))
    tell(Figure(ROW, "    / copy of device memory", "x", share, at_most=False))


def _prefill_rate(ground: Ground, tell: Tell, operators: Operators, shape: str, count: int, length: int) -> None:
    heads, kv_heads, dim = HEADS[shape]
    chunks = [(0, length)] * count
    cost = prefill_attention.cost(chunks, heads, kv_heads, dim, ground.dtype.itemsize)
    k, v, tables = paged(ground, [length] * count, kv_heads, dim)
    starts, offsets = _cumulated(ground, chunks)
    q = torch.randn(count * length, heads, dim, device=ground.device).to(ground.dtype)
    out = torch.empty_like(q)
    seconds = ground.captured_seconds(lambda _: operators.prefill_attention(q, k, v, tables, starts, offsets, out))
    rates = tuple(cost.flops / s / 1e12 for s in seconds)
    share = tuple(rate / ground.ceilings[MATMUL] for rate in rates)
    tell(Figure(ROW, f"prefill attention {shape}, {count} x {length}", "TFLOP/s", rates, at_most=False))
    tell(Figure(ROW, "    / matrix product", "x", share, at_most=False))


def _row_rates(ground: Ground, tell: Tell, operators: Operators) -> None:
    """Operators that read and write rows once."""
    from quiesce.kernels.gpu import add_rms_norm, silu_mul

    tokens, itemsize = ground.size(8192, 4), ground.dtype.itemsize
    x, residual, out = (torch.randn(tokens, 4096, device=ground.device).to(ground.dtype) for _ in range(3))
    weight = torch.ones(4096, device=ground.device, dtype=ground.dtype)
    gate_up = torch.randn(tokens, 2 * 12_288, device=ground.device).to(ground.dtype)
    narrow = torch.empty(tokens, 12_288, device=ground.device, dtype=ground.dtype)
    for name, work, cost in (
        (
            "add_rms_norm",
            lambda _: operators.add_rms_norm(x, residual, weight, 1e-6, out),
            add_rms_norm.cost(tokens, 4096, itemsize),
        ),
        ("silu_mul", lambda _: operators.silu_mul(gate_up, narrow), silu_mul.cost(tokens, 12_288, itemsize)),
    ):
        rates = tuple(cost.bytes / s / 1e9 for s in ground.captured_seconds(work))
        tell(Figure(ROW, f"{name}, {tokens} rows of the 8B shape", "GB/s", rates, at_most=False))


def _sampler_rate(ground: Ground, tell: Tell, operators: Operators) -> None:
    rows, vocab = ground.size(256, 2), ground.size(151_936, 500)
    logits = torch.randn(rows, vocab, device=ground.device).to(ground.dtype)
    temperature, _, _, min_p, keys, positions = _parameters(ground, rows)
    all_k = torch.zeros(rows, dtype=torch.int32, device=ground.device)
    scratch = torch.empty(sampler.scratch_size(rows, vocab), dtype=torch.float64, device=ground.device)
    out = torch.empty(rows, dtype=torch.int64, device=ground.device)
    faults = torch.empty(rows, dtype=torch.int32, device=ground.device)
    for what, top_p, filtered in (("no filter", 1.0, False), ("top-p 0.9", 0.9, True)):
        limit = torch.full((rows,), top_p, device=ground.device)
        seconds = ground.captured_seconds(
            lambda _, p=limit, f=filtered: operators.sample(  # type: ignore[misc]
                logits, temperature, all_k, p, min_p, keys, positions, out, faults, scratch, filtered=f
            )
        )
        tell(Figure(ROW, f"sampler, {rows} rows of {vocab}, {what}", "us", tuple(s * 1e6 for s in seconds)))
