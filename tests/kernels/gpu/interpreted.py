"""Runs the kernels' checks under Triton's interpreter. A process of its own: the interpreter is chosen when a kernel is imported.

TRITON_INTERPRET=1 python -m tests.kernels.gpu.interpreted checks|mutants      one JSON line to a check, or to a mutant
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from quiesce.kernels.gpu.checks import every_check, report, reports
from quiesce.kernels.gpu.interpreter import exact_rows
from quiesce.kernels.gpu.operators import KERNELS, Operators
from tests.kernels.gpu.mutants import MUTANTS, Mutant

DTYPES = ("float32", "float16")  # the interpreter computes bfloat16 wrongly


def mutated(mutant: Mutant) -> Operators:
    """The operators with one of them loaded from a changed source."""
    name = f"quiesce.kernels.gpu.{mutant.module}"
    source = Path(str(importlib.util.find_spec(name).origin)).read_text(encoding="utf-8")  # type: ignore[union-attr]
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.module} has {source.count(mutant.old)} places that read {mutant.old!r}")
    path = Path(tempfile.mkdtemp()) / f"{mutant.module}.py"  # kept: the interpreter reads a kernel's source at its first launch
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return replace(KERNELS, **{mutant.operator: getattr(module, mutant.operator)})


def killers(mutant: Mutant) -> Iterator[str]:
    """The checks that notice it."""
    operators = mutated(mutant)
    dtype = "float16" if "attention" in mutant.operator else "float32"  # the tiles that serve
    for check in every_check():
        if check.operator == mutant.operator and report(check, operators, "cpu", dtype)["unsound"]:
            yield check.name


def main(what: str) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("TRITON_INTERPRET=1 must be set before this starts")
    torch.set_num_threads(1)
    exact_rows()
    warnings.simplefilter("ignore")  # numpy's, of 0 / 0 in rows that nobody reads
    if what == "checks":
        for line in reports(KERNELS, "cpu", DTYPES, large=False, seed=0):
            print(json.dumps(line), flush=True)
    else:
        for mutant in MUTANTS:
            print(json.dumps({"name": mutant.name, "killer": next(killers(mutant), None)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
