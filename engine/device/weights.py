"""The weights: one arena, packed for the forward pass, filled from safetensors files or from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from quiesce.engine.checkpoint import ModelInfo, refuse
from quiesce.engine.device.memory import ALIGNMENT, AnyArena, Arena, aligned
from quiesce.engine.tensor_files import check_tensors, expected_tensors

DUMMY_STD = 0.02
"""Standard deviation of dummy weights: `initializer_range` of the Hugging Face configurations."""


class _Bar(tqdm):  # type: ignore[type-arg] # generic in its stubs alone
    """tqdm without its monitor thread, which would outlive the load."""

    monitor_interval = 0


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Query, key and value projections are one matrix, gate and up another: two products fewer."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 · kv_heads) · dim, hidden]
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [heads + kv_heads, dim], the two norms repeated, so that one product applies both
    out: Tensor  # [hidden, heads · dim]
    out_bias: Tensor | None
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 · intermediate, hidden]
    gate_up_bias: Tensor | None
    down: Tensor  # [hidden, intermediate]
    down_bias: Tensor | None


class Weights:
    """The packed tensors, and where each tensor of a checkpoint goes among them.

    Args:
        info: the checkpoint.
        dtype: element type of all of them.
        make_arena: takes memory of so many bytes.
        unit: bytes that each tensor's place is a multiple of.
    """

    __slots__ = ("arena", "destinations", "embed", "head", "info", "layers", "norm")

    def __init__(
        self,
        info: ModelInfo,
        dtype: torch.dtype,
        make_arena: Callable[[int], AnyArena] = Arena,
        unit: int = ALIGNMENT,
    ) -> None:
        shapes = packed_shapes(info)
        offsets, end = {}, 0
        for key, shape in shapes.items():
            offsets[key] = end
            end += aligned(math.prod(shape) * dtype.itemsize, unit)
        self.info = info
        self.arena = make_arena(end)
        packed = {key: self.arena.view(offsets[key], shape, dtype) for key, shape in shapes.items()}
        self.embed, self.norm = packed["embed"], packed["norm"]
        self.head = packed.get("head", self.embed)
        self.layers = [_layer(packed, f"{layer}.") for layer in range(info.num_layers)]
        self.destinations = _destinations(info, self)

    def close(self) -> None:
        """Drops every view, then the memory."""
        self.embed = self.norm = self.head = torch.empty(0)
        self.layers, self.destinations = [], {}
        self.arena.close()


def packed_shapes(info: ModelInfo) -> dict[str, tuple[int, ...]]:
    """Key and shape of each packed tensor, in arena order."""
    hidden, dim, ffn = info.hidden_size, info.head_dim, info.intermediate_size
    q, kv = info.num_heads, info.num_kv_heads
    shapes: dict[str, tuple[int, ...]] = {"embed": (info.vocab_size, hidden)}
    for layer in range(info.num_layers):
        shapes[f"{layer}.input_norm"] = (hidden,)
        shapes[f"{layer}.qkv"] = ((q + 2 * kv) * dim, hidden)
        if info.attention_bias:
            shapes[f"{layer}.qkv_bias"] = ((q + 2 * kv) * dim,)
        if info.qk_norm:
            shapes[f"{layer}.qk_norm"] = (q + kv, dim)
        shapes[f"{layer}.out"] = (hidden, q * dim)
        if info.output_bias:
            shapes[f"{layer}.out_bias"] = (hidden,)
        shapes[f"{layer}.post_norm"] = (hidden,)
        shapes[f"{layer}.gate_up"] = (2 * ffn, hidden)
        shapes[f"{layer}.down"] = (hidden, ffn)
        if info.mlp_bias:
            shapes[f"{layer}.gate_up_bias"] = (2 * ffn,)
            shapes[f"{layer}.down_bias"] = (hidden,)
    shapes["norm"] = (hidden,)
    if not info.tie_word_embeddings:
        shapes["head"] = (info.vocab_size, hidden)
    return shapes


def _layer(packed: dict[str, Tensor], at: str) -> LayerWeights:
    return LayerWeights(
        input_norm=packed[at + "input_norm"],
        qkv=packed[at + "qkv"],
        qkv_bias=packed.get(at + "qkv_bias"),
        qk_norm=packed.get(at + "qk_norm"),
        out=packed[at + "out"],
        out_bias=packed.get(at + "out_bias"),
        post_norm=packed[at + "post_norm"],
        gate_up=packed[at + "gate_up"],
        gate_up_bias=packed.get(at + "gate_up_bias"),
        down=packed[at + "down"],
        down_bias=packed.get(at + "down_bias"),
    )


def _destinations(info: ModelInfo, weights: Weights) -> dict[str, Tensor]:
    """Checkpoint name to the view it is copied into, which may repeat the tensor along a leading dimension."""
    q, kv = info.num_heads * info.head_dim, info.num_kv_heads * info.head_dim
    rows = {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}
    ffn = {"gate": slice(0, info.intermediate_size), "up": slice(info.intermediate_size, 2 * info.intermediate_size)}
    views: dict[str, Tensor | None] = {"model.embed_tokens.weight": weights.embed, "model.norm.weight": weights.norm}
    views["lm_head.weight"] = weights.head
    for number, layer in enumerate(weights.layers):
        at, attn = f"model.layers.{number}", f"model.layers.{number}.self_attn"
        views[f"{at}.input_layernorm.weight"] = layer.input_norm
        views[f"{at}.post_attention_layernorm.weight"] = layer.post_norm
        for name, part in rows.items():
            views[f"{attn}.{name}_proj.weight"] = layer.qkv[part]
            views[f"{attn}.{name}_proj.bias"] = None if layer.qkv_bias is None else layer.qkv_bias[part]
        views[f"{attn}.q_norm.weight"] = None if layer.qk_norm is None else layer.qk_norm[: info.num_heads]
        views[f"{attn}.k_norm.weight"] = None if layer.qk_norm is None else layer.qk_norm[info.num_heads :]
        views[f"{attn}.o_proj.weight"] = layer.out
        views[f"{attn}.o_proj.bias"] = layer.out_bias
        for name, part in ffn.items():
            views[f"{at}.mlp.{name}_proj.weight"] = layer.gate_up[part]
            views[f"{at}.mlp.{name}_proj.bias"] = None if layer.gate_up_bias is None else layer.gate_up_bias[part]
        views[f"{at}.mlp.down_proj.weight"] = layer.down
        views[f"{at}.mlp.down_proj.bias"] = layer.down_bias
    return {name: view for name in expected_tensors(info) if (view := views[name]) is not None}


def load_weights(weights: Weights, progress: bool = True) -> None:
    """Fills the weights from the checkpoint folder, converting dtypes. The progress bar shows on a terminal only.

    Raises:
        InvalidRequest: a file or tensor is missing, damaged or does not fit; names both. Checked before any byte is copied.
    """
    files = check_tensors(weights.info)
    total = sum(map(len, files.values()))
    with _Bar(total=total, desc="Loading weights", unit="tensor", disable=None if progress else True) as bar:
        for path, names in files.items():
            _load_file(weights, path, names, bar)


def _load_file(weights: Weights, path: Path, names: list[str], bar: _Bar) -> None:
    name = ""
    try:
        with safe_open(path, "pt") as file:
            for name in names:
                flaw = write_tensor(weights.destinations[name], file.get_tensor(name))
                if flaw:
                    raise refuse(path, f"tensor {name!r} {flaw}")
                bar.update()
    except (OSError, SafetensorError) as error:
        raise refuse(path, f"tensor {name!r} cannot be read: {error}") from error


def write_tensor(view: Tensor, tensor: Tensor) -> str:
    """Copies a tensor into its place, converted, and repeated where the place wants it. Returns what is wrong with it, if anything."""
    view.copy_(tensor)
    if all(bound.isfinite() for bound in view.aminmax()):
        return ""
    return f"holds values that are no finite {str(view.dtype).removeprefix('torch.')}"


def fill_dummy(weights: Weights, seed: int) -> None:
    """Fills the weights with seeded noise, norms with ones and biases with zeros. Reads no file."""
    generator = torch.Generator(weights.embed.device).manual_seed(seed)
    for name, view in weights.destinations.items():
        if name.endswith("norm.weight"):
            view.fill_(1.0)
        elif name.endswith(".bias"):
            view.zero_()
        else:
            view.normal_(0.0, DUMMY_STD, generator=generator)
