"""Log probabilities of one position: x - log Σ exp x, in float32, of one token and of the most likely ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def top_logprobs(logits: Tensor, token: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """`token` first, then the `count` most likely tokens, most likely first.

    A function of the row alone: it is never computed together with others.

    Args:
        logits: [vocab] float32.
        token: what stands at the position.
        count: at most the vocabulary; -1 is the whole of it.

    Returns:
        ids, log probabilities and ranks, [1 + count] each. The rank is 1 + the number of tokens that are more likely.
    """
    logprobs = torch.log_softmax(logits, -1)
    own = logprobs[token]
    rank = int((logprobs > own).sum()) + 1
    vocab = logits.shape[0]
    top = logprobs.sort(descending=True, stable=True) if count in (-1, vocab) else logprobs.topk(min(count, vocab))
    values = top[0].numpy()
    ranks = np.searchsorted(-values, -values) + 1
    return (
        np.concatenate(([token], top[1].numpy())),
        np.concatenate(([own.numpy()], values)),
        np.concatenate(([rank], ranks)),
    )
