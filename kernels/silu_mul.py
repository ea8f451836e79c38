"""The gate of the feed-forward network: silu(gate) · up, silu(x) = x / (1 + exp(-x)). Shazeer, https://arxiv.org/abs/2002.05202."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRAIN = 32_768
"""Elements below which torch runs an elementwise loop on one thread (ATen `GRAIN_SIZE`)."""


def silu_mul(gate_up: Tensor, row_exact: bool = False) -> Tensor:
    """[tokens, 2 · dim] to [tokens, dim]; the first half is the gate.

    `row_exact` makes a row's result independent of its place: torch's vector and scalar exponentials differ in the last bit, and
    the loop falls back to the scalar one at the ragged end of each thread's share. Rows few enough for one thread have none inside.
    """
    dim = gate_up.shape[-1] // 2
    if row_exact and gate_up.shape[0] * dim > GRAIN and gate_up.shape[0] > 1:
        return torch.cat([silu_mul(part) for part in torch.split(gate_up, max(1, GRAIN // dim))])
    return F.silu(gate_up[:, :dim]).mul_(gate_up[:, dim:])
