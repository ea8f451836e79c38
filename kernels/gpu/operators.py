"""All operators under one roof, so that a device can be given the kernels or, on a machine without a GPU, their truths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quiesce.kernels.gpu import (
    add_rms_norm,
    decode_attention,
    lookup,
    prefill_attention,
    rope_write,
    sampler,
    silu_mul,
)


@dataclass(frozen=True, slots=True)
class Operators:
    """Each field has the signature of the launcher of its name."""

    add_rms_norm: Callable[..., None]
    rope_write: Callable[..., None]
    decode_attention: Callable[..., None]
    prefill_attention: Callable[..., None]
    silu_mul: Callable[..., None]
    sample: Callable[..., None]
    input_ids: Callable[..., None]
    keep_sampled: Callable[..., None]


KERNELS = Operators(
    add_rms_norm.add_rms_norm,
    rope_write.rope_write,
    decode_attention.decode_attention,
    prefill_attention.prefill_attention,
    silu_mul.silu_mul,
    sampler.sample,
    lookup.input_ids,
    lookup.keep_sampled,
)
TRUTHS = Operators(
    add_rms_norm.add_rms_norm_truth,
    rope_write.rope_write_truth,
    decode_attention.decode_attention_truth,
    prefill_attention.prefill_attention_truth,
    silu_mul.silu_mul_truth,
    sampler.sample_truth,
    lookup.input_ids_truth,
    lookup.keep_sampled_truth,
)
