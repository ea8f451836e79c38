"""Which device computes."""

from __future__ import annotations

import functools

import torch

from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.config import EngineConfig
from quiesce.engine.messages import Device


def torch_sees_gpu() -> bool:
    """Whether there is a GPU that torch can use."""
    return torch.version.cuda is not None and torch.cuda.is_available()


def chosen_device(config: EngineConfig, info: ModelInfo, num_blocks: int) -> Device:
    """The device that the configuration names.

    Raises:
        InvalidRequest: it cannot be; says what is missing.
    """
    if config.device == "cuda":
        from quiesce.engine.device.cuda import CudaDevice
        from quiesce.engine.device.cuda_platform import CudaPlatform, require_cuda

        require_cuda(config.batch_invariant)
        return CudaDevice(config, info, num_blocks, functools.partial(CudaPlatform, config.batch_invariant))
    from quiesce.engine.device.cpu import CpuDevice

    return CpuDevice(config, info, num_blocks)
