"""Which full blocks hold the KV of which prefix, found by a chain of hashes.

    tokens   | t0 .. t15 | t16 .. t31 | t32 .. t40 |
    blocks   |  full, h0 |  full, h1  |  not full  |     h1 = H(h0, t16 .. t31)

The chain starts from the weight version, so a prefix of another version is never found. A known block is `idle` while nobody holds
it; the least recently used idle block is given up first. A block enters when the step that filled it has landed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Hash = bytes


class PrefixCache:
    """Known blocks by hash. With `enabled=False` nothing is ever known."""

    def __init__(self, block_size: int, enabled: bool = True) -> None:
        self.block_size = block_size
        self.enabled = enabled
        self._blocks: dict[Hash, int] = {}
        self._hashes: dict[int, Hash] = {}
        self._idle: dict[int, None] = {}  # in order of last use, oldest first

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def idle_blocks(self) -> Iterator[int]:
        return iter(self._idle)

    def root(self, version: int | str) -> Hash:
        """The hash before the first block, under this weight version."""
        return hashlib.blake2b(f"{self.block_size}:{version!r}".encode(), digest_size=16).digest()

    def extend(self, parent: Hash, token_ids: NDArray[np.int32]) -> Hash:
        """The hash of a full block behind `parent`. token_ids: [block_size]."""
        return hashlib.blake2b(parent + token_ids.astype(np.int32, copy=False).tobytes(), digest_size=16).digest()

    def match(self, token_ids: NDArray[np.int32], version: int | str) -> tuple[list[int], list[Hash]]:
        """The longest known prefix that leaves at least one token to compute: its blocks and their hashes. token_ids: [tokens]."""
        blocks: list[int] = []
        hashes: list[Hash] = []
        if not self.enabled:
            return blocks, hashes
        parent = self.root(version)
        for start in range(0, len(token_ids) - self.block_size, self.block_size):
            parent = self.extend(parent, token_ids[start : start + self.block_size])
            block = self._blocks.get(parent)
            if block is None:
                break
            blocks.append(block)
            hashes.append(parent)
        return blocks, hashes

    def insert(self, block: int, known_as: Hash) -> None:
        """A held block now holds this prefix. A prefix that another block holds already stays with that block."""
        if self.enabled and known_as not in self._blocks and block not in self._hashes:
            self._blocks[known_as] = block
            self._hashes[block] = known_as

    def revive(self, block: int) -> None:
        """An idle block has a holder again."""
        del self._idle[block]

    def retire(self, block: int) -> bool:
        """The last holder of a block left. True: it stays known and is idle now; False: it was never known."""
        if block not in self._hashes:
            return False
        self._idle[block] = None
        return True

    def forget(self, block: int) -> None:
        """A block that is no longer valid, or not idle, is not findable any more."""
        known_as = self._hashes.pop(block, None)
        if known_as is not None:
            del self._blocks[known_as]

    def evict(self) -> int:
        """Gives up the least recently used idle block.

        Raises:
            MemoryError: no block is idle.
        """
        if not self._idle:
            raise MemoryError("no cached block can be given up")
        block = next(iter(self._idle))
        del self._idle[block]
        self.forget(block)
        return block

    def clear(self) -> list[int]:
        """Forgets everything; returns the blocks that were idle."""
        idle = list(self._idle)
        self._idle.clear()
        self._blocks.clear()
        self._hashes.clear()
        return idle
