"""Real devices in the deterministic loop: their work is done when the loop chooses, on no thread of their own; faults come when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.api import AsyncEngine
from quiesce.engine.checkpoint import ModelInfo, read_model_info
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.device.worker import WorkerDevice
from quiesce.engine.messages import Completion, Fetched, Loaded, Moved, StepOutput, WeightsWritten
from quiesce.engine.model import Model
from quiesce.engine.tensor_files import expected_tensors
from quiesce.spec.vocabulary import Policy, Tag
from quiesce.stateful.driver import VOCAB_SIZE, LoopLink, ledger_config
from quiesce.stateful.loop import DeterministicLoop

WORK = "device work"
Work = Callable[[], Completion | None]


class _Offered:
    """The device's queue: each piece of work is something that may complete from outside."""

    def __init__(self, device: InLoop, loop: DeterministicLoop) -> None:
        self._device, self._loop = device, loop

    def put(self, work: Work | None) -> None:
        if work is None:
            self._device.end()
        else:
            self._loop.offer(WORK, lambda: self._device.do(work), channel="device")

    def get(self) -> None:
        """Nothing is left for a thread to do but to give the memory back."""


class _NoThread:
    def start(self) -> None:
        """The loop is all there is."""

    def join(self, timeout: float | None = None) -> None:
        """Nothing runs beside the loop."""

    def is_alive(self) -> bool:
        return False


class InLoop(WorkerDevice[Any]):
    """A device without its thread."""

    def live_in(self, loop: DeterministicLoop) -> None:
        """What it does from now on, it does when the loop chooses."""
        self._before_step = self._before
        self._work = _Offered(self, loop)  # type: ignore[assignment]
        self._thread = _NoThread()  # type: ignore[assignment]
        self.num_steps = 0
        self.fail_at: dict[int, Exception] = {}
        """Steps that fail, by number."""
        self.fault_at: set[int] = set()
        """Steps whose first request's own work fails."""
        self.fail_next: dict[str, Exception] = {}
        """Work that fails, once: `load`, `fetch`, `write`, `released weights`, `restored kv_cache` and their like."""
        self.told: dict[type[Completion], Completion] = {}
        """What was reported last, of each kind."""
        self.written: Callable[[Sequence[tuple[str, Any]]], None] = lambda pairs: None
        """Told of tensors that have been written."""
        self._ends_copy: Exception | None = None
        """What ends the copy that is on its way, before its second piece."""
        self._num_pieces = 0

    def _before(self, step: int) -> None:
        self.num_steps = step
        if step in self.fail_at:
            raise self.fail_at[step]

    def do(self, work: Work) -> None:
        import torch

        if not self._closing:
            with torch.inference_mode():
                completion = work()
            if completion is not None:
                self._report(completion)

    def end(self) -> None:
        self._serve()

    def repeat(self, kind: type[Completion]) -> bool:
        """Reports the last completion of a kind once more, as a device does that cannot be believed. Whether there was one."""
        if kind in self.told:
            super()._report(self.told[kind])
        return kind in self.told

    def _report(self, completion: Completion) -> None:
        if isinstance(completion, StepOutput) and completion.step in self.fault_at and len(completion.token_ids):
            token_ids = completion.token_ids.copy()
            token_ids[0] = -1
            completion = replace(completion, token_ids=token_ids, faults=((0, "the device was told to fault"),))
        self.told[type(completion)] = completion
        super()._report(completion)

    def _go_on(self) -> None:
        super()._go_on()
        self._num_pieces += 1
        if self._ends_copy is not None and self._num_pieces == 2:
            raise self._ends_copy

    @property
    def launched(self) -> int:
        return self._launched

    @property
    def places(self) -> Mapping[str, str]:
        return {tag.value: place.name for tag, place in self._places.items()}

    def _load(self) -> Loaded:
        failure = self.fail_next.pop("load", None)
        return super()._load() if failure is None else Loaded(failure)

    def _unmap(self, tag: Tag, policy: Policy, blocks: NDArray[np.int64]) -> Moved:
        failure = self.fail_next.pop(f"released {tag}", None)
        return self._moved(lambda: super(InLoop, self)._unmap(tag, policy, blocks), failure, tag, "released", policy)

    def _map(self, tag: Tag, policy: Policy) -> Moved:
        failure = self.fail_next.pop(f"restored {tag}", None)
        return self._moved(lambda: super(InLoop, self)._map(tag, policy), failure, tag, "restored", policy)

    def _moved(self, move: Callable[[], Moved], failure: Exception | None, tag: Tag, to: str, policy: Policy) -> Moved:
        """A copy fails midway, and is rolled back by the device itself; what copies nothing fails before it begins."""
        if failure is None:
            return move()
        if policy is Policy.discard or tag is Tag.weights:
            return Moved(tag, to, error=failure)
        self._ends_copy, self._num_pieces = failure, 0
        try:
            return move()
        finally:
            self._ends_copy = None

    def _fetch(self, ticket: int, source: Iterator[tuple[str, Any]]) -> Fetched:
        failure = self.fail_next.pop("fetch", None)
        return super()._fetch(ticket, source) if failure is None else Fetched(ticket, error=failure)

    def _write(self, pairs: Sequence[tuple[str, Any]]) -> WeightsWritten:
        failure = self.fail_next.pop("write", None)
        if failure is not None:
            return WeightsWritten(failure)
        done = super()._write(pairs)
        if done.error is None:
            self.written(pairs)
        return done


class LoopCpuDevice(InLoop, CpuDevice):
    """`CpuDevice` in the loop."""

    def __init__(self, config: EngineConfig, info: ModelInfo, num_blocks: int, loop: DeterministicLoop) -> None:
        super().__init__(config, info, num_blocks, progress=False)
        self.live_in(loop)


MakeDevice = Callable[[EngineConfig, ModelInfo, int, DeterministicLoop], InLoop]


def real_engine(
    folder: Path, loop: DeterministicLoop, settings: Mapping[str, Any], make: MakeDevice = LoopCpuDevice
) -> tuple[AsyncEngine, InLoop]:
    """A real engine over a real device and a small model, all of it in the loop.

    Args:
        folder: where the model's checkpoint is, or will be.
    """
    formats = {"dummy": "auto"}
    asked = {**settings, "load_format": formats.get(settings.get("load_format", "dummy"), "empty")}
    config = ledger_config(random_checkpoint(folder), dtype="float32", num_threads=1, batch_invariant=True, **asked)
    made: list[InLoop] = []

    def make_device(config: EngineConfig, model: Model) -> InLoop:
        made.append(make(config, model.info, model.num_blocks, loop))
        return made[0]

    return AsyncEngine(config, make_device=make_device, make_link=lambda core, call_in_loop: LoopLink(core, loop)), made[0]


def random_checkpoint(folder: Path) -> Path:
    """Two layers of random weights in `folder`/model, written once: no answer is like another, and a step takes a millisecond."""
    from safetensors.numpy import save_file

    place = folder / "model"
    if not (place / "model.safetensors").exists():
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(CONFIG))
        save_file(dict(random_tensors(place, 0)), place / "model.safetensors")
    return place


CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCAB_SIZE, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "eos_token_id": 2, "hidden_act": "silu", "torch_dtype": "float32",
}  # fmt: skip


@cache
def random_tensors(place: Path, which: int) -> Mapping[str, NDArray[np.float32]]:
    """Weights for the model at `place`; each `which` has others."""
    rng = np.random.default_rng(which)
    found: dict[str, NDArray[np.float32]] = {}
    for name, shape in expected_tensors(read_model_info(place)).items():
        spread = 1.0 if len(shape) < 2 else 1.5 / shape[-1] ** 0.5
        centre = 1.0 if len(shape) < 2 else 0.0
        found[name] = (centre + spread * rng.standard_normal(shape) * (0.1 if len(shape) < 2 else 1.0)).astype(np.float32)
    return found
