"""The running batch as a structure of arrays: one row for each request that holds blocks. Nothing here is an object per token.

Of a row's positions, with `num_tokens` known to the host, `num_pending` sampled in flight and `num_scheduled` given to a step:

    0 ............ num_scheduled ............ num_tokens ...... num_tokens + num_pending ...... limit
    | KV computed or in flight | to be computed | on the device only       | never computed past limit - 1
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.request import NO_ROW, Request

Rows = NDArray[np.int32]
Sampling = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.uint64]]
"""temperature, top_k, top_p, min_p, noise keys, each [R]"""
NO_BLOCK = -1
NO_TOKEN = -1


class BatchState:
    """Arrays over `max_num_seqs` rows. A free row has key -1."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        blocks = -(-max_model_len // block_size)
        self.max_model_len = max_model_len
        self.block_size = block_size
        self.key: NDArray[np.int64] = np.full(max_num_seqs, -1, np.int64)
        self.running: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        """Whether the row's request may be named by a new step; cleared when it ends or retracts."""
        self.live: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        """Whether the row's request is not answered yet; tokens that land for it count."""
        self.stream: NDArray[np.int64] = np.zeros(max_num_seqs, np.int64)
        self.num_hashed: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        """Leading full blocks the prefix cache has been told of."""
        self.last_token_s: NDArray[np.float64] = np.full(max_num_seqs, np.nan)
        """When the row was given its last token; NaN before the first."""
        self.counters: NDArray[np.int32] = np.zeros((5, max_num_seqs), np.int32)
        """[5, rows] the five below as one array, so that a batch reads them in one go."""
        self.num_tokens, self.num_pending, self.num_scheduled, self.limit, self.num_prompt_tokens = self.counters
        self.version = 0
        """Changes whenever a row gets or loses its request, or the request stops running or is answered."""
        self._owed: list[Callable[[], None]] = []
        self.num_alone = 0
        self.token_ids: NDArray[np.int32] = np.zeros((max_num_seqs, max_model_len), np.int32)
        self.block_tables: NDArray[np.int32] = np.full((max_num_seqs, blocks), NO_BLOCK, np.int32)
        self.num_blocks: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.temperature: NDArray[np.float32] = np.zeros(max_num_seqs, np.float32)
        self.top_k: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.top_p: NDArray[np.float32] = np.ones(max_num_seqs, np.float32)
        self.min_p: NDArray[np.float32] = np.zeros(max_num_seqs, np.float32)
        self.noise_key: NDArray[np.uint64] = np.zeros(max_num_seqs, np.uint64)
        self.stop_ids: NDArray[np.int64] = np.full((max_num_seqs, 4), NO_TOKEN, np.int64)
        self.child: NDArray[np.int32] = np.zeros(max_num_seqs, np.int32)
        self.adjusted: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        """Whether its steps carry an `Adjustment`."""
        self.alone: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        """Whether it is planned only when no token of it is in flight: a penalty must know all tokens before."""
        self.matched: NDArray[np.bool_] = np.zeros(max_num_seqs, np.bool_)
        """Whether stop strings are looked for in its text."""
        self._rows_by_age: Rows | None = None
        self._sampling: tuple[Rows, Sampling] | None = None
        self.requests: list[Request | None] = [None] * max_num_seqs
        self._free = list(range(max_num_seqs - 1, -1, -1))

    @property
    def num_free_rows(self) -> int:
        return len(self._free)

    @property
    def rows_by_age(self) -> Rows:
        """Rows that a new step may name, oldest request first. The same array as long as nobody comes or goes; not to be written to."""
        if self._rows_by_age is None:
            rows = np.flatnonzero(self.running).astype(np.int32)
            self._rows_by_age = rows[np.argsort(self.key[rows])]
        return self._rows_by_age

    def sampling(self, rows: Rows) -> Sampling:
        """The sampling parameters of these rows. In a steady batch the rows are one array, and so is the answer."""
        if self._sampling is None or self._sampling[0] is not rows:
            found = (self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows], self.noise_key[rows])
            self._sampling = (rows, found)
        return self._sampling[1]

    def owe(self, write: Callable[[], None]) -> None:
        """Puts off what landed but ends nobody until the next step is on its way. It is paid before the version changes."""
        self._owed.append(write)

    def pay(self) -> None:
        """Writes what is owed, in order."""
        owed, self._owed = self._owed, []
        for write in owed:
            write()

    def _change(self) -> None:
        self.pay()
        self.version += 1

    def occupy(self, request: Request, num_computed: int, noise_key: int, stop_ids: tuple[int, ...], limit: int) -> None:
        """Gives the request a row. Its tokens move there; `request.token_ids` is not the truth any more.

        Args:
            num_computed: leading tokens whose KV its blocks hold already.
            limit: tokens it may have in all.
        """
        row = self._free.pop()
        request.row = row
        self._change()
        self.num_alone += request.params.penalizes
        self._rows_by_age = self._sampling = None
        self.requests[row] = request
        self.key[row] = request.key
        self.running[row] = self.live[row] = True
        self.stream[row] = request.stream
        self.num_hashed[row] = len(request.hashes)
        self.child[row] = request.child
        self.last_token_s[row] = request.last_token_s
        self.adjusted[row] = request.params.adjusts
        self.alone[row] = request.params.penalizes
        self.matched[row] = request.matcher is not None
        count = len(request.token_ids)
        self.token_ids[row, :count] = request.token_ids
        self.num_tokens[row] = count
        self.num_scheduled[row] = num_computed
        self.num_pending[row] = 0
        self.num_prompt_tokens[row] = request.num_prompt_tokens
        self.limit[row] = limit
        self.num_blocks[row] = 0
        self.append_blocks(row, request.blocks)
        params = request.params
        self.temperature[row] = params.temperature
        self.top_k[row] = max(params.top_k, 0)
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.noise_key[row] = noise_key
        if len(stop_ids) > self.stop_ids.shape[1]:
            wider = np.full((len(self.key), 2 * len(stop_ids)), NO_TOKEN, np.int64)
            wider[:, : self.stop_ids.shape[1]] = self.stop_ids
            self.stop_ids = wider
        self.stop_ids[row] = NO_TOKEN
        self.stop_ids[row, : len(stop_ids)] = stop_ids

    def append_blocks(self, row: int, blocks: list[int]) -> None:
        """Extends the row's block table."""
        start = self.num_blocks[row]
        self.block_tables[row, start : start + len(blocks)] = blocks
        self.num_blocks[row] = start + len(blocks)

    def stop_running(self, request: Request) -> None:
        """No new step names this row; steps in flight still may."""
        if request.row != NO_ROW:
            self._change()
            self.running[request.row] = False
            self._rows_by_age = None

    def answered(self, request: Request) -> None:
        """Its terminal is out: tokens that still land for it are dropped."""
        if request.row != NO_ROW:
            self._change()
            self.live[request.row] = False

    def release(self, request: Request) -> None:
        """Frees the row. The request takes its tokens along."""
        row = request.row
        self._change()
        self.num_alone -= request.params.penalizes
        self._rows_by_age = self._sampling = None
        request.token_ids = self.tokens(row)
        request.last_token_s = float(self.last_token_s[row])
        self.key[row] = -1
        self.running[row] = self.live[row] = False
        self.requests[row] = None
        self.block_tables[row] = NO_BLOCK
        request.row = NO_ROW
        self._free.append(row)

    def tokens(self, row: int) -> NDArray[np.int32]:
        """A copy of the row's known tokens, prompt first. [tokens]."""
        return self.token_ids[row, : self.num_tokens[row]].copy()
