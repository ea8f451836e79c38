"""The real CPU device in the deterministic loop: its work is done when the loop chooses, on no thread of its own.

Tokens are held against the same request alone in an engine of its own. Updates bring the weights that are loaded already, so that tokens
stay what they are under every version; what changes is everything around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.api import AsyncEngine
from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.device.worker import WorkerDevice
from quiesce.engine.messages import Completion, Fetched, Moved, WeightsWritten
from quiesce.engine.model import Model
from quiesce.engine.outputs import CompletionOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder
from quiesce.spec.vocabulary import Policy, Tag
from quiesce.stateful.driver import LoopLink, ledger_config
from quiesce.stateful.fuzz.clients import Client
from quiesce.stateful.fuzz.rig import Rig
from quiesce.stateful.loop import DeterministicLoop

WORK = "device work"
LENGTHS = (2, 5, 8, 20, 40, 1_000)
"""What a request alone is asked for: few different lengths, so that most answers are known already."""
MODEL = checkpoint_folder("small")
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
        self.fail_next: dict[str, Exception] = {}
        """Work that fails, once: `fetch`, `write`, `released weights`, `restored kv_cache` and their like."""

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

    @property
    def launched(self) -> int:
        return self._launched

    @property
    def places(self) -> Mapping[str, str]:
        return {tag.value: place.name for tag, place in self._places.items()}

    def _unmap(self, tag: Tag, policy: Policy, blocks: NDArray[np.int64]) -> Moved:
        failure = self.fail_next.pop(f"released {tag}", None)
        return super()._unmap(tag, policy, blocks) if failure is None else Moved(tag, "released", error=failure)

    def _map(self, tag: Tag, policy: Policy) -> Moved:
        failure = self.fail_next.pop(f"restored {tag}", None)
        return super()._map(tag, policy) if failure is None else Moved(tag, "restored", error=failure)

    def _fetch(self, ticket: int, source: Iterator[tuple[str, Any]]) -> Fetched:
        failure = self.fail_next.pop("fetch", None)
        return super()._fetch(ticket, source) if failure is None else Fetched(ticket, error=failure)

    def _write(self, pairs: Sequence[tuple[str, Any]]) -> WeightsWritten:
        failure = self.fail_next.pop("write", None)
        return super()._write(pairs) if failure is None else WeightsWritten(failure)


class LoopCpuDevice(InLoop, CpuDevice):
    """`CpuDevice` in the loop."""

    def __init__(self, config: EngineConfig, info: ModelInfo, num_blocks: int, loop: DeterministicLoop) -> None:
        super().__init__(config, info, num_blocks, progress=False)
        self.live_in(loop)


MakeDevice = Callable[[EngineConfig, ModelInfo, int, DeterministicLoop], InLoop]


def real_engine(
    loop: DeterministicLoop, settings: Mapping[str, Any], make: MakeDevice = LoopCpuDevice
) -> tuple[AsyncEngine, InLoop]:
    """A real engine over a real device and the shipped model for tests, all of it in the loop."""
    formats = {"dummy": "auto"}
    asked = {**settings, "load_format": formats.get(settings.get("load_format", "dummy"), "empty")}
    config = ledger_config(MODEL, dtype="float32", num_threads=1, batch_invariant=True, **asked)
    made: list[InLoop] = []

    def make_device(config: EngineConfig, model: Model) -> InLoop:
        made.append(make(config, model.info, model.num_blocks, loop))
        return made[0]

    return AsyncEngine(config, make_device=make_device, make_link=lambda core, call_in_loop: LoopLink(core, loop)), made[0]


class CpuRig(Rig):
    """A real engine over the real CPU device."""

    def __init__(self, folder: Path, loop: DeterministicLoop, config: Mapping[str, Any]) -> None:
        super().__init__(folder, loop, config)
        self.truth = _check_against_alone

    def _make(self, folder: Path, settings: Mapping[str, Any]) -> AsyncEngine:
        engine, self._device = real_engine(self.loop, settings)
        return engine

    def stop_ids(self, prompt: list[int], place: int) -> list[int]:
        return []

    def _values(self) -> dict[str, Any]:
        return _tensors()

    def fail(self, what: str, tag: str, to: str, after: int) -> None:
        device = self._device
        if what in ("write", "fetch"):
            device.fail_next[what] = OSError(f"no {what}")
        elif what == "step":
            device.fail_at[device.num_steps + 1 + after] = OSError("no step")
            self.fatal.append("OSError")
        elif what == "move" and to != "zeroed":
            device.fail_next[f"{to} {tag}"] = OSError("no memory")
        elif what == "core":
            self._kill_core()
        elif what == "hang":
            self._hang()

    def _work(self, what: str) -> tuple[str, ...]:
        return (WORK,)

    def _heal_device(self) -> None:
        self._device.fail_next.clear()
        self._device.fail_at.clear()

    @property
    def places(self) -> Mapping[str, str]:
        return self._device.places

    @property
    def launched(self) -> int:
        return self._device.launched

    def close(self) -> None:
        self._device.close()

    @classmethod
    def close_all(cls) -> None:
        if _alone.cache_info().currsize:
            _alone().close()
            _alone.cache_clear()


@lru_cache(maxsize=1)
def _tensors() -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(MODEL.glob("*.safetensors")):
        found |= load_file(path)
    return found


class _Alone:
    """An engine in which one request at a time runs, undisturbed."""

    def __init__(self) -> None:
        self._loop = DeterministicLoop(timely=True)
        self._engine, self._device = real_engine(self._loop, {"step_timeout_s": 1e6})
        self._loop.run_until_complete(self._engine.start())

    def tokens(self, prompt: tuple[int, ...], params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        async def ask() -> tuple[tuple[int, ...], ...]:
            async with aclosing(self._engine.generate(list(prompt), params)) as outputs:
                async for output in outputs:
                    last = output
            return tuple(child.token_ids for child in last.outputs)

        return self._loop.run_until_complete(ask())

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.shutdown(timeout=0))
        self._loop.finish()


@lru_cache(maxsize=1)
def _alone() -> _Alone:
    return _Alone()


@lru_cache(maxsize=4096)
def _alone_tokens(
    prompt: tuple[int, ...], temperature: float, seed: int, num_children: int, count: int
) -> tuple[tuple[int, ...], ...]:
    params = SamplingParams(max_tokens=count, temperature=temperature, seed=seed, n=num_children, ignore_eos=True)
    return _alone().tokens(prompt, params)


def _check_against_alone(client: Client, child: CompletionOutput) -> None:
    if client.last is None or not child.token_ids:
        return
    temperature = client.params.temperature
    seed = (client.last.seed or 0) if temperature > 0 else 0
    count = next(length for length in LENGTHS if length >= len(child.token_ids))
    alone = _alone_tokens(client.last.prompt_token_ids, temperature, seed, client.params.n, count)[child.index]
    if child.token_ids != alone[: len(child.token_ids)]:
        raise AssertionError(
            f"{client.name}: {child.token_ids} is not how the request alone begins: {alone[: len(child.token_ids)]}"
        )
