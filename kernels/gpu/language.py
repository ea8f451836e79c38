"""Triton where it is installed; without it the operators can be imported, and their truths run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a machine that serves on the CPU
    triton = tl = None

__all__ = ["INSTALLED", "Missing", "ceil_div", "jit", "jit_for_any", "power_of_two", "require_contiguous", "tl"]

INSTALLED = triton is not None


class Missing:
    """Stands where a kernel would be; names what is missing when it is launched."""

    def __getitem__(self, grid: Any) -> Any:
        raise RuntimeError("this operator is a Triton kernel and triton is not installed: pip install triton (Linux)")


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or `Missing`."""
    return jit_for_any()(function)


def jit_for_any(*arguments: str) -> Callable[[Callable[..., Any]], Any]:
    """The same, and the arguments that are named may be any integer, or a pointer of any alignment: for a 1 or a multiple of 16
    Triton would compile again, perhaps in the middle of serving."""
    return lambda function: triton.jit(function, do_not_specialize=list(arguments)) if INSTALLED else Missing()


def power_of_two(n: int) -> int:
    """The least power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def require_contiguous(**tensors: Tensor | None) -> None:
    """Kernels compute addresses from shapes alone.

    Raises:
        ValueError: one of them is not contiguous.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; its strides are {tensor.stride()} for shape {tuple(tensor.shape)}")
