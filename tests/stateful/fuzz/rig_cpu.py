"""The real CPU device as something to play on. Tokens are held against the same request alone, in an engine with the same weights.

Updates bring other weights, whole or in part; what is loaded under each version is followed tensor by tensor. A request that lives
through an update is held against the request alone under each version in turn. Only where its KV was kept across an update its further
tokens belong to no undisturbed request: there the spans say so, and what went before is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from quiesce.engine.api import AsyncEngine
from quiesce.engine.messages import Moved, StepOutput
from quiesce.engine.outputs import CompletionOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.fuzz.clients import Client
from quiesce.stateful.fuzz.loop_device import WORK, InLoop, random_tensors, real_engine
from quiesce.stateful.fuzz.rig import Rig
from quiesce.stateful.loop import DeterministicLoop

LENGTHS = (2, 5, 8, 20, 40, 1_000)
"""What a request alone is asked for: few different lengths, so that most answers are known already."""
T = TypeVar("T")
Changed = frozenset[str]
"""Which tensors are the second set's; the others are the first's."""


class CpuRig(Rig):
    """A real engine over the real CPU device."""

    def __init__(self, folder: Path, loop: DeterministicLoop, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self.device_in_loop: InLoop
        super().__init__(folder, loop, config)
        self.truth = self._check_against_alone
        self._sets = tuple(random_tensors(folder / "model", which) for which in (0, 1))
        self._num_brought = 0
        self._changed: dict[str, bool] = {}
        """Tensors that were written since the load -> whether by the second set."""
        self._loaded: dict[int | str, Changed] = {0: frozenset()}
        """Version -> what its weights are."""
        self._kept: set[int | str] = set()
        """Versions under which KV of the one before was kept."""
        self.device_in_loop.written = self._written
        self._watch_versions()

    def _make(self, folder: Path, settings: Mapping[str, Any]) -> AsyncEngine:
        engine, self.device_in_loop = real_engine(folder, self.loop, settings)
        return engine

    # ---- weights --------------------------------------------------------------------------------------------------------------

    def _values(self) -> dict[str, Any]:
        """The second set, the first, the second again."""
        import torch

        self._num_brought += 1
        return {name: torch.from_numpy(value) for name, value in self._sets[self._num_brought % 2].items()}

    def _written(self, pairs: Sequence[tuple[str, Any]]) -> None:
        for name, value in pairs:
            self._changed[name] = bool((value.flatten()[:4].numpy() == self._sets[1][name].ravel()[:4]).all())

    def _watch_versions(self) -> None:
        core = self.engine._core
        new_version, commit_keep = core.operations.update.new_version, core.lifecycle.commit_keep
        keeps: list[bool] = []

        def noted() -> None:
            new_version()
            version = core.world.weights.version
            self._loaded[version] = frozenset(name for name, changed in self._changed.items() if changed)
            if keeps:
                self._kept.add(version)
                keeps.clear()

        def kept() -> None:
            keeps.append(True)
            commit_keep()

        core.operations.update.new_version = noted  # type: ignore[method-assign]
        core.lifecycle.commit_keep = kept  # type: ignore[method-assign]

    # ---- truth ----------------------------------------------------------------------------------------------------------------

    def stop_ids(self, prompt: list[int], place: int) -> list[int]:
        tokens = _aside(lambda: alone(self._folder, frozenset()).tokens(tuple(prompt), 0.0, 0, 1, place + 1))
        return list(tokens[0][-1:])

    def _check_against_alone(self, client: Client, child: CompletionOutput) -> None:
        if client.last is None:
            return
        temperature = client.params.temperature
        seed = (client.last.seed or 0) if temperature > 0 else 0
        for version, start, end in child.weight_versions:
            if start > 0 and version in self._kept:
                return
            context = (*client.last.prompt_token_ids, *child.token_ids[:start])
            engine = alone(self._folder, self._loaded[version])
            expected = engine.tokens(context, temperature, seed, client.params.n, end - start)[child.index][: end - start]
            if child.token_ids[start:end] != expected:
                raise AssertionError(
                    f"{client.name}: {child.token_ids[start:end]} from token {start} on under version {version}; alone it is {expected}"
                )

    # ---- faults ---------------------------------------------------------------------------------------------------------------

    def fail(self, what: str, tag: str, to: str, after: int) -> None:
        device = self.device_in_loop
        if what in ("write", "fetch", "load"):
            device.fail_next[what] = OSError(f"no {what}")
            if what == "load":
                self.fatal.append("OSError")
        elif what == "step":
            device.fail_at[device.num_steps + 1 + after] = OSError("no step")
            self.fatal.append("OSError")
        elif what == "row":
            device.fault_at.add(device.num_steps + 1 + after)
            self.faulty = True
        elif what == "move" and to != "zeroed":
            device.fail_next[f"{to} {tag}"] = OSError("no memory")
        elif what == "core":
            self._kill_core()
        elif what == "hang":
            self._hang()
        elif what == "echo step":
            if device.repeat(StepOutput):
                self.fatal.append("RuntimeError")  # the device cannot be believed
        elif what == "echo move":
            device.repeat(Moved)

    def _work(self, what: str) -> tuple[str, ...]:
        return (WORK,)

    def _heal_device(self) -> None:
        for asked in (self.device_in_loop.fail_next, self.device_in_loop.fail_at, self.device_in_loop.fault_at):
            asked.clear()

    @property
    def places(self) -> Mapping[str, str]:
        return self.device_in_loop.places

    @property
    def launched(self) -> int:
        return self.device_in_loop.launched

    def close(self) -> None:
        self.device_in_loop.close()

    @classmethod
    def close_all(cls) -> None:
        for engine in _engines.values():
            engine.close()
        _engines.clear()


class Alone:
    """An engine in which one request at a time runs, undisturbed."""

    def __init__(self, folder: Path, changed: Changed) -> None:
        self._loop = DeterministicLoop(timely=True)
        self._engine, _ = real_engine(folder, self._loop, {"step_timeout_s": 1e6})
        self._loop.run_until_complete(self._engine.start())
        if changed:
            weights = {
                name: random_tensors(folder / "model", int(name in changed))[name]
                for name in random_tensors(folder / "model", 0)
            }
            self._loop.run_until_complete(self._engine.update_weights(weights))
        self.tokens = lru_cache(maxsize=4096)(self._tokens)

    def _tokens(
        self, prompt: tuple[int, ...], temperature: float, seed: int, n: int, count: int
    ) -> tuple[tuple[int, ...], ...]:
        """At least `count` tokens of each child, where there is room for them."""
        length = next(length for length in LENGTHS if length >= count)
        params = SamplingParams(max_tokens=length, temperature=temperature, seed=seed, n=n, ignore_eos=True)

        async def ask() -> tuple[tuple[int, ...], ...]:
            async with aclosing(self._engine.generate(list(prompt), params)) as outputs:
                async for output in outputs:
                    last = output
            return tuple(child.token_ids for child in last.outputs)

        return self._loop.run_until_complete(ask())

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.shutdown(timeout=0))
        self._loop.finish()


_engines: dict[tuple[Path, Changed], Alone] = {}


def alone(folder: Path, changed: Changed) -> Alone:
    """The engine with these weights, one for the process."""
    key = (folder, changed)
    if key not in _engines:
        _engines[key] = Alone(folder, changed)
    return _engines[key]


def _aside(ask: Callable[[], T]) -> T:
    """Runs what needs a loop of its own while another one runs: on a thread, which is waited for."""
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(ask).result()
