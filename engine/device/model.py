"""The dense decoder: embedding, layers of attention and feed-forward, head. It reads top to bottom as the computation runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quiesce.engine.checkpoint import ModelInfo, Rope
from quiesce.engine.device.batch import Batch
from quiesce.engine.device.packing import PackedWeights
from quiesce.engine.device.weights import LayerWeights, Weights
from quiesce.kernels.linear import linear
from quiesce.kernels.paged_attention import Scratch, planned_attention, write_kv
from quiesce.kernels.rms_norm import rms_norm
from quiesce.kernels.rope import frequencies, llama3_frequencies, rope, rope_table, yarn_frequencies
from quiesce.kernels.silu_mul import silu_mul


def rope_frequencies(rope: Rope, dim: int) -> Tensor:
    """[dim / 2] radians per position, stretched as the checkpoint says."""
    plain = frequencies(dim, rope.theta)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return llama3_frequencies(plain, rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_context)
    if rope.kind == "yarn":
        return yarn_frequencies(
            plain, rope.theta, rope.factor, rope.original_context, rope.beta_fast, rope.beta_slow, rope.truncate
        )
    raise ValueError(f"rotary embedding {rope.kind!r} is unknown")


class Model:
    """One forward pass over a `Batch`. Holds the rotary table and scratch; weights and KV belong to their arenas."""

    __slots__ = ("_cos", "_scratch", "_sin", "info", "row_exact", "weights")

    def __init__(self, info: ModelInfo, weights: Weights, num_positions: int, row_exact: bool) -> None:
        self.info, self.weights, self.row_exact = info, PackedWeights(weights), row_exact
        self._cos, self._sin = rope_table(
            num_positions, rope_frequencies(info.rope, info.head_dim), weights.embed.dtype, info.rope.attention_factor
        )
        self._scratch = Scratch()

    def forward(self, batch: Batch, tokens: Tensor, caches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Computes all tokens of the batch and stores their KV.

        Args:
            batch: where the tokens stand.
            tokens: [T] input ids.
            caches: keys and values of each layer, [num_blocks + 1, kv_heads, block_size, dim] each.

        Returns:
            [T, hidden], normed, ready for `logits`.
        """
        self.weights.pack()
        eps = self.info.rms_norm_eps
        cos = self._cos.index_select(0, batch.positions).unsqueeze(1)  # [T, 1, dim]
        sin = self._sin.index_select(0, batch.positions).unsqueeze(1)
        x = self.weights.embed.index_select(0, tokens)  # [T, hidden]
        for layer, (k_cache, v_cache) in zip(self.weights.layers, caches, strict=True):
            h = rms_norm(x, layer.input_norm, eps)
            x.add_(self._attention(h, layer, batch, k_cache, v_cache, cos, sin))
            h = rms_norm(x, layer.post_norm, eps)
            gate_up = linear(h, layer.gate_up, layer.gate_up_bias)
            x.add_(linear(silu_mul(gate_up, self.row_exact), layer.down, layer.down_bias))
        return rms_norm(x, self.weights.norm, eps)

    def _attention(
        self, h: Tensor, layer: LayerWeights, batch: Batch, k_cache: Tensor, v_cache: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        info, tokens = self.info, h.shape[0]
        heads, kv_heads, dim = info.num_heads, info.num_kv_heads, info.head_dim
        qkv = linear(h, layer.qkv, layer.qkv_bias).view(tokens, heads + 2 * kv_heads, dim)
        qk = qkv[:, : heads + kv_heads]
        if layer.qk_norm is not None:
            qk = rms_norm(qk, layer.qk_norm, info.rms_norm_eps)
        qk = rope(qk, cos, sin)
        write_kv(k_cache, qk[: batch.num_real, heads:], batch.slots)
        write_kv(v_cache, qkv[: batch.num_real, heads + kv_heads :], batch.slots)
        q = qk[:, :heads].view(tokens, kv_heads, heads // kv_heads, dim)
        y = planned_attention(q, k_cache, v_cache, batch.plan, self._scratch)  # [T, heads · dim]
        return linear(y, layer.out, layer.out_bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] to [rows, vocab], float32."""
        return linear(hidden, self.weights.head).to(torch.float32)
