"""A matrix product with weights: y = x·Wᵀ + b, with W as checkpoints have it or packed.

torch gives float32 to its BLAS, which on x86 is Intel's MKL and on a processor of another maker takes a slow path: on an AMD EPYC 9005
oneDNN, which torch carries along and uses for bfloat16, was 1.4, 1.5, 1.8 and 2.2 times faster at 1, 8, 32 and 128 rows. The operators
that reach it are those that `torch.compile` emits. Where there are none, torch's own product it is.

oneDNN rearranges a plain matrix in every product, into the blocks that its kernels read. `pack` does that once: another 2.0, 1.6 and
1.3 times in bfloat16 and 1.0, 1.6 and 1.3 in float32 at 1, 8 and 32 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

PACK_FOR_ROWS: Final = 32
"""The layout was the same for any number from 2 up, and the best for all."""


def _operator(name: str) -> Callable[..., Tensor] | None:
    if not torch._C._has_mkldnn:
        return None
    try:
        found: Callable[..., Tensor] = getattr(torch.ops.mkldnn, name).default
    except AttributeError:  # not built in
        return None
    return found


_PRODUCT: Final = _operator("_linear_pointwise")
_PACK: Final = _operator("_reorder_linear_weight")


def can_pack(dtype: torch.dtype) -> bool:
    """Whether `pack` works here, and pays."""
    if _PRODUCT is None or _PACK is None:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def pack(weight: Tensor) -> Tensor:
    """[out, in] in blocks, a tensor of as many bytes which only `linear` and `to_dense` understand. Bits are kept."""
    if _PACK is None:
        raise RuntimeError("torch was built without oneDNN")
    return _PACK(weight, PACK_FOR_ROWS)


def packed_memory(packed: Tensor) -> tuple[int, int]:
    """Address and bytes of a packed tensor."""
    return torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[rows, in] times [out, in], plain or packed, to [rows, out]."""
    if _PRODUCT is None or (x.dtype != torch.float32 and not weight.is_mkldnn):
        return F.linear(x, weight, bias)
    return _PRODUCT(x, weight, bias, "none", [], "")
