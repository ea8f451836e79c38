"""Penalties, bias and bans against their formulas written out, one token at a time."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from quiesce.kernels.penalties import add_bias, ban, penalise

LOGITS = [2.0, -1.0, 0.5, 3.0, -0.25, 0.0, 1.5, -2.0]
PROMPT, OUTPUT = [0, 1, 1, 7], [1, 3, 3, 3, 4]


def changed(repetition: float, presence: float, frequency: float) -> list[float]:
    logits = torch.tensor(LOGITS)
    penalise(logits, np.array(PROMPT + OUTPUT), len(PROMPT), repetition, presence, frequency)
    return logits.tolist()


@pytest.mark.parametrize("repetition", [1.0, 1.5, 0.7])
@pytest.mark.parametrize(("presence", "frequency"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.3), (-1.0, 0.25)])
def test_each_token_is_penalised_by_the_published_formulas(repetition: float, presence: float, frequency: float) -> None:
    counts, wanted = Counter(OUTPUT), []
    for token, logit in enumerate(LOGITS):
        x = logit
        if token in PROMPT + OUTPUT:
            x = x / repetition if x > 0 else x * repetition
        wanted.append(x - presence * (counts[token] > 0) - frequency * counts[token])
    assert changed(repetition, presence, frequency) == pytest.approx(wanted, abs=1e-6)


def test_neutral_penalties_change_nothing_and_no_output_is_no_penalty() -> None:
    assert changed(1.0, 0.0, 0.0) == LOGITS
    logits = torch.tensor(LOGITS)
    penalise(logits, np.array(PROMPT), len(PROMPT), presence=2.0, frequency=2.0)
    assert logits.tolist() == LOGITS


def test_bias_is_added_also_twice_and_a_ban_is_final() -> None:
    logits = torch.tensor(LOGITS)
    add_bias(logits, torch.tensor([2, 5, 2]), torch.tensor([1.0, 100.0, 0.25]))
    ban(logits, torch.tensor([5, 0]))
    assert logits.tolist() == [-math.inf, -1.0, 1.75, 3.0, -0.25, -math.inf, 1.5, -2.0]
