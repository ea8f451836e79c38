"""The gate of the feed-forward network over packed halves: silu(gate) · up, silu(x) = x / (1 + exp(-x))."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from quiesce.kernels.gpu.cost import Cost
from quiesce.kernels.gpu.language import ceil_div, jit, require_contiguous, tl

BLOCK = 1024
"""Elements to a program: 8 to a thread, 16 bytes in bfloat16."""


@jit
def silu_mul_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One program to a row and block of columns."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * WIDTH + column, y.to(out.dtype.element_ty), mask=inside)


def configuration(width: int) -> dict[str, int]:
    """Compile-time parameters for rows of `width` results."""
    return {"WIDTH": width, "BLOCK": BLOCK, "num_warps": 4}


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    """In float32, rounded once.

    Args:
        gate_up: [tokens, 2 · width]; the first half is the gate.
        out: [tokens, width], written.
    """
    require_contiguous(gate_up=gate_up, out=out)
    tokens, width = out.shape
    silu_mul_kernel[(tokens, ceil_div(width, BLOCK))](gate_up, out, **configuration(width))


def silu_mul_truth(gate_up: Tensor, out: Tensor) -> None:
    """The same in plain torch."""
    gate, up = gate_up.float().chunk(2, -1)
    out.copy_(F.silu(gate) * up)


def cost(tokens: int, width: int, itemsize: int) -> Cost:
    """Reads both halves, writes one."""
    return Cost(3 * tokens * width * itemsize, 5 * tokens * width)
