"""Tensors on their way between processes: as bytes with the name of their element type, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def bytes_of(value: Any) -> memoryview:
    """The bytes of a torch tensor, wherever it is, in row-major order."""
    tensor: Tensor = value.detach().to("cpu").contiguous()
    found: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return found


def tensor_of(data: bytearray, dtype: str, shape: Sequence[int]) -> Tensor:
    """The tensor that these are the bytes of, in memory of its own.

    Raises:
        ValueError: they are not.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or len(data) != int(np.prod(shape, dtype=np.int64)) * kind.itemsize:
        raise ValueError(f"{len(data)} bytes are no tensor of {dtype} and shape {list(shape)}")
    if not data:
        return torch.empty(tuple(shape), dtype=kind)
    return torch.frombuffer(data, dtype=kind).reshape(tuple(shape))
