"""For a process that runs the kernels under `TRITON_INTERPRET=1`, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np


def exact_rows() -> None:
    """Makes matrix products go row by row, in the whole process.

    A BLAS rounds a row by its place in the matrix, and a matrix unit does not: without this, the interpreter could not tell
    whether a kernel's results depend on how a prompt is cut.
    """

    def matmul(a: Any, b: Any, dtype: Any = None) -> Any:
        left, right = np.ascontiguousarray(a, dtype=dtype), np.asarray(b, dtype=dtype)
        return np.stack([row @ right for row in left])

    np.matmul = matmul  # type: ignore[assignment]
