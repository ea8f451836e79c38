"""cuda-bindings as it really calls: its own package, over a `libcuda.so.1` of ours that says what it was called with.

Without a GPU this is what can be known: names, order and meaning of arguments, statuses, errors.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quiesce.engine.checkpoint import compute_dtype
from quiesce.engine.config import EngineConfig
from quiesce.engine.device import cuda_platform
from quiesce.engine.device.cuda_platform import require_cuda
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.model import make_device, open_model, with_device
from tests.statemachine.tools import require_tool

SOURCE = Path(__file__).with_name("fake_libcuda.c")
USE = """
from quiesce.engine.device.cuda_driver import CudaDriver
from quiesce.engine.device.cuda_memory import DriverError
driver = CudaDriver(0)
address, handle = driver.reserve(4 << 20), driver.create(2 << 20)
driver.map(address, 2 << 20, handle)
driver.allow_access(address, 2 << 20)
print(driver.granularity, driver.free_bytes())
driver.unmap(address, 2 << 20)
try:
    driver.create(16 << 20)
except DriverError as error:
    print(error)
driver.release(handle)
driver.free_range(address, 4 << 20)
driver.pin(4096, 8192)
driver.unpin(4096)
print(driver.free_bytes())
"""
CALLS = """\
cuInit 0
cuDeviceGet 0
cuDevicePrimaryCtxRetain 0
cuCtxSetCurrent 0x1234
cuMemGetAllocationGranularity type 1 location 1:0 option 1
cuMemAddressReserve 4194304 2097152 0 0
cuMemCreate 2097152 type 1 location 1:0 requested 0 flags 0
cuMemMap 7000000000 2097152 0 1 0
cuMemSetAccess 7000000000 2097152 location 1:0 flags 3 count 1
cuMemUnmap 7000000000 2097152
cuMemCreate 16777216 type 1 location 1:0 requested 0 flags 0
cuMemRelease 1
cuMemAddressFree 7000000000 4194304
cuMemHostRegister 0x1000 8192 1
cuMemHostUnregister 0x1000
"""


def test_the_driver_is_called_as_cuda_documents_it(tmp_path: Path) -> None:
    gcc = require_tool("gcc", "gcc")
    command = [gcc, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(tmp_path / "libcuda.so.1"), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    env = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.stderr == CALLS
    assert done.stdout.splitlines() == [
        f"{2 << 20} {6 << 20}",
        "cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY",
        str(8 << 20),
    ]


def test_torch_takes_what_the_platform_gives_it() -> None:
    """Names and arguments of what cannot be called without a GPU."""
    inspect.signature(torch.cuda.graph).bind(object(), pool=object(), stream=object(), capture_error_mode="thread_local")
    for name in ("graph_pool_handle", "empty_cache", "CUDAGraph", "Event"):
        assert callable(getattr(torch.cuda, name))
    for call in (torch.cuda.synchronize, torch.cuda.stream, torch.cuda.device, torch.cuda.get_device_properties):
        inspect.signature(call).bind(object())
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        assert getattr(torch.backends.cuda.matmul, name) in (True, False)


def test_what_cuda_lacks_here_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal() -> str:
        with pytest.raises(InvalidRequest, match=r"^device: 'cuda' needs ") as error:
            require_cuda(False)
        return str(error.value)

    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without" in refusal()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "nvidia-smi" in refusal()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_cuda(False)
    for module in ("triton", "cuda.bindings.driver"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert f"needs {module}" in refusal()
            assert "pip install" in refusal()


def test_batch_invariance_bounds_the_workspaces_before_cuda_is_used_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in cuda_platform.INVARIANT:
        monkeypatch.setenv(name, "something else")
    used = True
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    require_cuda(False)
    with pytest.raises(InvalidRequest, match="batch_invariant: CUDA has been used"):
        require_cuda(True)
    used = False
    require_cuda(True)
    assert {name: os.environ[name] for name in cuda_platform.INVARIANT} == cuda_platform.INVARIANT
    used = True
    require_cuda(True)  # they are set: nothing is missing


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.engine.model.GPU_SIGNS", ())
    monkeypatch.setattr(torch.version, "cuda", None)
    assert with_device(EngineConfig()).device == "cpu"
    config = EngineConfig(device="cuda", num_kv_blocks=200)
    assert with_device(config) is config
    with pytest.raises(InvalidRequest, match=r"^device: 'cuda' needs"):
        make_device(config, open_model(config))


def test_auto_is_cuda_where_torch_sees_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("quiesce.engine.model.GPU_SIGNS", (str(tmp_path),))
    for sees, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("quiesce.engine.device.choice.torch_sees_gpu", lambda sees=sees: sees)
        assert with_device(EngineConfig()).device == device


def test_on_a_gpu_auto_is_bfloat16_whatever_the_processor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.engine.checkpoint.processor_flags", frozenset)
    assert compute_dtype(EngineConfig(device="cuda")) == "bfloat16"
    assert compute_dtype(EngineConfig(device="cpu")) == "float32"
