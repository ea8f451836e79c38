"""Counts of values by size, as Prometheus has them: how many are at most each bound."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

GAPS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
FIRST_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
)
WHOLE_S: Final = (
    0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKENS: Final = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
"""Upper bounds, inclusive. Those of vLLM 0.33 are among them, so that its dashboards fit; small models need the finer ones below."""


@dataclass(frozen=True, slots=True)
class Counts:
    """A histogram at one instant."""

    bounds: tuple[float, ...]
    by_bound: tuple[int, ...]
    """Values above the bound before and at most this one; the last are above all bounds."""
    total: float = 0.0
    """Sum of the values."""

    @property
    def count(self) -> int:
        return sum(self.by_bound)

    @property
    def cumulative(self) -> list[tuple[str, float]]:
        """(bound, how many are at most that), `+Inf` last."""
        names = [*map(repr, self.bounds), "+Inf"]
        return list(zip(names, accumulate(map(float, self.by_bound)), strict=True))


class Histogram:
    """Counts that grow."""

    __slots__ = ("_by_bound", "_counts", "_total", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._by_bound = [0] * (len(self.bounds) + 1)
        self._total = 0.0
        self._counts: Counts | None = None

    def add(self, value: float, times: int = 1) -> None:
        """Counts one value, `times` over."""
        self._by_bound[bisect_left(self.bounds, value)] += times
        self._total += value * times
        self._counts = None

    def add_each(self, values: NDArray[np.float64]) -> None:
        """Counts many values. [n], none of them NaN."""
        found = np.bincount(np.searchsorted(self.bounds, values), minlength=len(self._by_bound))
        self._by_bound = [old + new for old, new in zip(self._by_bound, found.tolist(), strict=True)]
        self._total += float(values.sum())
        self._counts = None

    def counts(self) -> Counts:
        """As of now; the same object until something is counted."""
        if self._counts is None:
            self._counts = Counts(self.bounds, tuple(self._by_bound), self._total)
        return self._counts
