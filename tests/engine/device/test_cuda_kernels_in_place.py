"""The Triton kernels themselves where the runner calls them, interpreted on the CPU: arguments, shapes, strides and order are right.

In a process of its own: whether Triton interprets is decided when a kernel is declared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_a_story_through_the_interpreted_kernels_has_the_tokens_of_the_cpu_device() -> None:
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engine.device.interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, check=True)
    found, expected = json.loads(done.stdout)
    assert found == expected
    assert len({token for step in found for token in step}) > 10
