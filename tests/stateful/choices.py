"""Every decision that a run leaves open, made here and written down, so that the run can be repeated and shrunk.

A choice is an index among options. Index 0 is always what stock asyncio would have done (first in, first out), so a list of
zeros is the ordinary run, and a failure reads as "FIFO, except ...". A *strategy* picks the index; `Replay` repeats the indices
of an earlier run; `reduce_choices` looks for the shortest list of exceptions that still fails.

On a toy engine with seeded bugs POS, random and drawn choices found them all; delay-bounded fails with the fewest exceptions.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol


class Choice(NamedTuple):
    """One decision. A point with a single option decides nothing and leaves no record."""

    point: str
    num_options: int
    chosen: int


class Strategy(Protocol):
    """Picks an index into `options`. An option is the thing itself (a handle, an offer), to be recognised later."""

    def pick(self, options: Sequence[Hashable]) -> int: ...


class Choices:
    """The record of a run: what was chosen, in order, and the marks that the scenario set between."""

    def __init__(self, strategy: Strategy | None = None) -> None:
        self.strategy = strategy or FIFO()
        self.taken: list[Choice] = []
        self.marks: list[tuple[int, str]] = []  # (number of choices taken before the mark, text)

    def choose(self, point: str, options: Sequence[Hashable]) -> int:
        """Index of the chosen option.

        Raises:
            ValueError: the strategy answered with none of the options.
        """
        if len(options) == 1:
            return 0
        index = self.strategy.pick(options)
        if not 0 <= index < len(options):
            raise ValueError(f"{self.strategy!r} chose {index} of {len(options)} options at {point!r}")
        self.taken.append(Choice(point, len(options), index))
        return index

    def mark(self, text: str) -> None:
        self.marks.append((len(self.taken), text))

    @property
    def indices(self) -> list[int]:
        """What `Replay` needs, fit for JSON."""
        return [choice.chosen for choice in self.taken]

    def trace_hash(self) -> str:
        """Equal for two runs that chose and marked the same in the same order, in whatever process with whatever hash seed."""
        return hashlib.sha256(json.dumps([self.taken, self.marks]).encode()).hexdigest()


class FIFO:
    """The ordinary run."""

    def pick(self, options: Sequence[Hashable]) -> int:
        return 0


class Replay:
    """Repeats recorded indices. Past their end, and where an edited list names an option that is not there, it is FIFO."""

    def __init__(self, indices: Sequence[int]) -> None:
        self._rest = iter(tuple(indices))

    def pick(self, options: Sequence[Hashable]) -> int:
        index = next(self._rest, 0)
        return index if index < len(options) else 0


class Drawn:
    """Asks `draw(num_options)`: the seam for Hypothesis, e.g. `Drawn(lambda n: data.draw(st.integers(0, n - 1)))`."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        self._draw = draw

    def pick(self, options: Sequence[Hashable]) -> int:
        return self._draw(len(options))


class RandomWalk:
    """Every option is equally likely, every time."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, options: Sequence[Hashable]) -> int:
        return self._random.randrange(len(options))


class POS:
    """Partial order sampling: an event draws a priority when first seen, keeps it until it happens, and the highest goes first.

    A random walk almost never delays one event for long; here an event with a low priority waits for everything else, which is
    what most ordering bugs need. (Yuan, Yang, Gu: Partial Order Aware Concurrency Sampling, CAV 2018. It draws anew for events that
    race with the one that happened; which events race is not known here, so every task step counts as an event of its own.)
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._priorities: dict[Hashable, float] = {}

    def pick(self, options: Sequence[Hashable]) -> int:
        if isinstance(options, range):  # plain alternatives, not events: nothing to remember them by
            return self._random.randrange(len(options))
        priorities = self._priorities
        for option in options:
            if option not in priorities:
                priorities[option] = self._random.random()
        index = max(range(len(options)), key=lambda i: priorities[options[i]])
        del priorities[options[index]]
        return index


class DelayBounded:
    """FIFO, except at `bound` places chosen at random among the first `horizon` choices."""

    def __init__(self, seed: int, bound: int = 3, horizon: int = 200) -> None:
        self._random = random.Random(seed)
        self._places = set(self._random.sample(range(horizon), min(bound, horizon)))
        self._num_choices = 0

    def pick(self, options: Sequence[Hashable]) -> int:
        place, self._num_choices = self._num_choices, self._num_choices + 1
        return self._random.randrange(1, len(options)) if place in self._places else 0


def reduce_choices(recorded: Sequence[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """The fewest exceptions to FIFO, and the smallest ones, that still fail: ddmin over the non-zero places of `recorded`.

    `fails` runs the scenario on `Replay(indices)`. The result fails, and no single exception can be dropped from it.

    Raises:
        ValueError: `recorded` itself does not fail, so the scenario is not deterministic or the record is not of this failure.
    """
    values = list(recorded)
    known: dict[tuple[int, ...], bool] = {}

    def still_fails(places: Sequence[int]) -> bool:
        kept = set(places)
        length = max(kept, default=-1) + 1  # trailing zeros say nothing
        indices = tuple(values[i] if i in kept else 0 for i in range(length))
        if indices not in known:
            known[indices] = fails(list(indices))
        return known[indices]

    places = [i for i, index in enumerate(values) if index]
    if not still_fails(places):
        raise ValueError("the recorded choices do not fail when replayed")
    if still_fails([]):
        return []
    places = minimal(places, still_fails)
    for place in places:
        largest = values[place]
        for smaller in range(1, largest + 1):
            values[place] = smaller
            if still_fails(places):
                break
    return [values[i] if i in places else 0 for i in range(places[-1] + 1)]


def minimal(places: list[int], still_fails: Callable[[Sequence[int]], bool]) -> list[int]:
    """Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input (TSE 2002): drop ever smaller parts."""
    num_parts = 2
    while len(places) >= 2:
        size = -(-len(places) // num_parts)
        rests = [places[:i] + places[i + size :] for i in range(0, len(places), size)]
        smaller = next((rest for rest in rests if still_fails(rest)), None)
        if smaller is not None:
            places = smaller
            num_parts = max(num_parts - 1, 2)
        elif num_parts < len(places):
            num_parts = min(2 * num_parts, len(places))
        else:
            break
    return places
