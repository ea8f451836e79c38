"""What the checks of operators share: inputs surrounded by poison, and differences in units of what the type can resolve.

The same checks run under Triton's interpreter on the CPU, in float32 and float16, and on a GPU, in bfloat16 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quiesce.kernels.gpu.operators import Operators

GUARD = 65_536
"""Elements of poison before and after every tensor: more than a block of a cache."""
CANARY = -77_777
"""Poison of integers: as an index it leads far outside, as a count to nothing."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One comparison. Sound where `error <= limit`."""

    what: str
    error: float
    """The largest |got - wanted| / (eps · (|wanted| + scale)), eps of the type; infinite where a number is not finite."""
    limit: float

    @property
    def sound(self) -> bool:
        return self.error <= self.limit


@dataclass(slots=True)
class Bench:
    """Makes the inputs of one check, deterministic in its seed."""

    operators: Operators
    device: str
    dtype: torch.dtype
    seed: int
    found: list[Difference] = field(default_factory=list)
    _guarded: list[tuple[Tensor, int]] = field(default_factory=list)
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Poison all over, and around."""
        dtype = self.dtype if dtype is None else dtype
        size = torch.Size(shape).numel()
        whole = torch.full(
            (size + 2 * GUARD,), float("nan") if dtype.is_floating_point else CANARY, dtype=dtype, device=self.device
        )
        self._guarded.append((whole, size))
        return whole[GUARD : GUARD + size].view(shape)

    def put(self, values: Tensor) -> Tensor:
        """A guarded copy on the device."""
        made = self.empty(*values.shape, dtype=values.dtype)
        made.copy_(values)
        return made

    def ints(self, values: Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
        return self.put(torch.tensor(values, dtype=dtype))

    def floats(self, values: Sequence[float]) -> Tensor:
        return self.put(torch.tensor(values, dtype=torch.float32))

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Normally distributed numbers."""
        drawn = torch.randn(shape, generator=self._generator) * scale
        return self.put(drawn.to(self.dtype if dtype is None else dtype))

    def shuffled(self, n: int) -> list[int]:
        """0 .. n - 1 in some order."""
        return torch.randperm(n, generator=self._generator).tolist()

    def integer(self, low: int, high: int) -> int:
        """low <= result < high."""
        return int(torch.randint(low, high, (), generator=self._generator))

    def compare(self, what: str, got: Tensor, wanted: Tensor, limit: float, scale: float | Tensor = 1e-3) -> None:
        """Records how far `got` is from `wanted`, relative to |wanted| + scale."""
        wide, right = got.double(), wanted.double()
        distance = (wide - right).abs() / (torch.finfo(self.dtype).eps * (right.abs() + scale))
        worst = float(distance.nan_to_num(float("inf")).max()) if distance.numel() else 0.0
        self.found.append(Difference(what, worst, limit))

    def same(self, what: str, got: Tensor, wanted: Tensor) -> None:
        """Records whether the bits are the same; NaN equals NaN."""
        equal = bool(((got == wanted) | ((got != got) & (wanted != wanted))).all())
        self.found.append(Difference(what, 0.0 if equal else float("inf"), 0.0))

    def intact(self) -> None:
        """Records whether the poison around all tensors is still there."""
        for whole, size in self._guarded:
            edges = torch.cat((whole[:GUARD], whole[GUARD + size :]))
            clean = edges.isnan() if edges.is_floating_point() else edges == CANARY
            if not bool(clean.all()):
                self.found.append(Difference("nothing is written outside", float("inf"), 0.0))


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of an operator with its truth."""

    operator: str
    """Field of `Operators`."""
    name: str
    run: Callable[[Bench], None]

    def __call__(self, operators: Operators, device: str, dtype: torch.dtype, seed: int = 0) -> list[Difference]:
        """Everything that was compared."""
        bench = Bench(operators, device, dtype, seed)
        self.run(bench)
        bench.intact()
        return bench.found
