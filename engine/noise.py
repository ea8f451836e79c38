"""Seeds. The noise of a sampled token is a function of (seed, child index, position), never of the batch.

`noise_key` folds the first two into the key a device mixes with the position. The mixing is splitmix64
(Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

MASK = (1 << 64) - 1


def splitmix64(value: int) -> int:
    """One step of splitmix64 over 64-bit integers."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def noise_key(seed: int, child: int = 0) -> int:
    """The 64-bit key of one sequence's sampling noise."""
    return splitmix64(splitmix64(seed & MASK) ^ (child & MASK))


def drawn_seed(engine_seed: int, key: int) -> int:
    """The seed given to the `key`-th request that brought none: 63 bits, reported in its outputs."""
    return splitmix64(splitmix64(engine_seed & MASK) + key) >> 1
