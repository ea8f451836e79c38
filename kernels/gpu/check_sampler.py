"""Checks of the sampler: the very token of the truth. Where a number falls on an end, the tokens on both sides are right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quiesce.kernels.gpu.check import Bench, Check, Difference
from quiesce.kernels.gpu.sampler import scratch_size
from quiesce.kernels.sampling import kept_probabilities, look_up, uniform

MARGIN = 1e-6
"""Relative error of float32 masses."""

Filters = tuple[float, int, float, float]
"""Temperature, top-k, top-p, min-p. A hot row with few tokens left shows it when one is missing."""
MIXTURE: tuple[Filters, ...] = (
    (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.7, 20, 1.0, 0.0), (1.3, 0, 0.9, 0.0), (1.0, 0, 1.0, 0.1), (0.9, 50, 0.8, 0.02),
    (2.0, 1, 1.0, 0.0), (1.0, 0, 0.0, 0.0), (1e-4, 0, 1.0, 0.0), (1.0, 10**6, 0.999, 0.0), (0.0, 5, 0.5, 0.5), (5.0, 700, 1.0, 0.0),
    (5.0, 3, 1.0, 0.0), (3.0, 2, 1.0, 0.0), (2.0, 0, 1.0, 0.5), (9.0, 4, 0.7, 0.3), (9.0, 0, 0.02, 0.0),
)  # fmt: skip


def draw(
    bench: Bench, logits: Tensor, filters: Sequence[Filters], keys: list[int], banned: bool = False
) -> tuple[Tensor, Tensor]:
    """Tokens and faults; positions are the rows' numbers."""
    rows, vocab = logits.shape
    heats, top_k, top_p, min_p = zip(*filters, strict=True)
    out, faults = bench.empty(rows, dtype=torch.int64), bench.empty(rows, dtype=torch.int32)
    scratch = bench.empty(scratch_size(rows, vocab), dtype=torch.float64)
    bench.operators.sample(
        logits, bench.floats(heats), bench.ints(top_k), bench.floats(top_p), bench.floats(min_p), bench.ints(keys, torch.int64),
        bench.ints(range(rows), torch.int64), out, faults, scratch,
        filtered=any(0 < k < vocab or p < 1.0 for _, k, p, _ in filters), banned=banned,
    )  # fmt: skip
    return out, faults


def right_tokens(logits: Tensor, filters: Filters, key: int, position: int) -> set[int]:
    """Those of the truth, with its masses off by up to MARGIN."""
    heat, top_k, top_p, min_p = filters
    x = logits.float().cpu()
    if heat == 0.0:
        return {int((x == x.amax()).nonzero()[0])}
    share, found = uniform(key & (1 << 64) - 1, position), set()
    for off in (0.0, -MARGIN, MARGIN):
        kept = kept_probabilities(x, heat, top_k, top_p if top_p == 1.0 else max(top_p + off, 0.0), min_p * (1.0 + off)).numpy()
        found |= {look_up(kept, min(max(share + other, 0.0), 1.0))[0] for other in (0.0, -MARGIN, MARGIN)}
    return found


def mixture(vocab: int, ties: bool = False, repeats: int = 1) -> Check:
    """Rows with all kinds of filters in one batch. `ties`: many logits are equal."""

    def run(bench: Bench) -> None:
        filters = MIXTURE * repeats
        rows = len(filters)
        drawn = bench.normal(rows, vocab, scale=3.0)
        logits = bench.put(drawn.clamp(max=5.0).round()) if ties else drawn
        keys = [bench.integer(-(2**63), 2**63 - 1) for _ in range(rows)]
        out, faults = draw(bench, logits, filters, keys)
        wrong = [
            row
            for row, token in enumerate(out.tolist())
            if token not in right_tokens(logits[row], filters[row], keys[row], row)
        ]
        bench.found.append(Difference(f"rows with another token {wrong}", len(wrong), 0))
        bench.same("faults", faults, torch.zeros_like(faults))

    return Check("sample", f"{vocab} tokens{', ties' if ties else ''}", run)


def faulty(vocab: int) -> Check:
    """NaN and infinities are flagged in their own rows; -inf is a ban where bans are expected, and a fault where none is left."""

    def run(bench: Bench) -> None:
        logits = bench.normal(7, vocab)
        for row, place, value in ((1, vocab - 1, "nan"), (2, 0, "inf"), (3, vocab // 2, "-inf")):
            logits[row, place] = float(value)
        logits[4] = float("-inf")
        logits[5, 1:] = float("-inf")
        filters: list[Filters] = [(1.0, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0),
                                  (1.0, 0, 0.9, 0.0), (1.0, 0, 0.9, 0.0), (0.0, 0, 1.0, 0.0)]  # fmt: skip
        for banned, wanted in ((False, [0, 1, 1, 1, 1, 1, 0]), (True, [0, 1, 1, 0, 1, 0, 0])):
            out, faults = draw(bench, logits, filters, list(range(7)), banned)
            bench.same(
                f"faults{', bans' if banned else ''}", faults, torch.tensor(wanted, dtype=torch.int32, device=bench.device)
            )
            for row, flag in enumerate(wanted):
                right = {-1} if flag else right_tokens(logits[row], filters[row], row, row)
                bench.found.append(Difference(f"row {row}", 0.0 if int(out[row]) in right else float("inf"), 0.0))

    return Check("sample", f"{vocab} tokens, faults and bans", run)


def alone(vocab: int) -> Check:
    """A row draws the same token in every batch."""

    def run(bench: Bench) -> None:
        logits = bench.normal(len(MIXTURE), vocab, scale=2.0)
        keys = [7 * row for row in range(len(MIXTURE))]
        together, _ = draw(bench, logits, MIXTURE, keys)
        reordered, _ = draw(bench, bench.put(logits[:1].repeat(3, 1)), [MIXTURE[0]] * 3, keys[:3])
        bench.same("greedy rows, in a batch of others", reordered, together[:1].repeat(3))
        first, _ = draw(bench, bench.put(logits[:2]), MIXTURE[:2], keys[:2])
        bench.same("the first two alone", first, together[:2])

    return Check("sample", f"{vocab} tokens, in another batch", run)


def checks() -> list[Check]:
    """Vocabularies below and beyond a part, and below and beyond a turn of the search."""
    return [faulty(2100), mixture(101, repeats=2), mixture(2048, ties=True), mixture(5000), alone(300)]


def large_checks() -> list[Check]:
    """Qwen3's vocabulary, for a GPU."""
    return [mixture(151_936), mixture(151_936, ties=True), faulty(151_936), alone(151_936)]
