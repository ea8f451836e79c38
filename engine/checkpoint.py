"""What a Hugging Face checkpoint folder says of its model: its sizes, and how it likes to be sampled. No torch.

    info = read_model_info(folder)      config.json and generation_config.json
    files = check_tensors(info)         the headers of the tensor files against `expected_tensors(info)` (tensor_files.py)

Everything that cannot be served is refused here as `InvalidRequest("model", ...)`, which names the file and the tensor or field.
A further dense family is one more row in `FAMILIES`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import InvalidRequest

DTYPE_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture departs from the common dense decoder."""

    qk_norm: bool = False
    """An RMS norm over each query and key head."""
    qkv_bias: bool = False
    """Query, key and value projections have a bias whatever `attention_bias` says, and the output projection has none."""
    mlp_bias: bool = False
    """The field `mlp_bias` is read: the three feed-forward projections may have one."""
    rope_theta: float | None = None
    """Base where the configuration names none, as its first checkpoints did not."""


FAMILIES: Final[Mapping[str, Family]] = {
    "LlamaForCausalLM": Family(mlp_bias=True, rope_theta=10_000.0),
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(qk_norm=True),
}


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary embedding: its base, and how its frequencies are stretched (formulas in `kernels/rope.py`)."""

    theta: float
    kind: str = "default"
    """default, linear, llama3 or yarn; what follows is read by the last three."""
    factor: float = 1.0
    """Context over original context."""
    original_context: int = 0
    """Tokens, for llama3 and yarn."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """Original context over the wavelengths between which llama3 blends."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """Turns over the original context between which yarn blends."""
    truncate: bool = True
    """yarn rounds the bounds of the blend to whole dimensions."""
    attention_factor: float = 1.0
    """yarn multiplies cosines and sines by it."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The sizes of one dense decoder, in elements."""

    folder: str
    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: Rope
    max_position_embeddings: int
    """Longest context in tokens; yarn's stretched one, where the checkpoint was trained for less."""
    tie_word_embeddings: bool
    attention_bias: bool
    """q, k and v projections have a bias."""
    output_bias: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]
    dtype: str
    """Element type the checkpoint was saved in, by its torch name."""
    mlp_bias: bool = False
    generation_defaults: Mapping[str, float | int] = field(default_factory=dict, hash=False)
    """What generation_config.json sets of temperature, top_p, top_k and repetition_penalty, by `SamplingParams`' names."""


def refuse(file: str | Path, reason: str) -> InvalidRequest:
    """The error for something wrong in `file`."""
    return InvalidRequest("model", f"{file}: {reason}")


def read_json(path: Path) -> dict[str, object]:
    """The object a JSON file holds."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refuse(path, "the file is missing") from None
    except (OSError, ValueError) as error:
        raise refuse(path, f"cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise refuse(path, "holds no JSON object")
    return value


def read_model_info(folder: str | Path) -> ModelInfo:
    """Reads and judges the configuration of a checkpoint folder.

    Raises:
        InvalidRequest: a file or field is missing, or a field asks for what is not supported.
    """
    path = Path(folder) / "config.json"
    config = _Fields(path, read_json(path))
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    _refuse_unsupported(config, architecture)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise refuse(path, f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}")
    head_dim = config.size("head_dim", hidden // heads)
    if head_dim % 2:
        raise refuse(path, f"head_dim={head_dim}; rotary embedding needs an even number")
    rope = _rope(config, family)
    generation = _generation_config(Path(folder))
    bias = config.flag("attention_bias")
    return ModelInfo(
        folder=str(folder),
        architecture=architecture,
        vocab_size=config.size("vocab_size"),
        hidden_size=hidden,
        num_layers=config.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=config.size("intermediate_size"),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope=rope,
        max_position_embeddings=_context(config, rope),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        attention_bias=bias or family.qkv_bias,
        output_bias=bias and not family.qkv_bias,
        mlp_bias=config.flag("mlp_bias"),
        qk_norm=family.qk_norm,
        eos_token_ids=_eos_token_ids(config, generation),
        generation_defaults=_generation_defaults(generation),
        dtype=str(config.values.get("dtype") or config.values.get("torch_dtype") or "float32"),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    path: Path
    values: dict[str, object]
    prefix: str = ""
    """What stands before a field's name where the object lies inside another."""

    def refuse(self, name: str, accepted: str) -> InvalidRequest:
        return refuse(self.path, f"field {self.prefix + name!r} is {self.values.get(name)!r}; accepted: {accepted}")

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise refuse(self.path, f"field {self.prefix + name!r} is missing; accepted: a number above 0")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.refuse(name, "a number above 0")
        return float(value)

    def size(self, name: str, default: int | None = None) -> int:
        value = self.number(name, default)
        if value != int(value):
            raise self.refuse(name, "a whole number")
        return int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return default if value is None else value


def _architecture(config: _Fields) -> str:
    named = config.values.get("architectures")
    for name in named if isinstance(named, list) else []:
        if name in FAMILIES:
            return str(name)
    raise config.refuse("architectures", f"one of {', '.join(sorted(FAMILIES))}")


def _refuse_unsupported(config: _Fields, architecture: str) -> None:
    values = config.values
    if values.get("hidden_act", "silu") != "silu":
        raise config.refuse("hidden_act", "'silu'")
    if config.flag("use_sliding_window"):
        raise refuse(config.path, "field 'use_sliding_window' is true; accepted: false (full attention in every layer)")
    kinds = values.get("layer_types")
    if isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds):
        raise refuse(config.path, f"field 'layer_types' holds {sorted(set(map(str, kinds)))}; accepted: 'full_attention' alone")
    if values.get("quantization_config") is not None:
        raise refuse(config.path, "field 'quantization_config' is set; accepted: weights that are not quantised")
    if config.flag("mlp_bias") and not FAMILIES[architecture].mlp_bias:
        able = ", ".join(name for name, family in FAMILIES.items() if family.mlp_bias)
        raise refuse(config.path, f"field 'mlp_bias' is true; accepted: false, or architecture {able}")


def _rope(config: _Fields, family: Family) -> Rope:
    """`rope_parameters` as transformers 5 writes it, or `rope_theta` with `rope_scaling` as older versions did."""
    name = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    values = config.values.get(name) or {}
    if not isinstance(values, dict):
        raise config.refuse(name, "an object or null")
    rope = _Fields(config.path, values, f"{name}.")
    for key, value in values.items():
        if isinstance(value, dict) or key == "mrope_section":
            raise rope.refuse(key, "one set of numbers, the same for every layer and position")
    for fields in (config, rope):
        if fields.number("partial_rotary_factor", 1.0) != 1.0:
            raise fields.refuse("partial_rotary_factor", "1.0")
    kind_name = "rope_type" if "rope_type" in values else "type"
    kind = values.get(kind_name, "default")
    base = rope if values.get("rope_theta") is not None else config
    theta = base.number("rope_theta", family.rope_theta)
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, factor=rope.number("factor"))
    if kind not in ("llama3", "yarn"):
        raise rope.refuse(kind_name, "default, linear, llama3 or yarn")
    outer = config if config.values.get("original_max_position_embeddings") is not None else rope
    original = outer.size("original_max_position_embeddings", config.size("max_position_embeddings"))
    if kind == "yarn":
        return _yarn(rope, theta, original, config.size("max_position_embeddings") / original)
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise rope.refuse("high_freq_factor", f"a number above low_freq_factor={low:g}")
    return Rope(theta, kind, rope.number("factor"), original_context=original, low_freq_factor=low, high_freq_factor=high)


def _yarn(rope: _Fields, theta: float, original: int, ratio: float) -> Rope:
    """With transformers' defaults: `ratio` of the contexts as factor, 0.1 · ln(factor) + 1 as attention factor."""
    factor = rope.number("factor", ratio)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    attention = scale(1.0)
    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        attention = scale(rope.number("mscale")) / scale(rope.number("mscale_all_dim"))
    fast, slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
    if fast < slow:
        raise rope.refuse("beta_fast", f"a number of at least beta_slow={slow:g}")
    return Rope(
        theta,
        "yarn",
        factor,
        original_context=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=rope.flag("truncate", True),
        attention_factor=rope.number("attention_factor", attention),
    )


def _context(config: _Fields, rope: Rope) -> int:
    """Tokens. A yarn block with an original context says how far it stretches; many leave `max_position_embeddings` as it was."""
    context = config.size("max_position_embeddings")
    blocks = [config.values.get(name) for name in ("rope_scaling", "rope_parameters")] + [config.values]
    told = any(isinstance(block, dict) and block.get("original_max_position_embeddings") is not None for block in blocks)
    return max(context, int(rope.original_context * rope.factor)) if rope.kind == "yarn" and told else context


def _generation_config(folder: Path) -> _Fields:
    path = folder / "generation_config.json"
    return _Fields(path, read_json(path) if path.exists() else {})


def _eos_token_ids(config: _Fields, generation: _Fields) -> tuple[int, ...]:
    source = config if generation.values.get("eos_token_id") is None else generation
    found = source.values.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise source.refuse("eos_token_id", "a token id or a list of them")
    return tuple(dict.fromkeys(ids))


def _generation_defaults(generation: _Fields) -> dict[str, float | int]:
    defaults: dict[str, float | int] = {}
    for name, (whole, good, accepted) in GENERATION_DEFAULTS.items():
        value = generation.values.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not good(value):
            raise generation.refuse(name, accepted)
        defaults[name] = value
    return defaults


GENERATION_DEFAULTS: Final[Mapping[str, tuple[bool, Callable[[float], bool], str]]] = {
    "temperature": (False, lambda value: 0 <= value < math.inf, "a number of at least 0"),
    "top_p": (False, lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "top_k": (True, lambda value: value >= -1, "a whole number; 0 and -1 keep all tokens"),
    "repetition_penalty": (False, lambda value: 0 < value < math.inf, "a number above 0"),
}
"""Whether it is a whole number, what is good, and how to say so."""


def compute_dtype(config: EngineConfig) -> str:
    """The element type of weights and KV, by its torch name: `auto` is bfloat16 where the device multiplies in it."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if config.device == "cuda" or processor_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def processor_flags() -> frozenset[str]:
    """Instruction sets of this processor by the kernel's names; empty where the kernel does not list them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(line.partition(":")[2].split())


def bytes_per_block(info: ModelInfo, config: EngineConfig) -> int:
    """Bytes of KV arena that one block takes: keys and values of `block_size` tokens in every layer."""
    per_token = 2 * info.num_layers * info.num_kv_heads * info.head_dim
    return per_token * config.block_size * DTYPE_BYTES[compute_dtype(config)]
