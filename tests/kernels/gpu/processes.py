"""Interpreter and compiler each want a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def lines_of(module: str, *arguments: str, interpret: bool = False) -> dict[str, dict[str, Any]]:
    """What `python -m tests.kernels.gpu.<module>` reports, by name. Compiled kernels are kept under build/."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton"), "OMP_NUM_THREADS": "1"}
    environment["TRITON_INTERPRET"] = "1" if interpret else "0"
    command = [sys.executable, "-m", f"tests.kernels.gpu.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
