"""KV blocks: who has which, counted so that nothing can be lost or given twice.

    total = free + cached + held + fenced

A block has holders (requests). It is `held` while some holder runs, `fenced` while its only holders are over and wait for the last
step that names them, `cached` when nobody holds it and the prefix cache knows its content, else `free`. The lowest free index goes
first, which keeps the live part of the arena dense.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.outputs import Blocks
from quiesce.engine.prefix_cache import PrefixCache
from quiesce.statemachine.effects import FreeBlocks


class BlockPool:
    """All blocks of one KV arena. `num_blocks` must be positive."""

    def __init__(self, num_blocks: int, prefix_cache: PrefixCache) -> None:
        self.num_blocks = num_blocks
        self.prefix_cache = prefix_cache
        self._free = list(range(num_blocks))
        self._holders: NDArray[np.int32] = np.zeros(num_blocks, np.int32)
        self._running_holders: NDArray[np.int32] = np.zeros(num_blocks, np.int32)
        self._num_used = 0
        self._num_fenced = 0

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now: free ones, and cached ones that would be given up."""
        return len(self._free) + self.prefix_cache.num_idle

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks for one running holder, giving up the least recently used cached ones where needed.

        Raises:
            MemoryError: fewer are available; nothing is taken.
        """
        if count > self.num_available:
            raise MemoryError(f"{count} blocks wanted, {self.num_available} available")
        blocks = [heapq.heappop(self._free) if self._free else self.prefix_cache.evict() for _ in range(count)]
        self._holders[blocks] = 1
        self._running_holders[blocks] = 1
        self._num_used += count
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Adds a running holder to blocks that the prefix cache found (cached, held or fenced)."""
        for block in blocks:
            if self._holders[block] == 0:
                self.prefix_cache.revive(block)
                self._num_used += 1
            elif self._running_holders[block] == 0:
                self._num_fenced -= 1
            self._holders[block] += 1
            self._running_holders[block] += 1

    def fence(self, blocks: Sequence[int]) -> None:
        """One holder of these blocks has stopped running; it holds them until `free`."""
        running = self._running_holders
        for block in blocks:
            running[block] -= 1
            if running[block] == 0:
                self._num_fenced += 1

    def free(self, effect: FreeBlocks, blocks: Sequence[int]) -> list[int]:
        """Takes blocks back from a fenced holder. Returns those whose content is now nobody's.

        With `effect.detail == "cache"` blocks that the prefix cache knows stay findable; with `"drop"` they are forgotten.

        Raises:
            ValueError: a block has no fenced holder: it would be freed twice.
        """
        freed = []
        for block in reversed(blocks):  # the end of a prompt is given up before its beginning
            if self._holders[block] <= self._running_holders[block]:
                raise ValueError(f"block {block} of request {effect.subject} is freed without a fenced holder")
            self._holders[block] -= 1
            if self._holders[block] > 0:
                continue
            self._num_fenced -= 1
            self._num_used -= 1
            if effect.detail == "cache" and self.prefix_cache.retire(block):
                continue
            self.prefix_cache.forget(block)
            heapq.heappush(self._free, block)
            freed.append(block)
        return freed

    def blocks_in_use(self) -> list[int]:
        """Blocks whose content somebody holds or may find again."""
        free = np.zeros(self.num_blocks, np.bool_)
        free[self._free] = True
        return [int(block) for block in np.flatnonzero(~free)]

    def drop_cached(self) -> None:
        """Forgets every cached block; those nobody holds become free."""
        for block in self.prefix_cache.clear():
            heapq.heappush(self._free, block)

    def counts(self) -> Blocks:
        """The balance, as the status shows it."""
        return Blocks(
            total=self.num_blocks,
            free=len(self._free),
            cached=self.prefix_cache.num_idle,
            held=self._num_used - self._num_fenced,
            fenced=self._num_fenced,
        )

    def audit(self) -> None:
        """Counts everything anew and compares. O(blocks): for tests and idle moments.

        Raises:
            AssertionError: a block is lost, or counted twice.
        """
        idle = set(self.prefix_cache.idle_blocks())
        free, used = set(self._free), set(np.flatnonzero(self._holders).tolist())
        fenced = set(np.flatnonzero((self._holders > 0) & (self._running_holders == 0)).tolist())
        problems = []
        if len(free) != len(self._free):
            problems.append("a block is in the free list twice")
        if free & used or free & idle or used & idle:
            problems.append("a block has two owners")
        if len(free) + len(used) + len(idle) != self.num_blocks:
            problems.append("a block has no owner")
        if (len(used), len(fenced)) != (self._num_used, self._num_fenced):
            problems.append("the counters differ from the holders")
        if problems:
            raise AssertionError("; ".join(problems))
