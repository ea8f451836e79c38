"""Log probabilities of one row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quiesce.kernels.logprobs import top_logprobs

LOGITS = torch.randn(700, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize("count", [0, 1, 5, 700, -1])
def test_the_token_comes_first_then_the_most_likely_with_their_ranks(count: int) -> None:
    ids, values, ranks = top_logprobs(LOGITS, 17, count)
    exact = LOGITS.double().log_softmax(0)
    order = exact.sort(descending=True).indices.tolist()[: len(LOGITS) if count == -1 else count]
    assert ids.tolist() == [17, *order]
    assert np.allclose(values, exact[ids.tolist()].numpy(), atol=2e-6)
    assert ranks.tolist() == [exact.sort(descending=True).indices.tolist().index(token) + 1 for token in [17, *order]]


def test_equally_likely_tokens_share_a_rank() -> None:
    ids, _, ranks = top_logprobs(torch.tensor([1.0, 2.0, 1.0, 2.0, 0.0]), 2, -1)
    assert ids.tolist() == [2, 1, 3, 0, 2, 4]
    assert ranks.tolist() == [3, 1, 1, 3, 3, 5]


def test_the_whole_vocabulary_sums_to_one() -> None:
    _, values, _ = top_logprobs(LOGITS, 0, -1)
    assert np.exp(values[1:].astype(float)).sum() == pytest.approx(1.0, abs=1e-5)
