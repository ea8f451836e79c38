"""Residual addition and root mean square norm in one pass: r += x;  y = r / sqrt(mean(r²) + eps) · w."""

from __future__ import annotations

import torch
from torch import Tensor

from quiesce.kernels.gpu.cost import Cost
from quiesce.kernels.gpu.language import jit, power_of_two, require_contiguous, tl


@jit
def add_rms_norm_kernel(x, residual, weight, out, eps, HAS_X: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One program to a row."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    r = tl.load(residual + row + column, mask=inside, other=0.0)
    if HAS_X:
        added = r.to(tl.float32) + tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
        r = added.to(residual.dtype.element_ty)
        tl.store(residual + row + column, r, mask=inside)
    wide = r.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    y = wide * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + column, y.to(out.dtype.element_ty), mask=inside)


def configuration(width: int) -> dict[str, int]:
    """Compile-time parameters for rows of `width`."""
    block = power_of_two(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(16, max(1, block // 512))}


def add_rms_norm(x: Tensor | None, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Adds in float32, rounds the sum to the residual's type, and norms what was rounded, in float32.

    Args:
        x: [tokens, hidden] to add; None: the residual is only normed.
        residual: [tokens, hidden], changed in place.
        weight: [hidden].
        eps: added to the mean square.
        out: [tokens, hidden], written.
    """
    require_contiguous(x=x, residual=residual, weight=weight, out=out)
    tokens, width = residual.shape
    add_rms_norm_kernel[(tokens,)](
        residual if x is None else x, residual, weight, out, eps, HAS_X=x is not None, **configuration(width)
    )


def add_rms_norm_truth(x: Tensor | None, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """The same in plain torch."""
    if x is not None:
        residual.copy_(residual.float() + x.float())
    wide = residual.float()
    out.copy_(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float())


def cost(tokens: int, width: int, itemsize: int, has_x: bool = True) -> Cost:
    """Reads x and residual and writes residual and out; without x, reads residual and writes out."""
    passes = 4 if has_x else 2
    return Cost((passes * tokens + 1) * width * itemsize, (5 if has_x else 4) * tokens * width)
