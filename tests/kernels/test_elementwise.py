"""The small operators against their formulas written out."""

from __future__ import annotations

import math

import pytest
import torch

from quiesce.kernels.linear import linear
from quiesce.kernels.rms_norm import rms_norm
from quiesce.kernels.rope import frequencies, llama3_frequencies, rope, rope_table, yarn_frequencies
from quiesce.kernels.silu_mul import silu_mul


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 7, 32])
def test_linear_is_x_times_the_transpose_plus_bias(dtype: torch.dtype, rows: int) -> None:
    x, w, b = torch.randn(rows, 24).to(dtype), torch.randn(40, 24).to(dtype), torch.randn(40).to(dtype)
    right = x.double() @ w.double().t()
    for got, wanted in ((linear(x, w), right), (linear(x, w, b), right + b.double())):
        assert got.shape == (rows, 40)
        assert got.dtype == dtype
        assert torch.allclose(got.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=30 * torch.finfo(dtype).eps)


def test_rms_norm_divides_by_the_root_of_the_mean_square() -> None:
    x, w = torch.randn(3, 7), torch.randn(7)
    for row, got in zip(x.tolist(), rms_norm(x, w, 1e-5), strict=True):
        root = math.sqrt(sum(v * v for v in row) / 7 + 1e-5)
        assert got.tolist() == pytest.approx([v / root * g for v, g in zip(row, w.tolist(), strict=True)], abs=1e-6)


def test_rms_norm_over_heads_has_a_weight_for_each_and_leaves_its_input() -> None:
    x, w = torch.randn(3, 4, 6), torch.randn(4, 6)
    before = x.clone()
    got = rms_norm(x, w, 1e-6)
    for head in range(4):
        assert torch.allclose(got[:, head], rms_norm(x[:, head].contiguous(), w[head], 1e-6))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(200, 30), (200, 3, 20)])
def test_rms_norm_of_many_tokens_is_that_of_few_and_leaves_its_input(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape).to(dtype), torch.randn(shape[1:]).to(dtype)
    before = x.clone()
    few = torch.cat([rms_norm(part, w, 1e-5) for part in torch.split(x, 50)])
    many = rms_norm(x, w, 1e-5)
    assert many.dtype == dtype
    assert torch.allclose(many.float(), few.float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(x, before)


def test_rope_turns_each_pair_by_position_times_frequency() -> None:
    cos, sin = rope_table(50, frequencies(8, 100.0), torch.float32)
    x = torch.randn(1, 2, 8)
    got = rope(x, cos[[41]].unsqueeze(1), sin[[41]].unsqueeze(1))
    for head in range(2):
        for i in range(4):
            a, b = float(x[0, head, i]), float(x[0, head, i + 4])
            angle = 41 * 100.0 ** (-2 * i / 8)
            assert float(got[0, head, i]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
            assert float(got[0, head, i + 4]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-5)


def test_rope_leaves_position_zero_and_lengths_as_they_are() -> None:
    cos, sin = rope_table(9, frequencies(6, 10_000.0), torch.float32)
    x = torch.randn(9, 3, 6)
    y = rope(x, cos.unsqueeze(1), sin.unsqueeze(1))
    assert torch.equal(x[0], y[0])
    assert torch.allclose(x.norm(dim=-1), y.norm(dim=-1), atol=1e-5)


def test_the_table_is_multiplied_by_the_attention_factor() -> None:
    plain, scaled = (rope_table(7, frequencies(6, 100.0), torch.float32, scale) for scale in (1.0, 1.5))
    for a, b in zip(plain, scaled, strict=True):
        assert torch.allclose(a * 1.5, b)


def test_llama3_keeps_fast_frequencies_divides_slow_ones_and_blends_between() -> None:
    turns = torch.tensor([9.0, 4.0, 2.5, 1.0, 0.2])  # in 100 positions
    plain = turns * 2 * math.pi / 100
    got = llama3_frequencies(plain, factor=8.0, low=1.0, high=4.0, original=100) / plain
    assert got.tolist() == pytest.approx([1.0, 1.0, (1 + 1 / 8) / 2, 1 / 8, 1 / 8])


def test_yarn_keeps_fast_frequencies_divides_slow_ones_and_ramps_over_the_dimensions_between() -> None:
    plain = frequencies(64, 10_000.0)
    got = yarn_frequencies(plain, 10_000.0, 4.0, 2048, fast=32.0, slow=1.0, truncate=True) / plain
    turns = plain * 2048 / (2 * math.pi)
    assert (got[turns > 40] == 1.0).all()
    assert torch.allclose(got[turns < 0.8], torch.tensor(0.25))
    middle = got[(turns < 32) & (turns > 1)]
    steps = middle[1:] - middle[:-1]
    assert len(steps) > 5
    assert torch.allclose(steps, steps[0], atol=1e-5)


def test_silu_mul_gates_the_second_half_by_the_first() -> None:
    x = torch.randn(4, 10)
    gate, up = x[:, :5].double(), x[:, 5:].double()
    assert torch.allclose(silu_mul(x).double(), gate / (1 + (-gate).exp()) * up, atol=1e-6)


def test_silu_mul_can_give_a_row_the_same_bits_whatever_share_of_a_thread_it_falls_in() -> None:
    row, dim = torch.randn(6000), 3000
    rows = torch.randn(32, 2 * dim)
    results: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    torch.set_num_threads(3)  # 32 rows do not divide by 3: row 10 is cut in the middle
    for place in (0, 10, 21, 31):
        x = rows.clone()
        x[place] = row
        for row_exact, found in results.items():
            found.append(silu_mul(x, row_exact)[place].clone())
    torch.set_num_threads(1)
    assert all(torch.equal(results[True][0], got) for got in results[True])
    assert torch.allclose(results[True][0], results[False][1], atol=1e-5)


@pytest.mark.parametrize("dim", [5, 40_001])
def test_silu_mul_by_parts_is_silu_mul(dim: int) -> None:
    x = torch.randn(3, 2 * dim)
    assert torch.allclose(silu_mul(x, row_exact=True), silu_mul(x), atol=1e-6)
