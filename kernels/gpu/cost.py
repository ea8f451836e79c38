"""What an operator must do at least: the measure of a roofline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes that must cross device memory once, and floating-point operations (a multiply-add is two)."""

    bytes: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def seconds(self, bytes_per_s: float, flops_per_s: float) -> float:
        """The roofline: the longer of the two."""
        return max(self.bytes / bytes_per_s, self.flops / flops_per_s)
