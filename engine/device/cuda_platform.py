"""A real GPU as the CUDA device sees it: torch's streams, events and graphs, and the driver's memory."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from quiesce.engine.device.node_lock import alone
from quiesce.engine.device.platform import Event
from quiesce.engine.errors import InvalidRequest
from quiesce.kernels.gpu.operators import KERNELS

INVARIANT = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}
"""With so small a workspace cuBLAS cuts no sum into parts that depend on the number of rows. Read when its context is made."""
NEEDS = {"triton": "pip install triton", "cuda.bindings.driver": "pip install 'quiesce[cuda]'"}


def require_cuda(batch_invariant: bool) -> None:
    """Looks for all that the device needs, before anything is made.

    Raises:
        InvalidRequest: something is missing; says what, and what to do.
    """
    if torch.version.cuda is None:
        raise InvalidRequest(
            "device", f"'cuda' needs torch with CUDA; torch {torch.__version__} is built without (or use device='cpu')"
        )
    if not torch.cuda.is_available():
        raise InvalidRequest(
            "device", "'cuda' needs a GPU and its driver; torch sees none: see nvidia-smi (or use device='cpu')"
        )
    for module, remedy in NEEDS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InvalidRequest("device", f"'cuda' needs {module}, which cannot be imported ({error}): {remedy}") from error
    if batch_invariant:
        _bound_workspaces()


def _bound_workspaces() -> None:
    wanted = {name: value for name, value in INVARIANT.items() if os.environ.get(name) != value}
    if wanted and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        settings = " ".join(f"{name}={value}" for name, value in wanted.items())
        raise InvalidRequest(
            "batch_invariant", f"CUDA has been used in this process already, without {settings}: start it with these set"
        )
    os.environ.update(wanted)


class CudaPlatform:
    """`platform.Platform` on the first visible GPU. To be made in the thread that will work with it.

    Raises:
        InvalidRequest: something is missing.
        DriverError: the driver does not answer.
    """

    def __init__(self, batch_invariant: bool) -> None:
        require_cuda(batch_invariant)
        from quiesce.engine.device.cuda_driver import CudaDriver

        self.device = torch.device("cuda", 0)
        self.operators = KERNELS
        torch.empty(1, device=self.device)  # makes the primary context
        self._uuid = str(torch.cuda.get_device_properties(self.device).uuid)
        self.driver = CudaDriver(0)
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()
        if batch_invariant:
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        with torch.inference_mode(), torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            self.driver.enter()
            yield

    def alone(self, go_on: Callable[[], None]) -> AbstractContextManager[object]:
        return alone(self._uuid, go_on)

    def copy(self, out: Tensor, source: Tensor) -> None:
        out.copy_(source, non_blocking=True)

    def run(self, work: Callable[[], None]) -> None:
        work()  # what it launches goes to the current stream

    def event(self) -> Event:
        made: Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return made

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        work()  # compiles kernels and makes handles, which capture does not allow
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay
