"""Sampling: the noise, the filters, and the distribution they give together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quiesce.kernels.sampling import Sampler, first_argmax, kept_probabilities, look_up, mix64, uniform


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def draw(logits: torch.Tensor, count: int, key: int = 1, **filters: float) -> torch.Tensor:
    """`count` tokens of one request, at positions 0, 1, …"""
    one = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    rows = logits.expand(count, -1).contiguous()
    asked = ([one[name]] * count for name in ("temperature", "top_k", "top_p", "min_p"))
    temperature, top_k, top_p, min_p = asked
    sampler = Sampler(logits.shape[0])
    tokens = sampler.sample(rows, temperature, [int(k) for k in top_k], top_p, min_p, [key] * count, range(count))
    return torch.from_numpy(tokens)


def chi_square(tokens: torch.Tensor, p: torch.Tensor) -> float:
    """Pearson's statistic divided by its degrees of freedom: about 1 for draws from `p`. A token of no probability is infinitely off."""
    expected, found = p * len(tokens), tokens.bincount(minlength=len(p))
    if found[p == 0].any():
        return math.inf
    possible = p > 0
    return float(((found - expected)[possible] ** 2 / expected[possible]).sum() / (int(possible.sum()) - 1))


def test_mix64_is_the_published_function() -> None:
    # The first outputs of SplitMix64 seeded with 1234567: java.util.SplittableRandom and Rosetta Code agree on them.
    gamma, state = 0x9E3779B97F4A7C15, 1234567
    outputs = [mix64((state + gamma * (i + 1)) & (1 << 64) - 1) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_is_a_function_of_all_bits_of_key_and_position() -> None:
    seen = {uniform(key, position) for key in (0, 1, 2**32, 2**63, 2**64 - 1) for position in (0, 1, 7, 2**31)}
    assert len(seen) == 20
    assert uniform(5, 3) == uniform(5, 3)


def test_noise_is_uniform_and_does_not_follow_position_or_key() -> None:
    u = np.array([[uniform(key, position) for position in range(100)] for key in range(500)])
    assert u.min() >= 0.0
    assert u.max() < 1.0
    counts, _ = np.histogram(u, 50, (0.0, 1.0))
    assert ((counts - 1000) ** 2 / 1000).sum() / 49 < 1.6
    centred = u - 0.5
    for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1]), (centred[7:], centred[:-7])):
        assert abs(float((a * b).mean() * 12)) < 0.015
    assert abs(float((np.diff(u) > 0).mean()) - 0.5) < 0.01


@pytest.mark.parametrize("weights", [[3.0], [0.0, 1.0, 0.0], [1e-30, 1.0, 1e-30, 5.0, 0.0], [0.25] * 4])
def test_a_number_is_looked_up_where_it_lies_on_the_line(weights: list[float]) -> None:
    line = np.array(weights)
    ends = line.cumsum() / line.sum()
    for share in (0.0, 1e-12, 0.1666, 0.25, 0.5, 0.75, 1 - 2.0**-53):
        index, rest = look_up(line, share)
        assert weights[index] > 0.0
        assert ends[index] - weights[index] / line.sum() <= share + 1e-15
        assert share <= ends[index]
        assert 0.0 <= rest <= 1.0


def test_tokens_are_distributed_as_the_softmax_of_the_logits() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 1.5, -0.5, 0.2, 0.9, 1.1])
    assert chi_square(draw(logits, 6000), logits.softmax(0)) < 2.0
    assert chi_square(draw(logits, 6000, temperature=2.0), (logits / 2).softmax(0)) < 2.0
    assert chi_square(draw(logits, 6000, temperature=2.0), logits.softmax(0)) > 20.0  # the statistic can tell


@pytest.mark.parametrize("vocab", [21, 640])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
        {"top_p": 0.999},
    ],
    ids=str,
)
def test_filtered_tokens_are_distributed_as_the_truth(vocab: int, filters: dict[str, float]) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 1.5
    p = kept_probabilities(logits, **({"temperature": 1.0} | filters))  # type: ignore[arg-type] # top_k is the only int
    found = draw(logits, 5000, key=2, **filters)
    # Rare tokens together: a chi-square wants a few of each.
    rare = p / p.sum() < 0.002
    merged = torch.cat((p[~rare], p[rare].sum()[None]))
    places = torch.cat((torch.zeros(0, dtype=torch.long), torch.where(rare, int((~rare).sum()), (~rare).long().cumsum(0) - 1)))
    assert not (p[found] == 0).any()
    classes = int((merged > 0).sum())
    assert chi_square(places[found], merged / p.sum()) < 1 + 4 * math.sqrt(2 / (classes - 1))  # 4 standard deviations


def ties(vocab: int, seed: int) -> torch.Tensor:
    """Logits as bfloat16 gives them: many are equal."""
    return (torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3).bfloat16().float()


@pytest.mark.parametrize("vocab", [20, 200, 3000])
@pytest.mark.parametrize("top_k", [0, 1, 7, 150, 2500])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.6, 0.0), (0.97, 0.02), (1.0, 0.1), (0.9995, 0.0)])
def test_what_runs_keeps_what_the_truth_keeps(vocab: int, top_k: int, top_p: float, min_p: float) -> None:
    sampler = Sampler(vocab)
    for seed, heat in enumerate((1.0, 0.6, 3.0)):
        logits = ties(vocab, seed)
        ids, weights = sampler.kept(logits, heat, top_k, top_p, min_p)
        got = torch.zeros(vocab, dtype=torch.float64)
        got[:] = weights.double() if ids is None else got.index_copy(0, torch.from_numpy(ids), weights)
        wanted = kept_probabilities(logits, heat, top_k, top_p, min_p)
        assert torch.equal(got > 0, wanted > 0)
        assert torch.allclose(got, wanted, rtol=1e-5)


def test_a_top_k_that_meets_more_equals_than_are_fetched_keeps_them_all() -> None:
    logits = torch.tensor([3.0] + [1.0] * 80 + [0.0] * 40)
    assert kept(logits, top_k=2) == list(range(81))
    assert set(draw(logits, 4000, top_k=2).tolist()) == set(range(81))


def test_a_top_p_whose_last_token_has_more_equals_than_are_fetched_keeps_them_all() -> None:
    assert kept(torch.tensor([0.0] * 300 + [-20.0] * 100), top_p=0.1) == list(range(300))


def test_a_row_draws_the_same_token_in_every_batch() -> None:
    logits = torch.randn(9, 1003, generator=torch.Generator().manual_seed(0))
    heat, keys, positions = [0.0, 1.0, 0.7, 2.0, 1.0, 0.0, 3.0, 1.0, 0.1], list(range(9)), list(range(30, 39))

    def tokens(rows: list[int]) -> list[int]:
        n = len(rows)
        drawn = Sampler(1003).sample(
            logits[rows], [heat[r] for r in rows], [0] * n, [1.0] * n, [0.0] * n, [keys[r] for r in rows],
            [positions[r] for r in rows],
        )  # fmt: skip
        return [int(token) for token in drawn]

    together = tokens(list(range(9)))
    assert together[::-1] == tokens(list(range(9))[::-1])
    assert together == [tokens([row])[0] for row in range(9)]


@pytest.mark.parametrize("size", [7, 97, 128, 640, 1003, 32_000])
def test_the_lowest_of_equal_logits_wins_when_greedy(size: int) -> None:
    x = torch.randint(0, 4, (6, size), generator=torch.Generator().manual_seed(size)).float()
    assert first_argmax(x).tolist() == [row.tolist().index(max(row.tolist())) for row in x]


def test_temperature_zero_is_greedy_and_filters_change_nothing() -> None:
    logits = torch.tensor([0.0, 3.0, 3.0, 1.0])
    assert draw(logits, 20, temperature=0.0, top_p=0.1, min_p=0.5).tolist() == [1] * 20


def kept(logits: torch.Tensor, temperature: float = 1.0, **filters: float) -> list[int]:
    """What runs keeps, and the truth as well."""
    p = kept_probabilities(logits, temperature, **filters)  # type: ignore[arg-type] # top_k is the only int
    ids, weights = Sampler(len(logits)).kept(logits, temperature, **filters)  # type: ignore[arg-type]
    found = weights.nonzero().flatten().tolist() if ids is None else sorted(ids.tolist())
    assert found == p.nonzero().flatten().tolist()
    return found


LOGITS = torch.tensor([0.1, 0.4, 0.3, 0.15, 0.05]).log()


def test_top_k_keeps_the_likeliest_and_what_equals_the_last_of_them() -> None:
    assert kept(LOGITS, top_k=1) == [1]
    assert kept(LOGITS, top_k=3) == [1, 2, 3]
    assert kept(LOGITS, top_k=5) == kept(LOGITS, top_k=0) == kept(LOGITS, top_k=99) == [0, 1, 2, 3, 4]
    assert kept(torch.tensor([1.0, 2.0, 1.0, 0.0]), top_k=2) == [0, 1, 2]


def test_top_p_keeps_the_smallest_set_that_reaches_the_share() -> None:
    assert kept(LOGITS, top_p=0.0) == kept(LOGITS, top_p=0.39) == [1]
    assert kept(LOGITS, top_p=0.41) == [1, 2]
    assert kept(LOGITS, top_p=0.8) == [1, 2, 3]
    assert kept(LOGITS, top_p=0.99) == [0, 1, 2, 3, 4]


def test_top_p_is_of_what_top_k_left() -> None:
    assert kept(LOGITS, top_k=2, top_p=0.56) == [1]  # 0.4 of 0.7 is 0.571
    assert kept(LOGITS, top_k=2, top_p=0.58) == [1, 2]


def test_top_p_over_a_flat_vocabulary_goes_beyond_the_first_partial_sort() -> None:
    logits = torch.linspace(0.0, 1.0, 20_000)
    p, _ = logits.softmax(0).double().sort(descending=True)
    for share in (0.01, 0.3, 0.9):
        exact = int((p.cumsum(0) < share).sum()) + 1
        assert abs(len(kept(logits, top_p=share)) - exact) <= 2


def test_min_p_is_relative_to_the_likeliest_after_temperature() -> None:
    assert kept(LOGITS, min_p=0.3) == [1, 2, 3]
    assert kept(LOGITS, min_p=1.0) == [1]
    assert kept(LOGITS, temperature=0.5, min_p=0.3) == [1, 2]  # 0.15² / 0.4² is 0.14


def test_a_filtered_token_is_never_drawn() -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(1))
    allowed = kept(logits, temperature=1.3, top_k=7, top_p=0.9)
    assert 1 < len(allowed) <= 7
    assert set(draw(logits, 400, temperature=1.3, top_k=7, top_p=0.9).tolist()) == set(allowed)


def test_extreme_temperatures_and_a_single_kept_token_are_sound() -> None:
    logits = torch.tensor([-80.0, 5.0, 4.9, -300.0])
    assert set(draw(logits, 50, temperature=1e-4).tolist()) == {1}
    assert set(draw(logits, 200, temperature=1e4).tolist()) == {0, 1, 2, 3}
    assert set(draw(logits, 200, temperature=5.0, top_k=1).tolist()) == {1}


@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 2000, "top_p": 0.99}], ids=str
)
def test_the_line_is_in_the_vocabularys_order_whatever_the_filters_sort(filters: dict[str, float]) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(5)) * 3
    p = kept_probabilities(logits, **({"temperature": 1.0} | filters))  # type: ignore[arg-type] # top_k is the only int
    wanted = [look_up(p.numpy(), uniform(9, position))[0] for position in range(200)]
    assert draw(logits, 200, key=9, **filters).tolist() == wanted
