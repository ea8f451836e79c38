"""Rotary position embedding, the half-split form. Su et al., https://arxiv.org/abs/2104.09864.

With x = (a, b) in halves and angle θ_i = position / base^(2i/dim):  y = (a·cos θ - b·sin θ, b·cos θ + a·sin θ).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frequencies(dim: int, base: float) -> Tensor:
    """[dim / 2] radians per position, float32."""
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def llama3_frequencies(frequency: Tensor, factor: float, low: float, high: float, original: int) -> Tensor:
    """Frequencies of Llama 3.1: those that turn fewer than `low` times in `original` positions are divided by `factor`, those that
    turn more than `high` times stay, and those between are blended. https://arxiv.org/abs/2407.21783, as transformers computes it.
    """
    turns = original * frequency / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequency * kept + frequency / factor * (1.0 - kept)


def yarn_frequencies(
    frequency: Tensor, base: float, factor: float, original: int, fast: float, slow: float, truncate: bool
) -> Tensor:
    """Frequencies of YaRN: those that turn more than `fast` times in `original` positions stay, those below `slow` are divided by
    `factor`, with a linear ramp over the dimensions between. Peng et al., https://arxiv.org/abs/2309.00071.

    `truncate` rounds the ends of the ramp outwards to whole dimensions, as the paper's code does.
    """
    dim = 2 * frequency.shape[0]
    first, last = (dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (fast, slow))
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / ((last - first) or 0.001)).clamp(0.0, 1.0)
    return frequency * (1.0 - ramp) + frequency / factor * ramp


def rope_table(num_positions: int, frequency: Tensor, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of the half they are added to; [num_positions, dim] each, times `scale`.

    Angles are computed in float32.

    Args:
        num_positions: rows of the table.
        frequency: [dim / 2], radians per position.
        dtype: element type of the result.
        scale: YaRN's attention factor.
    """
    angle = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequency)  # [positions, dim / 2]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates every head by its token's position.

    Args:
        x: [tokens, heads, dim].
        cos: [tokens, 1, dim], rows of `rope_table` at the tokens' positions.
        sin: [tokens, 1, dim], signed.
    """
    # Two multiplications and a sum, not addcmul: its vector and scalar loops may round differently.
    return (x * cos).add_(torch.roll(x, x.shape[-1] // 2, -1).mul_(sin))
