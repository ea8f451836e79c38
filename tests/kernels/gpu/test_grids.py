"""What runs before a launch: grids, scratch sizes, the owner of a block of queries, and what operators cost."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quiesce.kernels.gpu import (
    add_rms_norm,
    decode_attention,
    lookup,
    prefill_attention,
    rope_write,
    sampler,
    silu_mul,
)
from quiesce.kernels.gpu.cost import Cost
from quiesce.kernels.gpu.language import ceil_div, power_of_two
from quiesce.kernels.gpu.operators import KERNELS, TRUTHS


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.sampled_from([1, 3, 16, 64]), st.integers(0, 5))
def test_every_query_has_exactly_one_program(counts: list[int], block_q: int, padding: int) -> None:
    offsets = [sum(counts[:r]) for r in range(len(counts) + 1)]
    covered = []
    for block in range(prefill_attention.num_query_blocks(offsets[-1] + padding, len(counts), block_q)):
        request, first = prefill_attention.owner_of_block(offsets, block, block_q)
        covered += [offsets[request] + query for query in range(first, min(first + block_q, counts[request]))]
    assert sorted(covered) == list(range(offsets[-1]))


@given(st.integers(1, 3000), st.sampled_from([8, 16, 32, 128]))
def test_a_table_has_splits_for_its_longest_context_and_scratch_for_them(max_blocks: int, block_size: int) -> None:
    splits = decode_attention.num_splits(max_blocks, block_size)
    assert (splits - 1) * decode_attention.SPLIT < max_blocks * block_size <= splits * decode_attention.SPLIT
    assert decode_attention.partial_size(3, 4, 64, splits) == 3 * 4 * splits * 64 + 3 * 4 * splits * 2


@pytest.mark.parametrize("group", range(1, 9))
def test_a_group_fills_whole_rows_of_the_matrix_instruction(group: int) -> None:
    decode = decode_attention.split_configuration(8 * group, 8, 128, 16, torch.bfloat16)
    assert decode["GROUP_BLOCK"] == 16
    prefill = prefill_attention.configuration(8 * group, 8, 128, 16, torch.bfloat16)
    assert prefill["BLOCK_Q"] * prefill["GROUP_BLOCK"] == prefill_attention.ROWS
    assert group <= prefill["GROUP_BLOCK"] < 2 * group


def test_a_split_is_whole_tiles_and_whole_blocks_of_the_cache() -> None:
    assert decode_attention.SPLIT % decode_attention.TILE == 0
    assert all(decode_attention.SPLIT % size == 0 for size in (8, 16, 32, 64, 128, 256))


@given(st.integers(1, 10**6))
def test_powers_and_quotients_are_rounded_up(n: int) -> None:
    assert power_of_two(n) >= n > power_of_two(n) // 2
    assert (ceil_div(n, 7) - 1) * 7 < n <= ceil_div(n, 7) * 7


@pytest.mark.parametrize("vocab", [1, 2047, 2048, 2049, 151_936])
def test_the_parts_of_a_vocabulary_cover_it(vocab: int) -> None:
    shape = sampler.configuration(vocab, torch.bfloat16)["draw"]
    assert (shape["PARTS"] - 1) * shape["PART"] < vocab <= shape["PARTS"] * shape["PART"]
    assert shape["PARTS"] <= shape["PARTS_BLOCK"]
    assert sampler.scratch_size(3, vocab) == 3 * (4 * shape["PARTS"] + 2)


def test_what_does_not_fit_is_refused_before_a_launch() -> None:
    q, cache = torch.zeros(2, 4, 64), torch.zeros(3, 2, 16, 64)
    tables, contexts = torch.zeros(2, 20, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    needed = decode_attention.partial_size(2, 4, 64, 2)
    with pytest.raises(ValueError, match=f"{needed} elements and has {needed - 1}"):
        decode_attention.decode_attention(q, cache, cache, tables, contexts, torch.zeros(needed - 1), q)
    with pytest.raises(ValueError, match="columns must be contiguous"):
        decode_attention.decode_attention(q, cache, cache, tables[:, ::2], contexts, torch.zeros(needed), q)
    with pytest.raises(ValueError, match="columns must be contiguous"):
        prefill_attention.prefill_attention(q, cache, cache, tables[:, ::2], contexts, contexts, q)
    with pytest.raises(ValueError, match="gate_up must be contiguous; its strides are"):
        silu_mul.silu_mul(torch.zeros(4, 6).t(), torch.zeros(6, 2))
    row = torch.zeros(2)
    with pytest.raises(ValueError, match="float64 elements"):
        sampler.sample(torch.zeros(2, 9), row, row, row, row, row, row, row, row, torch.zeros(1, dtype=torch.float64))


def test_without_triton_the_operators_import_and_a_launch_says_what_is_missing() -> None:
    code = """if True:
        import sys
        sys.modules["triton"] = None
        import torch
        from quiesce.kernels.gpu.operators import KERNELS, TRUTHS
        x = torch.ones(1, 4)
        TRUTHS.silu_mul(x, torch.empty(1, 2))
        try:
            KERNELS.silu_mul(x, torch.empty(1, 2))
        except RuntimeError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "this operator is a Triton kernel and triton is not installed: pip install triton (Linux)\n"


def test_each_operator_has_a_truth_of_the_same_parameters() -> None:
    for name in KERNELS.__slots__:
        kernel, truth = getattr(KERNELS, name), getattr(TRUTHS, name)
        assert kernel.__annotations__ == truth.__annotations__
        assert truth.__name__ == f"{kernel.__name__}_truth"


def test_costs_are_the_bytes_of_the_tensors_and_the_operations_of_the_formulas() -> None:
    assert add_rms_norm.cost(2, 10, 2) == Cost(2 * (4 * 2 * 10 + 10), 100)
    assert add_rms_norm.cost(2, 10, 2, has_x=False) == Cost(2 * (2 * 2 * 10 + 10), 80)
    assert silu_mul.cost(3, 5, 4) == Cost(4 * 3 * 15, 75)
    assert rope_write.cost(1, 16, 8, 128, 2).bytes == 2 * 2 * 32 * 128
    assert lookup.cost(4, 2) == Cost(4 * 32 + 2 * 20, 0)
    assert sampler.cost(2, 1000, 2).bytes == 4000
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
    assert Cost(4, 6).seconds(bytes_per_s=1.0, flops_per_s=3.0) == 4.0
    assert Cost(4, 6).seconds(bytes_per_s=8.0, flops_per_s=3.0) == 2.0


def test_attention_moves_each_context_once_and_prefill_computes_the_lower_triangle() -> None:
    # Qwen3 0.6B, one layer: 28 of these are the 114,688 bytes that a token of context costs.
    heads = (16, 8, 128, 2)
    more = decode_attention.cost([1025], *heads).bytes - decode_attention.cost([1024], *heads).bytes
    assert more * 28 == 114_688
    whole = prefill_attention.cost([(0, 100)], *heads)
    parts = prefill_attention.cost([(0, 40), (40, 60)], *heads)
    assert parts.flops == whole.flops == 4 * 5050 * 16 * 128
    assert parts.bytes > whole.bytes, "the second chunk reads the first one's keys and values again"
    assert prefill_attention.cost([(1023, 1)], *heads) == decode_attention.cost([1024], *heads)
