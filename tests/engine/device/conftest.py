"""What the tests of the device share: checkpoints with their reference, and steps written in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from quiesce.engine.checkpoint import ModelInfo, Rope, read_model_info
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.device.cuda import CudaDevice
from quiesce.engine.device.cuda_runner import CudaRunner
from quiesce.engine.device.dry_platform import DryPlatform
from quiesce.engine.device.runner import Runner
from quiesce.engine.messages import (
    Adjustment,
    Checksum,
    Completion,
    Fetched,
    Loaded,
    Moved,
    StepInput,
    StepOutput,
    WeightsWritten,
)
from quiesce.engine.weight_source import check_pairs, open_source
from quiesce.stateful.minted import launch_effect, load_effect, map_effect, unmap_effect


@dataclass(frozen=True)
class Chunk:
    """One request's part in a step."""

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    row: int = 0
    sample: bool = True
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    key: int = 0


_Chunk: TypeAlias = Chunk


class Harness:
    """Builders, as one object: tests cannot import their conftest."""

    Chunk: TypeAlias = Chunk
    launch_effect = staticmethod(launch_effect)

    @staticmethod
    def config(**changes: Any) -> EngineConfig:
        sizes: dict[str, Any] = {
            "dtype": "float32",
            "block_size": 4,
            "max_num_seqs": 16,
            "num_threads": 1,
            "load_format": "dummy",
        }
        return EngineConfig(**(sizes | changes))

    @staticmethod
    def info(**changes: Any) -> ModelInfo:
        tiny = ModelInfo(
            folder="nowhere",
            architecture="Qwen3ForCausalLM",
            vocab_size=96,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            intermediate_size=48,
            rms_norm_eps=1e-6,
            rope=Rope(10_000.0),
            max_position_embeddings=512,
            tie_word_embeddings=True,
            attention_bias=False,
            output_bias=False,
            qk_norm=True,
            eos_token_ids=(2,),
            dtype="float32",
        )
        return replace(tiny, **changes)

    @staticmethod
    def step(*chunks: _Chunk, number: int = 0, adjustments: Sequence[Adjustment] = ()) -> StepInput:
        width = max(len(chunk.blocks) for chunk in chunks)
        tables = [[*chunk.blocks, *[-1] * (width - len(chunk.blocks))] for chunk in chunks]
        return StepInput(
            step=number,
            epoch=7,
            version=0,
            rows=np.array([chunk.row for chunk in chunks], np.int32),
            starts=np.array([chunk.start for chunk in chunks], np.int32),
            counts=np.array([len(chunk.tokens) for chunk in chunks], np.int32),
            token_ids=np.array([token for chunk in chunks for token in chunk.tokens], np.int64),
            block_tables=np.array(tables, np.int32),
            samples=np.array([chunk.sample for chunk in chunks], np.bool_),
            temperature=np.array([chunk.temperature for chunk in chunks], np.float32),
            top_k=np.array([chunk.top_k for chunk in chunks], np.int32),
            top_p=np.array([chunk.top_p for chunk in chunks], np.float32),
            min_p=np.array([chunk.min_p for chunk in chunks], np.float32),
            noise_keys=np.array([chunk.key for chunk in chunks], np.uint64),
            adjustments=tuple(adjustments),
        )

    @classmethod
    def generate(
        cls, runner: Runner | CudaRunner, prompt: Sequence[int], blocks: Sequence[int], count: int, chunk: int = 10_000
    ) -> list[int]:
        """Greedy tokens of one request by itself, its prompt in pieces of `chunk`."""
        tokens = list(prompt)
        done = 0
        while len(tokens) < len(prompt) + count:
            part = tokens[done : done + chunk]
            last = done + len(part) == len(tokens)
            landed = runner.run(cls.step(Chunk(part, done, blocks, sample=last)))
            assert landed.faults == ()
            done += len(part)
            if last:
                tokens.append(int(landed.token_ids[0]))
        return tokens[len(prompt) :]


class Bench:
    """A device with a wake that can be waited for. Steps wait at `gate` before they run, while it is closed."""

    def __init__(self, harness: type[Harness], num_blocks: int = 32, kind: str = "cpu", **changes: Any) -> None:
        self.info: ModelInfo = changes.pop("info", None) or harness.info()
        self.harness = harness
        self.gate = threading.Event()
        self.gate.set()
        self.began: list[int] = []
        self._woken = threading.Semaphore(0)
        self.device = self._make_device(kind, harness.config(**changes), num_blocks)
        self.device.bind(self._woken.release)
        self.waiting: list[Completion] = []

    def _make_device(self, kind: str, config: EngineConfig, num_blocks: int) -> CpuDevice | CudaDevice:
        stall = self._stall
        if kind == "cpu":
            return CpuDevice(config, self.info, num_blocks, before_step=stall, progress=False)
        self.platform = DryPlatform()
        return CudaDevice(config, self.info, num_blocks, lambda: self.platform, before_step=stall, progress=False)

    def _stall(self, step: int) -> None:
        self.began.append(step)
        assert self.gate.wait(60)

    def load(self) -> Bench:
        self.device.load()
        assert self.next() == Loaded()
        return self

    def launch(self, step: StepInput) -> None:
        self.device.launch(self.harness.launch_effect(step.step), step)

    def next(self) -> Completion:
        while not self.waiting:
            assert self._woken.acquire(timeout=60)
            self.waiting += self.device.poll()
        return self.waiting.pop(0)

    def landed(self) -> StepOutput:
        completion = self.next()
        assert isinstance(completion, StepOutput)
        return completion

    def run(self, step: StepInput) -> StepOutput:
        self.launch(step)
        return self.landed()

    @property
    def runner(self) -> Any:
        assert self.device._runner is not None
        return self.device._runner

    def unmap(self, tag: str, policy: str, blocks: Sequence[int] = ()) -> Moved:
        self.device.unmap(unmap_effect(tag), tag, policy, blocks)
        return self.moved()

    def map(self, tag: str, policy: str) -> Moved:
        self.device.map(map_effect(tag), tag, policy)
        return self.moved()

    def moved(self) -> Moved:
        completion = self.next()
        assert isinstance(completion, Moved)
        return completion

    def fetch(self, source: Iterator[tuple[str, Any]]) -> Fetched:
        self.device.fetch(7, source)
        completion = self.next()
        assert isinstance(completion, Fetched)
        assert completion.ticket == 7
        return completion

    def write(self, pairs: Sequence[tuple[str, Any]]) -> Exception | None:
        self.device.load_weights(load_effect(), pairs)
        completion = self.next()
        assert isinstance(completion, WeightsWritten)
        return completion.error

    def update(self, source: object) -> int:
        """The whole of a source, as the control plane takes it; returns the number of chunks."""
        pairs, _ = open_source(source, self.info)
        chunks = 0
        while True:
            fetched = self.fetch(pairs)
            assert fetched.error is None
            if not fetched.pairs:
                return chunks
            check_pairs(fetched.pairs, self.info)
            assert self.write(fetched.pairs) is None
            chunks += 1

    def checksum(self) -> str:
        self.device.checksum(9)
        completion = self.next()
        assert isinstance(completion, Checksum)
        assert (completion.ticket, completion.error) == (9, None)
        return completion.digest


@pytest.fixture
def device_kind() -> str:
    """`cpu`, or `cuda` on a dry platform. Modules whose tests are true of both say so."""
    return "cpu"


@pytest.fixture
def bench(harness: type[Harness], device_kind: str) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**changes: Any) -> Bench:
        made.append(Bench(harness, kind=device_kind, **changes))
        return made[-1]

    yield make
    for each in made:
        each.gate.set()
        each.device.close()


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def harness() -> type[Harness]:
    return Harness


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that reference.py fills: transformers runs once, in a process of its own."""
    folder = tmp_path_factory.mktemp("checkpoints")
    script = Path(__file__).with_name("reference.py")
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True, env=offline, timeout=100)
    return folder


@dataclass(frozen=True)
class Reference:
    """A checkpoint and what transformers computes on it."""

    folder: Path
    info: ModelInfo
    prompt: list[int]
    logits: torch.Tensor
    tokens: list[int]


def _reference(folder: Path) -> Reference:
    arrays = np.load(folder / "reference.npz")
    return Reference(
        folder,
        read_model_info(folder),
        arrays["prompt"].tolist(),
        torch.from_numpy(arrays["logits"]),
        arrays["tokens"].tolist(),
    )


@pytest.fixture(scope="session", params=["tied_grouped", "untied_wide_heads", "sharded_no_groups", "with_bias"])
def reference(request: pytest.FixtureRequest, checkpoints: Path) -> Reference:
    """Shapes of Qwen3: what the whole suite of the model is run on."""
    return _reference(checkpoints / request.param)


@pytest.fixture(scope="session")
def one_reference(checkpoints: Path) -> Reference:
    return _reference(checkpoints / "tied_grouped")


FAMILIES = [
    "llama", "llama_biases_linear", "llama_llama3_old", "llama_sharded_llama3",
    "qwen2_tied", "qwen2_yarn_old", "qwen2_linear_old",
    "qwen3_yarn", "qwen3_yarn_mscale",
]  # fmt: skip


@pytest.fixture(scope="session", params=FAMILIES)
def family_reference(request: pytest.FixtureRequest, checkpoints: Path) -> Reference:
    """Every family and every rotary embedding, in both notations."""
    return _reference(checkpoints / request.param)
