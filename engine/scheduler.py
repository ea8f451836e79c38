"""Who is computed in the next step: pure policy over the batch arrays. It fires nothing and allocates nothing.

Continuous batching under a token budget. Decode tokens go first, by age; what is left of the budget goes to prompts, by age, in chunks.
Every step includes the oldest request: `max_num_batched_tokens >= max_num_seqs` leaves room beside all decode tokens, and where prompts
are not split the order is by age alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.batch_state import BatchState, Rows
from quiesce.engine.cohort import Cohort


@dataclass(slots=True)
class StepPlan:
    """Rows of a step, oldest first among decodes and then among prompts, and how far each gets. All [R]."""

    rows: Rows
    starts: NDArray[np.int32]
    """First position computed."""
    counts: NDArray[np.int32]
    """Positions computed, at least 1."""
    samples: NDArray[np.bool_]
    """Whether the chunk reaches the end of what is known, so that a token is sampled."""
    steady: bool = False
    """Every row computes one token and samples the next."""
    cohort: Cohort | None = None
    """Whose step it is, in a batch that stays the same."""
    turn: int = 0
    """Which step of the cohort, from 0."""

    def without(self, rows: NDArray[np.int32]) -> StepPlan:
        """The plan less these rows."""
        keep = ~np.isin(self.rows, rows)
        return StepPlan(self.rows[keep], self.starts[keep], self.counts[keep], self.samples[keep], self.steady)


def plan_step(batch: BatchState, budget: int, chunked: bool) -> StepPlan:
    """Chooses rows and counts.

    Args:
        budget: tokens of the step, at least `max_num_seqs`.
        chunked: whether a prompt may be split over steps.
    """
    rows = batch.rows_by_age
    num_tokens, num_pending, starts, limit, _ = batch.counters[:, rows]
    known = num_tokens + num_pending
    todo = np.minimum(known, limit - 1) - starts
    if len(rows) <= budget and not batch.num_alone and (todo == 1).all():
        samples = starts + 1 == known
        return StepPlan(rows, starts, _ones(len(rows)), samples, steady=bool(samples.all()))
    todo[batch.alone[rows] & (num_pending > 0)] = 0
    order = np.argsort(todo > 1, kind="stable") if chunked else np.arange(len(rows))
    order = order[todo[order] > 0]
    rows, starts, known, todo = rows[order], starts[order], known[order], todo[order]
    before = np.cumsum(todo) - todo
    counts = np.clip(budget - before, 0, todo) if chunked else np.where(before + todo <= budget, todo, 0)
    chosen = counts > 0
    rows, starts, counts = rows[chosen], starts[chosen], counts[chosen].astype(np.int32)
    return StepPlan(rows, starts, counts, starts + counts == known[chosen])


@lru_cache(maxsize=512)
def _ones(count: int) -> NDArray[np.int32]:
    ones: NDArray[np.int32] = np.ones(count, np.int32)
    ones.flags.writeable = False
    return ones


def blocks_wanted(batch: BatchState, plan: StepPlan) -> NDArray[np.int32]:
    """How many blocks each row of the plan lacks. [R]"""
    ends = plan.starts + plan.counts
    wanted: NDArray[np.int32] = np.maximum(-(-ends // batch.block_size) - batch.num_blocks[plan.rows], 0).astype(np.int32)
    return wanted


def blocks_to_begin(num_tokens: int, num_cached_tokens: int, block_size: int) -> int:
    """Blocks a request needs before it starts: for all its known tokens and the next one, less what the prefix cache gives."""
    return -(-(num_tokens + 1) // block_size) - num_cached_tokens // block_size
