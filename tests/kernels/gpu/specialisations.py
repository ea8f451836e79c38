"""Every kernel as the Qwen3 0.6B and 8B shapes launch it in bfloat16, with what each may take of an H200's multiprocessor.

A multiprocessor has 65,536 registers and 227 KiB of shared memory for its programs. `programs` is how many must fit at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quiesce.kernels.gpu import (
    add_rms_norm,
    decode_attention,
    lookup,
    prefill_attention,
    rope_write,
    sampler,
    silu_mul,
)

B16, F32, F64, I32, I64 = "*bf16", "*fp32", "*fp64", "*i32", "*i64"
VOCAB = 151_936


@dataclass(frozen=True, slots=True)
class Model:
    """What of a model's shape reaches a kernel."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    dim: int = 128


MODELS = (Model("0.6B", 1024, 3072, 16, 8), Model("8B", 4096, 12_288, 32, 8))


@dataclass(frozen=True, slots=True)
class Specialisation:
    """One compilation."""

    name: str
    kernel: Any
    arguments: dict[str, str]
    """Types of the run-time arguments, in order."""
    constants: dict[str, Any]
    options: dict[str, int]
    programs: int
    """How many must fit on a multiprocessor at once."""
    matrix: str | None = None
    """The matrix instruction that must be in the PTX."""


def split(configuration: dict[str, int]) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants of the kernel, options of the compiler."""
    options = {name: value for name, value in configuration.items() if name in ("num_warps", "num_stages")}
    return {name: value for name, value in configuration.items() if name not in options}, options


def elementwise(model: Model) -> list[Specialisation]:
    """Norms, the gate, and the write to the cache."""
    norm, norm_options = split(add_rms_norm.configuration(model.hidden))
    gate, gate_options = split(silu_mul.configuration(model.intermediate))
    pointers = {"x": B16, "residual": B16, "weight": B16, "out": B16, "eps": "fp32"}
    made = [
        Specialisation(f"add_rms_norm {model.name} {'add' if add else 'alone'}", add_rms_norm.add_rms_norm_kernel, pointers,
                       norm | {"HAS_X": add}, norm_options, 4)
        for add in (True, False)
    ]  # fmt: skip
    made.append(
        Specialisation(f"silu_mul {model.name}", silu_mul.silu_mul_kernel, {"gate_up": B16, "out": B16}, gate, gate_options, 8)
    )
    for block_size in (16, 32):
        shape, options = split(rope_write.configuration(model.heads, model.kv_heads, model.dim, block_size))
        arguments = {
            "qkv": B16, "positions": I64, "slots": I64, "cos": B16, "sin": B16, "q_norm": B16, "k_norm": B16, "eps": "fp32",
            "q_out": B16, "k_cache": B16, "v_cache": B16,
        }  # fmt: skip
        name = f"rope_write {model.name} block {block_size}"
        made.append(Specialisation(name, rope_write.rope_write_kernel, arguments, shape | {"NORM": True}, options, 16))
    return made


def attention(model: Model, block_size: int, kind: str = B16) -> list[Specialisation]:
    """Decode and prefill."""
    name = f"{model.name} block {block_size}{' float32' if kind == F32 else ''}"
    dtype = torch.float32 if kind == F32 else torch.bfloat16
    decode, decode_options = split(
        decode_attention.split_configuration(model.heads, model.kv_heads, model.dim, block_size, dtype)
    )
    prefill, prefill_options = split(prefill_attention.configuration(model.heads, model.kv_heads, model.dim, block_size, dtype))
    caches = {"q": kind, "k_cache": kind, "v_cache": kind, "tables": I32}
    return [
        Specialisation(
            f"decode_split {name}", decode_attention.decode_split_kernel,
            caches | {"contexts": I32, "sums": F32, "stats": F32, "table_stride": "i32", "scale": "fp32"},
            decode, decode_options, 2 if kind == F32 else 3, "mma.sync",
        ),
        Specialisation(
            f"prefill {name}", prefill_attention.prefill_kernel,
            caches | {"starts": I32, "offsets": I32, "out": kind, "requests": "i32", "table_stride": "i32", "scale": "fp32"},
            prefill, prefill_options, 1, "mma.sync" if kind == F32 else "wgmma.mma_async",
        ),
    ]  # fmt: skip


def combination(model: Model) -> Specialisation:
    """Does not know of blocks."""
    shape, options = split(decode_attention.combine_configuration(model.heads, model.dim))
    arguments = {"sums": F32, "stats": F32, "contexts": I32, "out": B16, "splits": "i32", "scale": "fp32"}
    return Specialisation(f"decode_combine {model.name}", decode_attention.decode_combine_kernel, arguments, shape, options, 8)


def sampling(logits: str, dtype: torch.dtype, filtered: bool) -> list[Specialisation]:
    """Over the vocabulary of Qwen3."""
    shapes = {name: split(made) for name, made in sampler.configuration(VOCAB, dtype).items()}
    kind = f"{logits.removeprefix('*')}{' filtered' if filtered else ''}"
    rows = {"temperature": F32, "top_k": I32, "top_p": F32, "min_p": F32}
    threshold = Specialisation(
        f"threshold {kind}", sampler.threshold_kernel,
        {"logits": logits} | rows | {"scratch": F64, "out": I64, "faults": I32},
        shapes["threshold"][0] | {"FILTERED": filtered}, shapes["threshold"][1], 1,
    )  # fmt: skip
    if filtered:
        return [threshold]
    weigh = {"logits": logits, "temperature": F32, "min_p": F32, "scratch": F64, "faults": I32}
    draw = {"logits": logits, "temperature": F32, "min_p": F32, "keys": I64, "positions": I64, "scratch": F64, "out": I64}
    return [
        threshold,
        Specialisation(f"scan {kind}", sampler.scan_kernel, {"logits": logits, "scratch": F64},
                       shapes["scan"][0] | {"BANNED": False}, shapes["scan"][1], 8),
        Specialisation(f"weigh {kind}", sampler.weigh_kernel, weigh, *shapes["weigh"], 8),
        Specialisation(f"draw {kind}", sampler.draw_kernel, draw | {"faults": I32}, *shapes["draw"], 4),
    ]  # fmt: skip


def every() -> list[Specialisation]:
    """The whole table."""
    ids = {"host_ids": I64, "rows": I32, "next_token": I64, "out": I64, "lost": I32, "count": "i32"}
    keep = {"sampled": I64, "rows": I32, "next_token": I64, "count": "i32"}
    made = [
        Specialisation("input_ids", lookup.input_ids_kernel, ids,
                       {"FROM_DEVICE": lookup.FROM_DEVICE, "BLOCK": lookup.BLOCK}, {"num_warps": 4}, 8),
        Specialisation("keep_sampled", lookup.keep_sampled_kernel, keep, {"BLOCK": lookup.BLOCK}, {"num_warps": 4}, 8),
    ]  # fmt: skip
    for model in MODELS:
        made += [*elementwise(model), combination(model)]
        for block_size in (16, 32):
            made += attention(model, block_size)
    made += attention(MODELS[0], 16, F32)
    for logits, dtype in ((B16, torch.bfloat16), (F32, torch.float32)):
        for filtered in (False, True):
            made += sampling(logits, dtype, filtered)
    return made
