"""The roofline of steps and workloads, against figures computed by hand and those of nano-vllm's benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.engine.bench.roofline import Machine, Roofline, Workload
from quiesce.engine.bench.shapes import QWEN3_06B, QWEN3_8B, TOY, write_shape
from quiesce.engine.checkpoint import read_model_info

H200 = Machine(bytes_per_s=4.3e12, flops_per_s=790e12)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Roofline:
    return Roofline(read_model_info(write_shape(tmp_path_factory.mktemp("small"), QWEN3_06B)), H200)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Roofline:
    return Roofline(read_model_info(write_shape(tmp_path_factory.mktemp("large"), QWEN3_8B)), H200)


def test_what_a_step_reads(small: Roofline, large: Roofline) -> None:
    assert small.weight_bytes == pytest.approx(1.192e9, rel=1e-3)
    assert small.kv_bytes_per_token == 114_688
    assert large.weight_bytes == pytest.approx(15.14e9, rel=1e-3)
    assert large.kv_bytes_per_token == 147_456


@pytest.mark.parametrize(("rows", "small_ms", "large_ms"), [(1, 0.305, 3.555), (32, 1.151, 4.644), (256, 7.269, 12.510)])
def test_the_least_time_of_a_decode_step(small: Roofline, large: Roofline, rows: int, small_ms: float, large_ms: float) -> None:
    assert small.decode_s([1024] * rows) * 1e3 == pytest.approx(small_ms, abs=2e-3)
    assert large.decode_s([1024] * rows) * 1e3 == pytest.approx(large_ms, abs=2e-3)


def test_many_rows_over_short_contexts_are_bound_by_operations(small: Roofline) -> None:
    rows = 4096
    seconds = small.decode_s([1] * rows)
    assert seconds == pytest.approx((2 * 595_984_384 + 4 * 16 * 128 * 28) * rows / 790e12)
    assert seconds > (small.weight_bytes + rows * 114_688) / 4.3e12


@pytest.mark.parametrize(("prompts", "small_ms", "large_ms"), [(1, 1.29, 18.4), (32, 41.4, 589), (256, 331, 4710)])
def test_the_least_time_of_prompts(small: Roofline, large: Roofline, prompts: int, small_ms: float, large_ms: float) -> None:
    assert small.prefill_s([1024] * prompts) * 1e3 == pytest.approx(small_ms, rel=5e-3)
    assert large.prefill_s([1024] * prompts) * 1e3 == pytest.approx(large_ms, rel=5e-3)


def test_the_workload_is_nano_vllms_and_its_roofline_the_known_one(small: Roofline) -> None:
    workload = Workload.nano_vllm()
    assert (sum(workload.prompt_lens), sum(workload.output_lens), max(workload.output_lens)) == (142_827, 133_966, 1024)
    assert sum(workload.output_lens) / small.workload_s(workload) == pytest.approx(36_415, rel=1e-4)


def test_one_request_is_its_prompt_and_the_steps_after_its_first_token(tmp_path: Path) -> None:
    toy = Roofline(read_model_info(write_shape(tmp_path, TOY)), Machine(1e9, 1e12), itemsize=4)
    workload = Workload(((1, 2, 3),), (3,))
    assert toy.workload_s(workload) == pytest.approx(toy.prefill_s([3]) + toy.decode_s([4]) + toy.decode_s([5]))
