"""New weights, a chunk at a time: pulled from their source, copied, written where the model computes with them, and summed up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quiesce.engine.device.weights import Weights, write_tensor
from quiesce.engine.tensor_files import expected_tensors, ignored
from quiesce.engine.weight_source import check_pair, check_pairs, refuse

CHUNK_BYTES = 64 * 2**20
CHUNK_TENSORS = 1024
"""A chunk ends with the tensor that reaches either."""


def read_files(files: Mapping[Path, Sequence[str]]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of safetensors files.

    Raises:
        InvalidRequest: a tensor cannot be read; names it and its file.
    """
    for path, names in files.items():
        name = ""
        try:
            with safe_open(path, "pt") as file:
                for name in names:
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise refuse(f"{path}: tensor {name!r} cannot be read: {error}") from error


def take_chunk(source: Iterator[Any], go_on: Callable[[], None]) -> tuple[tuple[str, Tensor], ...]:
    """The next pairs of a source, about `CHUNK_BYTES` of them; none when it has ended.

    The tensors are copies: the source may rewrite its own as soon as it is asked for more.

    Raises:
        InvalidRequest: what it gave is no pair of a name and a tensor.
        Exception: whatever the source raises.
    """
    pairs: list[tuple[str, Tensor]] = []
    num_bytes = 0
    while num_bytes < CHUNK_BYTES and len(pairs) < CHUNK_TENSORS:
        go_on()
        try:
            item = next(source)
        except StopIteration:
            break
        name, value = check_pair(item)
        if not isinstance(value, (Tensor, np.ndarray)):
            raise refuse(f"gave tensor {name!r} as {type(value).__name__}; accepted: a torch tensor or a numpy array")
        tensor = copied(value)
        pairs.append((name, tensor))
        num_bytes += tensor.nbytes
    return tuple(pairs)


def copied(value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """The values in memory of their own, in their own element type."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    array = np.array(value, value.dtype if value.dtype.isnative else value.dtype.newbyteorder("="), order="C", subok=False)
    return torch.from_numpy(array)


def write_pairs(weights: Weights, pairs: Sequence[tuple[str, Any]], go_on: Callable[[], None]) -> None:
    """Writes tensors to their places, in the type that the model computes in.

    Raises:
        InvalidRequest: a tensor does not fit (then nothing was written), or its values are not finite (then some was).
    """
    check_pairs(pairs, weights.info)
    for name, value in pairs:
        go_on()
        if not ignored(name, weights.info):
            tensor = value if isinstance(value, Tensor) else copied(value)
            flaw = write_tensor(weights.destinations[name], tensor)
            if flaw:
                raise refuse(f"tensor {name!r} {flaw}")


def checksum(weights: Weights, go_on: Callable[[], None]) -> str:
    """SHA-256 over name, element type, shape and bytes of each tensor of a checkpoint, by name; not over how they are packed."""
    digest = hashlib.sha256()
    shapes = expected_tensors(weights.info)
    for name in sorted(shapes):
        go_on()
        view = weights.destinations[name]
        tensor = view[0] if view.dim() > len(shapes[name]) else view  # the norms of heads are kept once for each head
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(shapes[name])}\n".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
