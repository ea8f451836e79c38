"""Paged attention by token against attention over contiguous keys; the planned forms are held against it by the model's tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from quiesce.kernels.paged_attention import aligned_group, paged_attention, write_kv


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "size"), [(4, 2, 8, 4), (6, 1, 10, 3), (2, 2, 16, 1), (3, 3, 4, 32)])
def test_paged_attention_equals_attention_over_contiguous_keys(heads: int, kv_heads: int, dim: int, size: int) -> None:
    torch.manual_seed(heads)
    torch.set_num_threads(1)
    length, blocks = 11, -(-11 // size)
    q, k, v = torch.randn(length, heads, dim), torch.randn(length, kv_heads, dim), torch.randn(length, kv_heads, dim)
    k_cache, v_cache = (torch.full((2 * blocks, kv_heads, size, dim), float("nan")) for _ in range(2))
    table = torch.randperm(2 * blocks)[:blocks]
    positions = torch.arange(length)
    rows = (table[positions // size, None] * kv_heads + torch.arange(kv_heads)) * size + positions[:, None] % size
    write_kv(k_cache, k, rows.flatten())
    write_kv(v_cache, v, rows.flatten())
    got = paged_attention(q, k_cache, v_cache, table[None], torch.zeros(length, dtype=torch.long), positions)
    wide_k, wide_v = (t.transpose(0, 1).repeat_interleave(heads // kv_heads, 0) for t in (k, v))
    wanted = F.scaled_dot_product_attention(q.transpose(0, 1), wide_k, wide_v, is_causal=True).transpose(0, 1)
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(("group", "head_bytes", "padded"), [(2, 256, 2), (1, 128, 1), (3, 40, 8), (3, 32, 4), (5, 16, 8)])
def test_groups_are_padded_to_whole_cache_lines(group: int, head_bytes: int, padded: int) -> None:
    assert aligned_group(group, head_bytes) == padded
    assert padded * head_bytes % 64 == 0
