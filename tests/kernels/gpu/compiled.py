"""Compiles kernels for sm_90 and asks the assembler what they take. A process of its own: no GPU and no interpreter in it.

python -m tests.kernels.gpu.compiled [part of a name ...]      one JSON line to a specialisation
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernels.gpu.specialisations import Specialisation, every

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


def compiled(spec: Specialisation) -> Any:
    """Triton's result; `asm["ptx"]`, `metadata.shared`."""
    names = spec.kernel.arg_names
    signature = {name: spec.arguments.get(name, "constexpr") for name in names}
    aligned = [
        place
        for place, parameter in enumerate(spec.kernel.params)
        if signature[parameter.name].startswith("*") and not parameter.do_not_specialize
    ]
    attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(spec.kernel, signature, spec.constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(spec.options))


def arithmetic_of_loops(ptx: str) -> list[dict[str, int]]:
    """How often each floating-point instruction stands in each stretch of code that multiplies matrices."""
    found = [
        Counter(re.findall(r"\b(?:fma|mul|add|sub|max|ex2|wgmma|mma)\.[a-z0-9_.]+", part))
        for part in re.split(r"\n\$L__BB\w+:", ptx)
    ]
    return [dict(sorted(count.items())) for count in found if any("mma_async" in name or "mma.sync" in name for name in count)]


def widest_access(ptx: str, kind: str) -> int:
    """Bytes that one instruction `ld` or `st` moves at most between a thread and device memory."""
    found = re.findall(rf"\b{kind}\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfsu](\d+) ", ptx)
    return max((int(count or 1) * int(bits) // 8 for count, bits in found), default=0)


def measured(spec: Specialisation) -> dict[str, Any]:
    """Registers to a thread, spilled bytes, stack and shared bytes to a program, and what is in the PTX: matrix instructions, how
    many asynchronous copies may be under way when one is waited for, the arithmetic of the loops, and how wide memory is read and written."""
    began = time.perf_counter()
    result = compiled(spec)
    ptx = result.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(PTXAS), "-v", "--gpu-name=sm_90a", str(source), "-o", str(source.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    count = {word: int(found) for found, word in re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", said)}
    registers = re.search(r"Used (\d+) registers", said)
    if registers is None:
        raise RuntimeError(f"the assembler does not say how many registers {spec.name} takes: {said}")
    return {
        "name": spec.name,
        "registers": int(registers[1]),
        "spilled": count["spill stores"] + count["spill loads"],
        "stack": count["stack frame"],
        "shared": result.metadata.shared,
        "threads": 32 * spec.options["num_warps"],
        "matrix": sorted(set(re.findall(r"wgmma\.mma_async|mma\.sync", ptx))),
        "waits": [int(left) for left in re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx)],
        "loops": arithmetic_of_loops(ptx),
        "widest": [widest_access(ptx, "ld"), widest_access(ptx, "st")],
        "seconds": round(time.perf_counter() - began, 2),
    }


if __name__ == "__main__":
    for asked in every():
        if len(sys.argv) == 1 or any(part in asked.name for part in sys.argv[1:]):
            print(json.dumps(measured(asked)), flush=True)
