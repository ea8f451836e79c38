"""What every block of `make gpu` stands on: the machine and its ceilings, the clock, and the engine under test."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from quiesce.engine.bench.result import Figure
from quiesce.engine.bench.roofline import Machine
from quiesce.engine.bench.shapes import TOY, write_shape

if TYPE_CHECKING:
    from quiesce.engine.api import AsyncEngine
    from quiesce.engine.config import EngineConfig
    from quiesce.engine.device.cuda import CudaDevice
    from quiesce.engine.device.dry_platform import HostDriver

Tell = Callable[[Figure], None]
Work = Callable[[int], object]
COPY: Final = "device memory, copied: read and written"
MATMUL: Final = "bfloat16 matrix product, 8192 cubed"
PINNED: Final = "pinned host memory to device"
ASSUMED: Final = {COPY: 4300.0, MATMUL: 790.0, PINNED: 55.0}
"""GB/s, TFLOP/s and GB/s of an H200, where they were not measured."""
PACKAGES: Final = {"cuda.bindings.driver": "cuda-bindings"}
"""Modules that pip calls otherwise."""
ROTATED: Final = 256 << 20
"""Bytes after which nothing is in the L2 cache any more."""


@dataclass
class Ground:
    """Where a block runs, and how long it may."""

    dry: bool
    limit_s: float
    ceilings: dict[str, float] = field(default_factory=lambda: dict(ASSUMED))
    """What the machine reaches, by name of the figure."""
    began_s: float = field(default_factory=time.monotonic)
    devices: list[CudaDevice] = field(default_factory=list)
    """Those of the engines made here, last made last."""
    folders: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list)
    """Of their models."""

    @property
    def left_s(self) -> float:
        return self.limit_s - (time.monotonic() - self.began_s)

    def close(self) -> None:
        """Removes what was written."""
        for folder in self.folders:
            folder.cleanup()

    @property
    def machine(self) -> Machine:
        return Machine(self.ceilings[COPY] * 1e9, self.ceilings[MATMUL] * 1e12)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry else torch.bfloat16

    def size(self, real: int, toy: int) -> int:
        return toy if self.dry else real

    def out_of_time(self, tell: Tell, row: str, what: str, needed_s: float) -> bool:
        """Whether too little time is left; says so."""
        if self.dry or self.left_s >= needed_s:
            return False
        tell(Figure(row, what, "", skipped=f"no time left: {self.left_s:.0f} s of {self.limit_s:.0f} s"))
        return True

    # ---- engines ------------------------------------------------------------------------------------------------------------

    def config(self, shape: dict[str, Any], **changes: Any) -> EngineConfig:
        """Of an engine over random weights of this shape; the toy instead in a dry run."""
        from quiesce.engine.config import EngineConfig

        self.folders.append(tempfile.TemporaryDirectory(prefix="quiesce-gpu-"))
        folder = write_shape(Path(self.folders[-1].name), TOY if self.dry else shape)
        usual = {"model": str(folder), "load_format": "dummy", "tokenizer_required": False, "block_size": 32, "max_queue": 4096}
        if self.dry:
            toy = {"device": "cpu", "dtype": "float32", "num_threads": 1, "max_model_len": 128, "num_kv_blocks": 64, "max_num_seqs": 4, "max_num_batched_tokens": 64}  # fmt: skip
            return EngineConfig(**{**usual, **changes, **toy})
        return EngineConfig(**{**usual, "device": "cuda", "dtype": "bfloat16", **changes})

    def engine(self, config: EngineConfig, **options: Any) -> AsyncEngine:
        """An engine on the GPU, or in a dry run on the CUDA device's code over the host's memory."""
        from quiesce.engine.api import AsyncEngine
        from quiesce.engine.device.cuda import CudaDevice
        from quiesce.engine.model import Model, make_device

        def made(given: EngineConfig, model: Model) -> Any:
            if self.dry:
                from quiesce.engine.device.dry_platform import DryPlatform

                device: Any = CudaDevice(
                    given, model.info, model.num_blocks, lambda: DryPlatform(self.host_driver), progress=False
                )
            else:
                device = make_device(given, model)
            self.devices.append(device)
            return device

        return AsyncEngine(config, make_device=made, **options)

    @property
    def host_driver(self) -> HostDriver:
        """The dry run's device memory."""
        from quiesce.engine.device.dry_platform import HostDriver

        if not hasattr(self, "_host_driver"):
            self._host_driver = HostDriver(1 << 30)
        return self._host_driver

    def free_bytes(self) -> int:
        """Of the device's memory, as its driver counts it."""
        return self.host_driver.free_bytes() if self.dry else torch.cuda.mem_get_info()[0]

    # ---- the clock ----------------------------------------------------------------------------------------------------------

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, work: Work, calls: int = 10, samples: int = 5) -> tuple[float, ...]:
        """Seconds of one call, from runs of `calls` one after the other. `work` is told the number of the call."""
        if self.dry:
            began_s = time.perf_counter()
            work(0)
            return (time.perf_counter() - began_s,)
        work(0)
        return self.timed(lambda: [work(number) for number in range(calls)], calls, samples)

    def captured_seconds(self, work: Work, calls: int = 10, samples: int = 5) -> tuple[float, ...]:
        """The same from a CUDA graph of `calls`, so that the host's time does not count."""
        if self.dry:
            return self.seconds(work)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            work(0)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for number in range(calls):
                    work(number)
            return self.timed(graph.replay, calls, samples)

    def timed(self, run: Callable[[], object], calls: int, samples: int) -> tuple[float, ...]:
        """Seconds of a call by the device's own clock; the first run warms up."""
        found = []
        for number in range(samples + 1):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            run()
            end.record()
            end.synchronize()
            if number:
                found.append(begin.elapsed_time(end) / 1e3 / calls)
        return tuple(found)


def missing(*names: str) -> str:
    """Which of these modules this machine lacks, as a sentence; empty if none."""
    lacking = [PACKAGES.get(name, name) for name in names if not _is_there(name)]
    return f"needs {', '.join(lacking)}, which {sys.executable} lacks (pip install {' '.join(lacking)})" if lacking else ""


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False


def as_line(figure: Figure) -> dict[str, Any]:
    """All of a figure, its samples too."""
    return asdict(figure)


def from_line(line: dict[str, Any]) -> Figure:
    return Figure(**{**line, "samples": tuple(line["samples"])})
