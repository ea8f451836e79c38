"""The dense decoder over preallocated tensors: every operator writes where the next one reads, so that a pass can be a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.device.cuda_step import Shape
from quiesce.engine.device.model import rope_frequencies
from quiesce.engine.device.weights import Weights
from quiesce.kernels.gpu.decode_attention import num_splits, partial_size
from quiesce.kernels.gpu.operators import Operators
from quiesce.kernels.gpu.sampler import scratch_size
from quiesce.kernels.rope import rope_table


def product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """[rows, in] times [out, in], through cuBLAS on a GPU."""
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


class CudaModel:
    """One forward pass over arrays that lie on the device, and the choice of tokens after it.

    Args:
        info: the checkpoint.
        weights: in their arena.
        operators: kernels, or their truths.
        num_positions: rows of the rotary table.
        max_tokens: of a pass.
        max_samples: of a pass.
        max_rows: single queries of a pass.
        max_width: blocks of a table.
        block_size: tokens to a block.
    """

    def __init__(
        self,
        info: ModelInfo,
        weights: Weights,
        operators: Operators,
        *,
        num_positions: int,
        max_tokens: int,
        max_samples: int,
        max_rows: int,
        max_width: int,
        block_size: int,
    ) -> None:
        self.info, self.weights, self._operators = info, weights, operators
        dtype, device = weights.embed.dtype, weights.embed.device
        heads, dim, kv_heads = info.num_heads, info.head_dim, info.num_kv_heads
        cos, sin = rope_table(num_positions, rope_frequencies(info.rope, dim), dtype, info.rope.attention_factor)
        self._cos, self._sin = cos.to(device), sin.to(device)
        widths = {
            "residual": info.hidden_size,
            "normed": info.hidden_size,
            "added": info.hidden_size,
            "qkv": (heads + 2 * kv_heads) * dim,
            "q": heads * dim,
            "attended": heads * dim,
            "gate_up": 2 * info.intermediate_size,
            "gated": info.intermediate_size,
        }
        self._scratch = {name: torch.empty((max_tokens, width), dtype=dtype, device=device) for name, width in widths.items()}
        self._ids = torch.empty(max_tokens, dtype=torch.int64, device=device)
        splits = num_splits(max_width, block_size)
        self._partial = torch.empty(partial_size(max_rows, heads, dim, splits), dtype=torch.float32, device=device)
        self._last = torch.empty((max_samples, info.hidden_size), dtype=dtype, device=device)
        self._logits = torch.empty((max_samples, info.vocab_size), dtype=dtype, device=device)
        self._sampling = torch.empty(scratch_size(max_samples, info.vocab_size), dtype=torch.float64, device=device)

    def forward(
        self,
        shape: Shape,
        inputs: Mapping[str, Tensor],
        lost: Tensor,
        next_token: Tensor,
        caches: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Computes all tokens of a pass and stores their KV.

        Args:
            shape: of the pass.
            inputs: `cuda_step.input_layout`.
            lost: [tokens] int32, written: 1 where a token was to come from the device and is none.
            next_token: [max_num_seqs] int64, what each batch row sampled last.
            caches: keys and values of each layer, [num_blocks + 1, kv_heads, block_size, dim] each.

        Returns:
            [tokens, hidden], normed; good until the next pass.
        """
        do, info, tokens = self._operators, self.info, shape.tokens
        at = {name: tensor[:tokens] for name, tensor in self._scratch.items()}
        ids, eps = self._ids[:tokens], info.rms_norm_eps
        q = at["q"].view(tokens, info.num_heads, info.head_dim)
        do.input_ids(inputs["ids"], inputs["rows"], next_token, ids, lost)
        torch.index_select(self.weights.embed, 0, ids, out=at["residual"])
        added: Tensor | None = None
        for layer, (k_cache, v_cache) in zip(self.weights.layers, caches, strict=True):
            do.add_rms_norm(added, at["residual"], layer.input_norm, eps, at["normed"])
            product(at["normed"], layer.qkv, layer.qkv_bias, at["qkv"])
            q_norm = None if layer.qk_norm is None else layer.qk_norm[0]
            k_norm = None if layer.qk_norm is None else layer.qk_norm[info.num_heads]
            do.rope_write(
                at["qkv"], inputs["positions"], inputs["slots"], self._cos, self._sin, q_norm, k_norm, eps, q, k_cache, v_cache
            )
            self._attend(shape, inputs, q, k_cache, v_cache, at["attended"].view(q.shape))
            product(at["attended"], layer.out, layer.out_bias, at["added"])
            do.add_rms_norm(at["added"], at["residual"], layer.post_norm, eps, at["normed"])
            product(at["normed"], layer.gate_up, layer.gate_up_bias, at["gate_up"])
            do.silu_mul(at["gate_up"], at["gated"])
            product(at["gated"], layer.down, layer.down_bias, at["added"])
            added = at["added"]
        do.add_rms_norm(added, at["residual"], self.weights.norm, eps, at["normed"])
        return at["normed"]

    def _attend(
        self, shape: Shape, inputs: Mapping[str, Tensor], q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor
    ) -> None:
        singles, tables = shape.singles, inputs["tables"]
        if singles:
            self._operators.decode_attention(
                q[:singles], k_cache, v_cache, tables[:singles], inputs["contexts"], self._partial, out[:singles]
            )
        if shape.chunks:
            self._operators.prefill_attention(
                q[singles:], k_cache, v_cache, tables[singles:], inputs["starts"], inputs["offsets"], out[singles:]
            )

    def last_logits(self, shape: Shape, inputs: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """[samples, vocab] of the tokens that are sampled from; good until the next pass."""
        last = self._last[: shape.samples]
        torch.index_select(hidden, 0, inputs["ends"], out=last)
        return self.logits(last, self._logits[: shape.samples])

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """[rows, hidden] to [rows, vocab]."""
        made = hidden.new_empty((hidden.shape[0], self.info.vocab_size)) if out is None else out
        product(hidden, self.weights.head, None, made)
        return made

    def choose(
        self,
        logits: Tensor,
        inputs: Mapping[str, Tensor],
        results: Mapping[str, Tensor],
        next_token: Tensor,
        *,
        filtered: bool = True,
        banned: bool = False,
    ) -> None:
        """Samples a token of each row of logits and keeps it for the step that follows; -1 where something is wrong with the row."""
        sampled = results["sampled"]
        self._operators.sample(
            logits, inputs["temperature"], inputs["top_k"], inputs["top_p"], inputs["min_p"], inputs["keys"],
            inputs["sampled_at"], sampled, results["faults"], self._sampling, filtered, banned,
        )  # fmt: skip
        sampled.masked_fill_(results["lost"].index_select(0, inputs["ends"]) != 0, -1)
        self._operators.keep_sampled(sampled, inputs["keep"], next_token)

    def close(self) -> None:
        """Drops every tensor."""
        self._scratch.clear()
        empty = torch.empty(0)
        self._cos = self._sin = self._ids = self._partial = self._last = self._logits = self._sampling = empty
