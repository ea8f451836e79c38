"""Sampling on the device: what `kernels.sampling` does, with the same noise, over all rows of a step at once.

A token is where one uniform number, a function of (key, position) alone, falls in the cumulated probabilities of the tokens kept, in
the vocabulary's order. Order of the filters: temperature, min-p, top-k, top-p. Four kernels, none of which mixes rows:

    scan        (parts, rows)   maximum of each part of the vocabulary, and whether its numbers are finite
    threshold   (rows)          greedy tokens; the least logit that top-k and top-p keep, by bisection in four over the bits
    weigh       (parts, rows)   mass of what is kept in each part
    draw        (rows)          the part, then the token

Exponentials are float32, their sums float64: a token differs from the truth's only if its number falls within about 1e-7 of an end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quiesce.kernels.gpu.cost import Cost
from quiesce.kernels.gpu.language import ceil_div, jit, jit_for_any, power_of_two, require_contiguous, tl
from quiesce.kernels.sampling import kept_probabilities, look_up, uniform

PART = 2048
"""Tokens to a part of the vocabulary."""
SEARCHED = 4096
"""Tokens to a turn of the search."""
SHIFTS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Lowest bits that are alike in all numbers of a type, seen as float32: there is nothing to search in them."""


@jit
def _ordered(x, SHIFT: tl.constexpr):
    """float32 to int32, ordered as the numbers are."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@jit
def _kept(x, top, temperature, min_p, threshold, SHIFT: tl.constexpr):
    """Weights relative to the likeliest token, 0 where a filter drops the token; 0 for -inf."""
    weights = tl.exp((x - top) / temperature)
    return tl.where((weights >= min_p) & (_ordered(x, SHIFT) >= threshold), weights, 0.0)


@jit
def _mix64(x):
    """As `kernels.sampling.mix64`."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@jit
def _uniform(key, position):
    """As `kernels.sampling.uniform`; key and position as uint64."""
    mixed = _mix64(_mix64(key) + (position + 1) * 0x9E3779B97F4A7C15)
    return (mixed >> 11).to(tl.float64) * 1.1102230246251565e-16  # 2**-53


@jit
def _above(
    row, first, second, third, top, temperature, min_p, threshold,
    BY_MASS: tl.constexpr, VOCAB: tl.constexpr, SHIFT: tl.constexpr, SEARCHED: tl.constexpr,
):  # fmt: skip
    """Numbers of tokens at or above each of three pivots, and masses of those that are kept (or the numbers once more)."""
    n1 = tl.zeros([SEARCHED], tl.float32)
    n2, n3, m1, m2, m3 = n1, n1, n1, n1, n1
    for begin in range(0, VOCAB, SEARCHED):
        column = begin + tl.arange(0, SEARCHED)
        inside = column < VOCAB
        x = tl.load(row + column, mask=inside, other=float("-inf")).to(tl.float32)
        order = _ordered(x, SHIFT)
        above1, above2, above3 = inside & (order >= first), inside & (order >= second), inside & (order >= third)
        n1 += above1.to(tl.float32)
        n2 += above2.to(tl.float32)
        n3 += above3.to(tl.float32)
        if BY_MASS:
            weights = _kept(x, top, temperature, min_p, threshold, SHIFT)
            m1 += tl.where(above1, weights, 0.0)
            m2 += tl.where(above2, weights, 0.0)
            m3 += tl.where(above3, weights, 0.0)
    if not BY_MASS:
        m1, m2, m3 = n1, n2, n3
    return (tl.sum(n1, 0), tl.sum(n2, 0), tl.sum(n3, 0),
            tl.sum(m1.to(tl.float64), 0), tl.sum(m2.to(tl.float64), 0), tl.sum(m3.to(tl.float64), 0))  # fmt: skip


@jit
def _search(
    row, low, high, target, top, temperature, min_p, threshold,
    BY_MASS: tl.constexpr, VOCAB: tl.constexpr, SHIFT: tl.constexpr, SEARCHED: tl.constexpr,
):  # fmt: skip
    """The highest order in [low, high) at or above which there are `target` tokens, or the mass `target`. Bounds are int64, as their
    distance is; orders are int32.

    Ends early when one token is left between the bounds: whichever order between them is returned, the same tokens are kept.
    """
    between = tl.full([], VOCAB + 0.0, tl.float32)
    below = tl.full([], VOCAB + 0.0, tl.float32)  # tokens at or above `low`
    beyond = tl.full([], 0.0, tl.float32)  # tokens at or above `high`
    while (high - low > 1) & (between > 1.0):
        step = tl.maximum((high - low) // 4, 1)
        first, second, third = low + step, low + 2 * step, low + 3 * step
        n1, n2, n3, m1, m2, m3 = _above(row, first.to(tl.int32), second.to(tl.int32), third.to(tl.int32), top, temperature, min_p,
                                        threshold, BY_MASS, VOCAB, SHIFT, SEARCHED)  # fmt: skip
        enough1 = (m1 >= target) & (first < high)
        enough2 = (m2 >= target) & (second < high)
        enough3 = (m3 >= target) & (third < high)
        beyond = tl.where(enough3, beyond, tl.where(enough2, n3, tl.where(enough1, n2, n1)))
        below = tl.where(enough3, n3, tl.where(enough2, n2, tl.where(enough1, n1, below)))
        high = tl.where(enough3, high, tl.minimum(high, tl.where(enough2, third, tl.where(enough1, second, first))))
        low = tl.where(enough3, third, tl.where(enough2, second, tl.where(enough1, first, low)))
        between = below - beyond
    return low.to(tl.int32)


@jit
def scan_kernel(logits, scratch, BANNED: tl.constexpr, VOCAB: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr):
    """Grid (parts, rows)."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    column = part * PART + tl.arange(0, PART)
    inside = column < VOCAB
    x = tl.load(logits + row * VOCAB + column, mask=inside, other=float("-inf")).to(tl.float32)
    wrong = (x != x) | (x == float("inf"))
    if not BANNED:
        wrong = wrong | (inside & (x == float("-inf")))
    x = tl.where(wrong, float("-inf"), x)
    top = tl.max(x, 0)
    place = tl.min(tl.where(x == top, column, VOCAB), 0)
    mine = scratch + row * (4 * PARTS + 2) + part
    tl.store(mine, top.to(tl.float64))
    tl.store(mine + PARTS, place.to(tl.float64))
    tl.store(mine + 2 * PARTS, tl.max(wrong.to(tl.int32), 0).to(tl.float64))


@jit_for_any("temperature", "top_k", "top_p", "min_p", "out", "faults")
def threshold_kernel(
    logits, temperature, top_k, top_p, min_p, scratch, out, faults,
    FILTERED: tl.constexpr, VOCAB: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, SHIFT: tl.constexpr,
    SEARCHED: tl.constexpr,
):  # fmt: skip
    """Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS_BLOCK)
    inside = part < PARTS
    mine = scratch + row * (4 * PARTS + 2)
    tops = tl.load(mine + part, mask=inside, other=float("-inf"))
    top = tl.max(tops, 0)
    places = tl.load(mine + PARTS + part, mask=inside & (tops == top), other=VOCAB + 0.0)
    wrong = tl.max(tl.load(mine + 2 * PARTS + part, mask=inside, other=0.0), 0) > 0.0
    wrong = wrong | (top == float("-inf"))
    tl.store(faults + row, wrong.to(tl.int32))
    tl.store(out + row, tl.where(wrong, -1, tl.min(places, 0).to(tl.int64)))
    top = top.to(tl.float32)
    heat = tl.load(temperature + row)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    threshold = _ordered(tl.full([], float("-inf"), tl.float32), SHIFT)
    if FILTERED:
        high = _ordered(top, SHIFT).to(tl.int64) + 1
        sampled = (heat > 0.0) & (wrong == 0)
        if sampled & (k > 0) & (k < VOCAB):
            threshold = _search(logits + row * VOCAB, threshold.to(tl.int64), high, k.to(tl.float64), top, heat, 0.0, threshold,
                                False, VOCAB, SHIFT, SEARCHED)  # fmt: skip
        if sampled & (p < 1.0):
            least = tl.load(min_p + row)
            _, _, _, total, _, _ = _above(logits + row * VOCAB, threshold, threshold, threshold, top, heat, least, threshold,
                                          True, VOCAB, SHIFT, SEARCHED)  # fmt: skip
            threshold = _search(logits + row * VOCAB, threshold.to(tl.int64), high, total * p, top, heat, least, threshold,
                                True, VOCAB, SHIFT, SEARCHED)  # fmt: skip
    tl.store(mine + 4 * PARTS, top.to(tl.float64))
    tl.store(mine + 4 * PARTS + 1, threshold.to(tl.float64))


@jit_for_any("temperature", "min_p", "faults")
def weigh_kernel(
    logits, temperature, min_p, scratch, faults,
    VOCAB: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Grid (parts, rows)."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    heat = tl.load(temperature + row)
    if (heat <= 0.0) | (tl.load(faults + row) != 0):
        return
    mine = scratch + row * (4 * PARTS + 2)
    column = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row * VOCAB + column, mask=column < VOCAB, other=float("-inf")).to(tl.float32)
    top = tl.load(mine + 4 * PARTS).to(tl.float32)
    threshold = tl.load(mine + 4 * PARTS + 1).to(tl.int32)
    weights = _kept(x, top, heat, tl.load(min_p + row), threshold, SHIFT)
    tl.store(mine + 3 * PARTS + part, tl.sum(weights.to(tl.float64), 0))


@jit
def _fall(weights, index, target, SIZE: tl.constexpr):
    """Where `target` falls on the line of weights, and the line's length before: the first of positive weight that ends beyond it,
    or the last of positive weight, as rounding must not lead past the end."""
    ends = tl.cumsum(weights, 0)
    positive = weights > 0.0
    first = tl.min(tl.where(positive & (ends > target), index, SIZE), 0)
    last = tl.max(tl.where(positive, index, 0), 0)
    found = tl.minimum(first, last)
    return found, tl.max(tl.where(index < found, ends, 0.0), 0), tl.max(ends, 0)


@jit_for_any("temperature", "min_p", "keys", "positions", "out", "faults")
def draw_kernel(
    logits, temperature, min_p, keys, positions, scratch, out, faults,
    VOCAB: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, PART: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    if (heat <= 0.0) | (tl.load(faults + row) != 0):
        return
    mine = scratch + row * (4 * PARTS + 2)
    key = tl.load(keys + row).to(tl.uint64, bitcast=True)
    share = _uniform(key, tl.load(positions + row).to(tl.uint64, bitcast=True))
    part = tl.arange(0, PARTS_BLOCK)
    masses = tl.load(mine + 3 * PARTS + part, mask=part < PARTS, other=0.0)
    target = share * tl.sum(masses, 0)
    chosen, before, _ = _fall(masses, part, target, PARTS_BLOCK)
    column = tl.arange(0, PART)
    token = chosen * PART + column
    x = tl.load(logits + row * VOCAB + token, mask=token < VOCAB, other=float("-inf")).to(tl.float32)
    top = tl.load(mine + 4 * PARTS).to(tl.float32)
    threshold = tl.load(mine + 4 * PARTS + 1).to(tl.int32)
    weights = _kept(x, top, heat, tl.load(min_p + row), threshold, SHIFT)
    found, _, _ = _fall(weights.to(tl.float64), column, target - before, PART)
    tl.store(out + row, (chosen * PART + found).to(tl.int64))


def scratch_size(rows: int, vocab: int) -> int:
    """float64 elements of `scratch`: maximum, its place, soundness and mass of each part; maximum and threshold of each row."""
    return rows * (4 * ceil_div(vocab, PART) + 2)


def configuration(vocab: int, dtype: torch.dtype) -> dict[str, dict[str, int]]:
    """Compile-time parameters of each kernel."""
    parts = {"VOCAB": vocab, "PARTS": ceil_div(vocab, PART)}
    block = {"PARTS_BLOCK": power_of_two(parts["PARTS"])}
    shift = {"SHIFT": SHIFTS[dtype]}
    return {
        "scan": parts | {"PART": PART, "num_warps": 4},
        "threshold": parts | block | shift | {"SEARCHED": SEARCHED, "num_warps": 16},
        "weigh": parts | shift | {"PART": PART, "num_warps": 4},
        "draw": parts | block | shift | {"PART": PART, "num_warps": 4},
    }


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    positions: Tensor,
    out: Tensor,
    faults: Tensor,
    scratch: Tensor,
    filtered: bool = True,
    banned: bool = False,
) -> None:
    """One token per row.

    Args:
        logits: [rows, vocab] float32, float16 or bfloat16.
        temperature: [rows] float32, 0 is greedy: the likeliest token, the lowest of equals.
        top_k: [rows] int32, 0 keeps all.
        top_p, min_p: [rows] float32, 1 and 0 keep all.
        keys: [rows] int64, the 64 bits of the noise key.
        positions: [rows] int64, position of the token to be sampled.
        out: [rows] int64, written; -1 in faulty rows.
        faults: [rows] int32, written: 1 where a logit is not finite or none is left, else 0.
        scratch: float64, at least `scratch_size` elements.
        filtered: whether any row has a top-k or top-p. False saves the search's kernel code, not a launch.
        banned: whether -inf marks tokens that may not be sampled. False: it is a fault.

    Raises:
        ValueError: `scratch` is too small, or a tensor is not contiguous.
    """
    require_contiguous(logits=logits, scratch=scratch)
    rows, vocab = logits.shape
    if scratch.numel() < scratch_size(rows, vocab) or scratch.dtype != torch.float64:
        raise ValueError(f"scratch must have {scratch_size(rows, vocab)} float64 elements")
    shape = configuration(vocab, logits.dtype)
    parts = shape["scan"]["PARTS"]
    scan_kernel[(parts, rows)](logits, scratch, BANNED=banned, **shape["scan"])
    threshold_kernel[(rows,)](
        logits, temperature, top_k, top_p, min_p, scratch, out, faults, FILTERED=filtered, **shape["threshold"]
    )
    weigh_kernel[(parts, rows)](logits, temperature, min_p, scratch, faults, **shape["weigh"])
    draw_kernel[(rows,)](logits, temperature, min_p, keys, positions, scratch, out, faults, **shape["draw"])


def sample_truth(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    positions: Tensor,
    out: Tensor,
    faults: Tensor,
    scratch: Tensor,
    filtered: bool = True,
    banned: bool = False,
) -> None:
    """The same in plain torch, row by row in float64; `scratch` and `filtered` are not used."""
    for row, heat in enumerate(temperature.tolist()):
        x = logits[row].float()
        wrong = ~x.isfinite() & ~(x.isneginf() & banned)
        faults[row] = bool(wrong.any()) or bool(x.amax() == float("-inf"))
        if faults[row]:
            out[row] = -1
        elif heat == 0.0:
            out[row] = int((x == x.amax()).nonzero()[0])
        else:
            kept = kept_probabilities(x, heat, int(top_k[row]), float(top_p[row]), float(min_p[row]))
            share = uniform(int(keys[row]) & (1 << 64) - 1, int(positions[row]))
            out[row] = look_up(kept.cpu().numpy(), share)[0]


def cost(rows: int, vocab: int, itemsize: int) -> Cost:
    """Logits read once; they stay in the L2 cache for what follows."""
    return Cost(rows * vocab * itemsize, 6 * rows * vocab)
