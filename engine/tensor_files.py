"""The safetensors files of a checkpoint, judged by their headers alone: a load that would fail is refused in milliseconds. No torch.

Layout of a file (https://github.com/huggingface/safetensors, "Format"): 8 bytes N, little-endian; N bytes of JSON, which gives for
each tensor its dtype, shape and the bytes [begin, end) it takes; then those bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quiesce.engine.checkpoint import ModelInfo, read_json, refuse

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ITEM_BYTES: Final[Mapping[str, int]] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Element types that are accepted, and converted at load; their size in bytes."""
HEADER_BYTES_MAX = 100_000_000
"""The format's own bound on N."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as a header states it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def expected_tensors(info: ModelInfo) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor the checkpoint must hold, in the order of the forward pass."""
    hidden, head = info.hidden_size, info.head_dim
    q, kv, ffn = info.num_heads * head, info.num_kv_heads * head, info.intermediate_size
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (info.vocab_size, hidden)}
    for layer in range(info.num_layers):
        at, attn = f"model.layers.{layer}", f"model.layers.{layer}.self_attn"
        tensors[f"{at}.input_layernorm.weight"] = (hidden,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            tensors[f"{attn}.{name}_proj.weight"] = (rows, hidden)
            if info.attention_bias:
                tensors[f"{attn}.{name}_proj.bias"] = (rows,)
        if info.qk_norm:
            tensors[f"{attn}.q_norm.weight"] = (head,)
            tensors[f"{attn}.k_norm.weight"] = (head,)
        tensors[f"{attn}.o_proj.weight"] = (hidden, q)
        if info.output_bias:
            tensors[f"{attn}.o_proj.bias"] = (hidden,)
        tensors[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns in (("gate", ffn, hidden), ("up", ffn, hidden), ("down", hidden, ffn)):
            tensors[f"{at}.mlp.{name}_proj.weight"] = (rows, columns)
            if info.mlp_bias:
                tensors[f"{at}.mlp.{name}_proj.bias"] = (rows,)
    tensors["model.norm.weight"] = (hidden,)
    if not info.tie_word_embeddings:
        tensors["lm_head.weight"] = (info.vocab_size, hidden)
    return tensors


def ignored(name: str, info: ModelInfo) -> bool:
    """Whether a tensor beyond the expected ones may be passed over: it cannot change what is computed."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and info.tie_word_embeddings)


def tensor_files(folder: Path) -> list[Path]:
    """The tensor files of a folder: the single file, else the shards that the index names."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if not (folder / INDEX).exists():
        raise refuse(folder, f"holds neither {SINGLE} nor {INDEX}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise refuse(folder / INDEX, "field 'weight_map' is no map from tensor names to files")
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for path in files:
        if not path.is_file():
            lost = next(tensor for tensor, name in weight_map.items() if folder / name == path)
            raise refuse(path, f"the file is missing; {INDEX} says it holds tensor {lost!r}")
    return files


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file. The bytes they claim must be in the file, and no more.

    Raises:
        InvalidRequest: the file is damaged or cut short; names the file, and the first tensor that is not whole.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_BYTES_MAX):
                raise refuse(path, f"is truncated: {size} bytes do not hold its header")
            header = json.loads(file.read(length))
        entries = {
            name: TensorEntry(str(entry["dtype"]), tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FileNotFoundError):
            raise refuse(path, "the file is missing") from None
        if hasattr(error, "field"):  # our own refusal, which is a ValueError too
            raise
        raise refuse(path, f"is no safetensors file: {error!r}") from None
    data_bytes = size - 8 - length
    for name, entry in entries.items():
        if entry.end > data_bytes:
            raise refuse(
                path, f"is truncated: tensor {name!r} ends at byte {entry.end} of the data, of which there are {data_bytes}"
            )
        if entry.dtype in ITEM_BYTES and entry.end - entry.begin != math.prod(entry.shape) * ITEM_BYTES[entry.dtype]:
            raise refuse(path, f"tensor {name!r} of {entry.dtype} {list(entry.shape)} takes {entry.end - entry.begin} bytes")
    return entries


def check_entry(path: str | Path, name: str, shape: tuple[int, ...], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a tensor that the model has no place for, or of another shape."""
    if name not in expected:
        raise refuse(path, f"tensor {name!r} has no place in this model")
    if shape != expected[name]:
        raise refuse(path, f"tensor {name!r} has shape {list(shape)}; expected {list(expected[name])}")


def check_tensors(info: ModelInfo) -> dict[Path, list[str]]:
    """Checks the files of the model's own folder; see `check_files`."""
    folder = Path(info.folder)
    return check_files(folder, tensor_files(folder), info)


def check_files(folder: Path, files: Sequence[Path], info: ModelInfo) -> dict[Path, list[str]]:
    """Checks that the files of a folder hold exactly the tensors of the model; returns the tensors to read from each file.

    Raises:
        InvalidRequest: a tensor or file is missing, cut short, of another shape or type, or unknown; names both.
    """
    expected = expected_tensors(info)
    found: dict[Path, list[str]] = {}
    owner: dict[str, Path] = {}
    for path in files:
        found[path] = []
        for name, entry in read_header(path).items():
            if ignored(name, info):
                continue
            check_entry(path, name, entry.shape, expected)
            if entry.dtype not in ITEM_BYTES:
                raise refuse(path, f"tensor {name!r} is {entry.dtype}; accepted: {', '.join(ITEM_BYTES)}")
            if name in owner:
                raise refuse(path, f"tensor {name!r} is in {owner[name].name} too; accepted: one file for each tensor")
            owner[name] = path
            found[path].append(name)
    missing = expected.keys() - owner.keys()
    if missing:
        first = next(name for name in expected if name in missing)
        where = INDEX if len(found) != 1 else next(iter(found)).name
        raise refuse(folder / where, f"tensor {first!r} is missing ({len(missing)} of {len(expected)} are)")
    return found
