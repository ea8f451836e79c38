"""The batch between two comings and goings: what a decode step needs of it, gathered once instead of in every step.

While nobody comes, goes or is answered (`BatchState.version` stands still) each step is the one before it, every row one position on.
Rows, members, sampling parameters, stop ids and streams are then the same arrays; starts grow by one; which rows fill a block follows
from their phase. What does not fit (a version that moved, a limit reached, a stop, a fault) takes the general path, which is always right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.batch_state import NO_BLOCK, NO_TOKEN, BatchState, Rows
from quiesce.engine.messages import FROM_DEVICE
from quiesce.engine.request import Request

ONE = np.int32(1)
NOBODY = np.empty(0, np.int64)
FEW = 64
"""Up to so many rows a Python set finds a stop id sooner than numpy does."""


class Cohort:
    """Rows that all decode, gathered under one version of the batch. `starts` are those of its first step; step k is k further on."""

    __slots__ = (
        "_edges", "_endings", "_provided", "_starts", "children", "ends", "horizon", "is_alone", "keys", "landed_s", "num_flying", "num_launched", "ones",
        "places", "requests", "rows", "stop_ids", "streams", "tables", "tokens", "trues", "version",
    )  # fmt: skip

    def __init__(self, batch: BatchState, rows: Rows, starts: NDArray[np.int32]) -> None:
        self.version = batch.version
        self.rows, self._starts = rows, starts
        self.places = rows.astype(np.intp)
        """`rows` in the type that numpy indexes with: half the price of each look."""
        self.requests: tuple[Request, ...] = tuple(r for row in rows.tolist() if (r := batch.requests[row]) is not None)
        self.keys, self.streams, self.children = batch.key[rows], batch.stream[rows], batch.child[rows]
        self.ones, self.trues = np.ones(len(rows), np.int32), np.ones(len(rows), np.bool_)
        self.tokens = np.full(len(rows), FROM_DEVICE, np.int64)
        stops = batch.stop_ids[rows]
        self.stop_ids = stops[:, (stops != NO_TOKEN).any(axis=0)]
        endings = {frozenset(one) for one in self.stop_ids.tolist()}
        self._endings = endings.pop() | {NO_TOKEN} if len(endings) == 1 else None
        """The ids that end a row, where they are the same for all."""
        self.horizon = int((batch.limit[rows] - 1 - starts).min())
        """Steps until the first row reaches its limit."""
        phase = -starts % batch.block_size
        self._edges = [np.flatnonzero(phase == step) for step in range(batch.block_size)]
        self._provided = -1
        """The last step for which every row was found to have its block."""
        self.tables = batch.block_tables[rows, : int(batch.num_blocks[rows].max())]
        self.ends = starts
        """Where the next step starts."""
        self.num_launched = self.num_flying = 0
        """Steps of this cohort: launched ever, and not landed."""
        self.landed_s: float | None = None
        """When the last step of the cohort gave every row its token."""
        self.is_alone = False
        """Whether no step of before the cohort is in flight any more, so that `num_pending` is `num_flying`."""

    @staticmethod
    def fits(batch: BatchState, rows: Rows, starts: NDArray[np.int32]) -> bool:
        """Whether these rows of a steady plan are all that run, and need no more than the arrays say."""
        return (
            len(rows) == np.count_nonzero(batch.running)
            and bool((starts >= batch.num_prompt_tokens[rows]).all())
            and not (batch.adjusted[rows] | batch.alone[rows] | batch.matched[rows]).any()
        )

    def crossing(self, turn: int, block_size: int) -> NDArray[np.int64]:
        """Places in `rows` whose step `turn` starts a block: the step before has filled one."""
        return self._edges[turn % block_size]

    def lacking(self, batch: BatchState, turn: int) -> NDArray[np.int64]:
        """Places in `rows` that need a block for this step."""
        if turn == self._provided:
            return NOBODY
        found = self.crossing(turn, batch.block_size)
        if len(found):
            found = found[batch.num_blocks[self.rows[found]] * batch.block_size <= self._starts[found] + turn]
        if not len(found):
            self._provided = turn
        return found

    def give(self, batch: BatchState, places: NDArray[np.int64], blocks: list[int], turn: int) -> None:
        """One new block to each of these rows, all that lacked one for this step. The tables that a step in flight was given are not touched."""
        self._provided = turn
        rows = self.rows[places]
        columns = batch.num_blocks[rows]
        batch.block_tables[rows, columns] = blocks
        batch.num_blocks[rows] = columns + ONE
        width, wanted = self.tables.shape[1], int(columns.max()) + 1
        if wanted > width:
            wider = np.full((len(self.rows), wanted), NO_BLOCK, np.int32)
            wider[:, :width] = self.tables
            self.tables = wider
        else:
            self.tables = self.tables.copy()
        self.tables[places, columns] = blocks
        for place, block in zip(places.tolist(), blocks, strict=True):
            self.requests[place].blocks.append(block)

    def launched(self, batch: BatchState, ends: NDArray[np.int32], follows_its_own: bool) -> None:
        """A step of the cohort is on its way. `follows_its_own`: the step in flight before it is the cohort's, too."""
        self.num_launched += 1
        self.num_flying += 1
        self.ends = ends
        self.is_alone |= follows_its_own
        batch.num_scheduled[self.places] = ends
        self._count_pending(batch, 1)

    def give_up(self, batch: BatchState) -> None:
        """From now on steps are general ones, whose tokens in flight the cohort does not count: its own must land as such, too."""
        batch.pay()
        self.version = -1

    def landed(self, batch: BatchState) -> None:
        """A step of the cohort came back."""
        self.num_flying -= 1
        self._count_pending(batch, -1)

    def _count_pending(self, batch: BatchState, change: int) -> None:
        if self.is_alone:
            batch.num_pending[self.places] = self.num_flying
        else:
            batch.num_pending[self.places] += change

    def ends_any(self, token_ids: NDArray[np.int64]) -> bool:
        """Whether a token is a stop id, or none at all."""
        if self._endings is None:
            return bool(token_ids.min() < 0 or (token_ids[:, None] == self.stop_ids).any())
        if len(token_ids) <= FEW:
            return not self._endings.isdisjoint(token_ids.tolist())
        return any(np.count_nonzero(token_ids == ending) for ending in self._endings)
