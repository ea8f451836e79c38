"""Run by test_cuda_kernels_in_place.py in a process of its own: the CUDA runner with the kernels themselves, interpreted by Triton."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import Any

import numpy as np
import torch

from quiesce.engine.device.cuda_runner import CudaRunner
from quiesce.engine.device.dry_platform import DryPlatform
from quiesce.engine.device.runner import Runner
from quiesce.kernels.gpu.operators import KERNELS
from tests.engine.device.conftest import Harness
from tests.engine.device.test_cuda_runner import spread, story


def tokens_of(runner: Any) -> list[list[int]]:
    """Of every step of a story, and its faults."""
    found = []
    for step in islice(story(Harness, np.random.default_rng(3)), 7):  # each kind once: interpreting is slow
        landed = runner.run(step)
        found.append([*landed.token_ids.tolist(), *(index for index, _ in landed.faults)])
    return found


def main() -> None:
    info = Harness.info(num_layers=1, head_dim=16)
    config = Harness.config(enforce_eager=True)  # every pass once
    torch.set_num_threads(1)
    with torch.inference_mode():
        cuda = CudaRunner(config, info, 32, DryPlatform(operators=KERNELS), lambda: None, progress=False)
        cpu = Runner(config, info, 32, progress=False)
        spread(cuda)
        spread(cpu)
        json.dump([tokens_of(cuda), tokens_of(cpu)], sys.stdout)


if __name__ == "__main__":
    main()
