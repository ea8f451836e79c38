"""Sampling a token from logits: filters, then one uniform number a token looked up in the cumulated probabilities, which stand in the
vocabulary's order.

The number is a function of (key, position) alone, so a token depends on its own request alone, and a step that was dropped can be
repeated. Order: temperature, min-p, top-k, top-p, as vLLM has it. A token equal to the last one that a filter keeps is kept.

`kept_probabilities` is the truth. What runs, `Sampler`, takes the few likeliest tokens where a filter leaves only few, and looks a
number up in two levels, sums over parts of the vocabulary and then one part. Rows are done one at a time: a row's work fits the
cache, and always has the same shape, so torch's vector and scalar loops, which round differently, split it at the same places
whatever the batch is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

_MASK = (1 << 64) - 1
TIES = 30
"""Tokens fetched beyond the k likeliest, so that those equal to the k-th, which are common in bfloat16, are among them."""
TOP_K_MAX = 1024
"""A larger top-k is found by partitioning the vocabulary."""
TOP_P_FIRST = 128
"""Tokens among which the smallest set of a top-p is looked for first."""


def mix64(x: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood, https://doi.org/10.1145/2660193.2660195)."""
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def uniform(key: int, position: int) -> float:
    """A number in [0, 1) with 53 bits, a function of (key, position): SplitMix64 that starts at the mixed key."""
    return (mix64(mix64(key) + (position + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def kept_probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """The truth: [vocab] logits to float64 probabilities relative to the likeliest token (1.0), 0 where a filter drops the token.

    top-p is the smallest set, likeliest first, whose share of what top-k left is at least `top_p` (Holtzman et al.,
    https://arxiv.org/abs/1904.09751); min-p is relative to the likeliest (Nguyen et al., https://arxiv.org/abs/2407.01082).
    """
    p = ((logits.double() - logits.amax().double()) / temperature).exp()
    p = p.where(p >= min_p, 0.0)
    if 0 < top_k < p.shape[0]:
        p = p.where(p >= p.sort(descending=True).values[top_k - 1], 0.0)
    if top_p < 1.0:
        values = p.sort(descending=True).values
        before = values.cumsum(0) - values  # mass of the tokens likelier than this one
        p = p.where(p >= values[max(int((before < values.sum() * top_p).sum()), 1) - 1], 0.0)
    return p


def first_argmax(x: Tensor) -> Tensor:
    """[rows, n] to [rows]: index of the largest, the lowest of equals. In two levels, since torch's own is not vectorised."""
    rows, n = x.shape
    width = part_width(n)
    if not width:
        return x.argmax(-1)
    parts = x.view(rows, n // width, width)
    part = parts.amax(-1).argmax(-1)  # [rows]
    return part * width + parts[torch.arange(rows), part].argmax(-1)


def part_width(n: int) -> int:
    """A width of more than four equal parts of n, near 128; 0 where there is none."""
    return next((w for w in (128, 160, 64, 96, 32) if n % w == 0 and n > 4 * w), 0)


def look_up(weights: Floats, share: float) -> tuple[int, float]:
    """The index into whose part of the line [0, 1) `share` falls, and the share of that part which lies before it."""
    ends = weights.cumsum()
    target = share * ends[-1]
    index = min(
        int(ends.searchsorted(target, "right")), int(ends.searchsorted(ends[-1]))
    )  # rounding must not lead past the end
    begin = ends[index - 1] if index else 0.0
    return index, float((target - begin) / (ends[index] - begin))


class Sampler:
    """Draws tokens over one vocabulary. Keeps a row of scratch: a fresh one would be paged in for every token."""

    __slots__ = ("_scratch", "vocab_size")

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._scratch = torch.empty(vocab_size, dtype=torch.float32)

    def sample(
        self,
        logits: Tensor,
        temperature: Sequence[float],
        top_k: Sequence[int],
        top_p: Sequence[float],
        min_p: Sequence[float],
        keys: Sequence[int],
        positions: Sequence[int],
    ) -> NDArray[np.int64]:
        """One token per row.

        Args:
            logits: [rows, vocab] float32, the largest of each row finite.
            temperature: [rows], 0 is greedy: the likeliest token, the lowest of equals.
            top_k, top_p, min_p: [rows], 0, 1 and 0 keep all.
            keys: [rows] noise key, 64 bits.
            positions: [rows] position of the token to be sampled.

        Returns:
            [rows].
        """
        drawn = [row for row, heat in enumerate(temperature) if heat > 0.0]
        if len(drawn) < len(temperature):
            tokens: NDArray[np.int64] = first_argmax(logits).numpy()
        else:
            tokens = np.empty(len(temperature), np.int64)
        for row in drawn:
            ids, weights = self.kept(logits[row], temperature[row], top_k[row], top_p[row], min_p[row])
            share = uniform(keys[row], positions[row])
            if ids is None:
                tokens[row] = self._from_all(weights, share)
            else:  # the line is in the vocabulary's order, however its tokens were found
                order = ids.argsort()
                tokens[row] = ids[order[look_up(weights.numpy()[order], share)[0]]]
        return tokens

    def kept(
        self, logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
    ) -> tuple[NDArray[np.int64] | None, Tensor]:
        """What `kept_probabilities` keeps of [vocab] logits: token ids and their weights in float64, likeliest first; or None, and
        weights over the whole vocabulary in scratch that the next call overwrites.
        """
        if 0 < top_k < self.vocab_size and (few := self._top_k(logits, temperature, top_k, top_p, min_p)) is not None:
            return few
        p = torch.sub(logits, logits.amax(), out=self._scratch)
        if temperature != 1.0:
            p.div_(temperature)
        p.exp_()
        if min_p > 0.0:
            _drop_below(p, min_p)
        if 0 < top_k < self.vocab_size:
            p.masked_fill_(logits < np.partition(logits.numpy(), -top_k)[-top_k].item(), 0.0)
        return self._top_p(p, top_p) if top_p < 1.0 else (None, p)

    def _top_k(
        self, logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
    ) -> tuple[NDArray[np.int64], Tensor] | None:
        """The filters over the likeliest tokens alone; None where these may not be all that is kept."""
        count = min(top_k + TIES, self.vocab_size)
        if top_k > TOP_K_MAX:
            return None
        top = logits.topk(count)
        values = top.values.numpy()
        if count < self.vocab_size and values[-1] == values[top_k - 1]:
            return None
        values = values[values >= values[top_k - 1]].astype(np.float64)
        weights = np.exp((values - values[0]) / temperature)
        weights = weights[weights >= min_p]
        if top_p < 1.0:
            weights = weights[weights >= weights[_top_p_last(weights, weights.sum() * top_p)]]
        return top.indices.numpy()[: len(weights)], torch.from_numpy(weights)

    def _top_p(self, p: Tensor, top_p: float) -> tuple[NDArray[np.int64] | None, Tensor]:
        target = float(p.sum()) * top_p
        if self.vocab_size > TOP_P_FIRST:  # the set is nearly always small
            top = p.topk(TOP_P_FIRST)
            weights = top.values.numpy().astype(np.float64)
            if weights[:-1].sum() >= target:
                last = weights[_top_p_last(weights, target)]
                if weights[-1] < last:
                    weights = weights[weights >= last]
                    return top.indices.numpy()[: len(weights)], torch.from_numpy(weights)
        _drop_below(p, _top_p_least(p.numpy(), top_p))
        return None, p

    def _from_all(self, weights: Tensor, share: float) -> int:
        width = part_width(self.vocab_size)
        if not width:
            return look_up(weights.numpy().astype(np.float64), share)[0]
        parts = weights.view(-1, width)
        part, share = look_up(parts.sum(-1).numpy().astype(np.float64), share)
        return part * width + look_up(parts[part].numpy().astype(np.float64), share)[0]


def _top_p_last(weights: Floats, target: float) -> int:
    """Index of the last token of the smallest set, likeliest first, whose mass is at least `target`."""
    return _first_at_least(weights.cumsum(), target)


def _top_p_least(p: NDArray[np.float32], top_p: float) -> float:
    """The least likely token's weight of the smallest set with the share `top_p`, without sorting the vocabulary.

    The bits of numbers from 0 up are ordered as the numbers are: the upper 16 sort them into buckets, and one bucket is sorted.
    """
    buckets = p.view(np.int32) >> 16
    mass = np.bincount(buckets, weights=p)
    down = mass[::-1].cumsum()  # mass of the likeliest buckets
    target = down[-1] * top_p
    place = _first_at_least(down, target)
    inside = np.sort(p[buckets == len(mass) - 1 - place])[::-1].astype(np.float64)
    before = down[place - 1] if place else 0.0
    return float(inside[_first_at_least(before + inside.cumsum(), target)])


def _first_at_least(rising: Floats, target: float) -> int:
    return min(int(rising.searchsorted(target)), len(rising) - 1)


def _drop_below(p: Tensor, least: float) -> None:
    """p[p < least] = 0, through the one vectorised operation that does it."""
    torch.threshold_(p, float(np.nextafter(np.float32(least), np.float32(-1.0))), 0.0)
