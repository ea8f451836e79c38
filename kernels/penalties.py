"""Changes to one row of logits before sampling: bias, penalties on tokens that were used, bans. In vLLM's order.

repetition      over prompt and output: x / r where x > 0, else x · r      (Keskar et al., https://arxiv.org/abs/1909.05858)
presence        over the output: x - presence · [count > 0]
frequency       over the output: x - frequency · count                     (both as the OpenAI API defines them)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def penalise(
    logits: Tensor,
    history: NDArray[np.int64],
    num_prompt: int,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> None:
    """Changes [vocab] logits in place.

    Args:
        logits: [vocab] float32.
        history: [tokens], prompt and output so far.
        num_prompt: tokens of `history` that are the prompt.
        repetition: 1 is neutral.
        presence, frequency: 0 is neutral.
    """
    if repetition != 1.0:
        used = torch.from_numpy(np.unique(history))
        x = logits[used]
        logits[used] = torch.where(x > 0, x / repetition, x * repetition)
    if presence or frequency:
        ids, counts = np.unique(history[num_prompt:], return_counts=True)
        logits[torch.from_numpy(ids)] -= torch.from_numpy((presence + frequency * counts).astype(np.float32))


def add_bias(logits: Tensor, ids: Tensor, bias: Tensor) -> None:
    """Adds [n] numbers to the logits of [n] token ids, in place."""
    logits.index_add_(0, ids, bias)


def ban(logits: Tensor, ids: Tensor) -> None:
    """Makes [n] token ids impossible, in place."""
    logits.index_fill_(0, ids, float("-inf"))
