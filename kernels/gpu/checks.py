"""All checks of the operators. As a command, on the GPU that torch sees, with random numbers that nobody has seen:

python -m quiesce.kernels.gpu.checks [seed]      one JSON line to a check and type; ends with 1 if one of them is unsound
"""

from __future__ import annotations

import json
import secrets
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from quiesce.kernels.gpu import check_attention, check_elementwise, check_sampler
from quiesce.kernels.gpu.check import Check
from quiesce.kernels.gpu.operators import KERNELS, Operators

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def every_check(large: bool = False) -> list[Check]:
    """Small ones at odd sizes, and with `large` those of models' shapes."""
    made = [*check_elementwise.checks(), *check_attention.checks(), *check_sampler.checks()]
    if large:
        made += [*check_elementwise.large_checks(), *check_attention.large_checks(), *check_sampler.large_checks()]
    return made


def report(check: Check, operators: Operators, device: str, dtype: str, seed: int = 0) -> dict[str, Any]:
    """The name of a check and what is unsound; an exception is unsound. `worst`: the largest error as a share of its limit."""
    try:
        found = check(operators, device, DTYPES[dtype], seed)
    except Exception:  # noqa: BLE001 - whatever a kernel raises is the result
        return {"name": f"{check.operator} {check.name} {dtype}", "worst": None, "unsound": [traceback.format_exc()]}
    unsound = [f"{one.what}: {one.error:.3g} > {one.limit:g}" for one in found if not one.sound]
    worst = max((one.error / one.limit for one in found if one.limit), default=0.0)
    return {"name": f"{check.operator} {check.name} {dtype}", "worst": round(worst, 4), "unsound": unsound}


def reports(operators: Operators, device: str, dtypes: Sequence[str], large: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Every check in every type."""
    for check in every_check(large):
        for dtype in dtypes:
            yield report(check, operators, device, dtype, seed)


def main(arguments: Sequence[str]) -> int:
    if not torch.cuda.is_available():
        print("torch sees no CUDA device")
        return 2
    seed = int(arguments[0]) if arguments else secrets.randbits(31)
    unsound = 0
    for line in reports(KERNELS, "cuda", tuple(DTYPES), True, seed):
        unsound += bool(line["unsound"])
        print(json.dumps(line | {"seed": seed}), flush=True)
    return 1 if unsound else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
