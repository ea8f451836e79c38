"""The CUDA device on a dry platform: steps that are on the device while others are launched, and memory that sleeps under the graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from quiesce.engine.device.cuda import CudaDevice
from quiesce.engine.device.dry_platform import DryPlatform
from quiesce.engine.device.platform import Event
from quiesce.engine.device.runner import Runner
from quiesce.engine.messages import FROM_DEVICE, Loaded, StepInput, StepOutput
from quiesce.stateful.minted import launch_effect, map_effect, unmap_effect

if TYPE_CHECKING:
    from tests.engine.device.conftest import Bench, Harness

MODES: list[dict[str, Any]] = [{}, {"enforce_eager": True}, {"batch_invariant": True}]
names = pytest.mark.parametrize("mode", MODES, ids=["graphs", "eager", "invariant"])


class LateEvent:
    """Reached when the test says so."""

    def __init__(self, gate: threading.Semaphore) -> None:
        self._gate = gate

    def record(self) -> None:
        """Work is done as it is given; only the event is late."""

    def synchronize(self) -> None:
        assert self._gate.acquire(timeout=60)


class LatePlatform(DryPlatform):
    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)

    def event(self) -> Event:
        return LateEvent(self.gate)


class Stage:
    """A device on a given platform."""

    def __init__(self, harness: type[Harness], platform: DryPlatform, **changes: Any) -> None:
        self.platform, self._woken = platform, threading.Semaphore(0)
        self.device = CudaDevice(harness.config(**changes), harness.info(), 32, lambda: platform, progress=False)
        self._found: list[Any] = []
        self.device.bind(self._woken.release)
        self.device.load()
        assert self.next() == Loaded()

    def next(self) -> Any:
        while not self._found:
            assert self._woken.acquire(timeout=60)
            self._found += self.device.poll()
        return self._found.pop(0)

    def launch(self, step: StepInput) -> None:
        self.device.launch(launch_effect(step.step), step)


@pytest.fixture
def late(harness: type[Harness]) -> Iterator[tuple[Stage, LatePlatform]]:
    platform = LatePlatform()
    stage = Stage(harness, platform)
    yield stage, platform
    platform.gate.release(10)
    stage.device.close()
    assert not stage.device._thread.is_alive()


def steps_of(harness: type[Harness], count: int) -> list[StepInput]:
    first = harness.step(harness.Chunk([5, 9, 2], 0, [0, 1, 2, 3]), number=0)
    return [first, *(harness.step(harness.Chunk([FROM_DEVICE], 2 + n, [0, 1, 2, 3]), number=n) for n in range(1, count))]


def test_the_next_step_is_launched_while_the_one_before_is_on_the_device(
    late: tuple[Stage, LatePlatform], harness: type[Harness]
) -> None:
    stage, platform = late
    steps = steps_of(harness, 3)
    stage.launch(steps[0])
    stage.launch(steps[1])
    runner = stage.device._runner
    assert runner is not None
    while runner.counts.total() < 2:
        assert stage.device.poll() == []
    platform.gate.release()
    assert stage.next().step == 0
    stage.launch(steps[2])
    while runner.counts.total() < 3:
        assert stage.device.poll() == []
    platform.gate.release(2)
    assert [stage.next().step, stage.next().step] == [1, 2]


def test_other_work_waits_for_the_steps_on_the_device(
    late: tuple[Stage, LatePlatform], harness: type[Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, platform = late
    waiter, waits = stage.device._waiter, threading.Event()
    assert waiter is not None
    drain = waiter.drain

    def drained() -> None:
        waits.set()
        drain()

    monkeypatch.setattr(waiter, "drain", drained)
    stage.launch(steps_of(harness, 1)[0])
    stage.device.unmap(unmap_effect("kv_cache"), "kv_cache", "discard", [])
    assert waits.wait(60)
    assert stage.device.poll() == []
    platform.gate.release()
    assert isinstance(stage.next(), StepOutput)
    assert stage.next().to == "released"


def test_a_step_that_cannot_be_launched_lands_after_the_one_before_it(
    late: tuple[Stage, LatePlatform], harness: type[Harness]
) -> None:
    stage, platform = late
    stage.launch(steps_of(harness, 1)[0])
    stage.launch(harness.step(harness.Chunk([5, 9, 2, 4, 8], 0, [0, -1]), number=1))
    assert stage.device.poll() == []
    platform.gate.release()
    assert stage.next().error is None
    assert isinstance(stage.next().error, ValueError)


class BrokenEvent:
    def record(self) -> None:
        """It breaks later."""

    def synchronize(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_an_error_of_the_device_is_the_steps_error(harness: type[Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    platform = DryPlatform()
    stage = Stage(harness, platform)
    monkeypatch.setattr(platform, "event", BrokenEvent)
    stage.launch(steps_of(harness, 1)[0])
    assert "illegal memory access" in str(stage.next().error)
    stage.device.close()


def test_a_broken_device_closes_and_gives_back_what_it_can(
    harness: type[Harness], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    platform = DryPlatform()
    stage = Stage(harness, platform)

    def broken() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(platform, "synchronize", broken)
    stage.device.close()
    assert not stage.device._thread.is_alive()
    driver = platform.driver
    assert (driver.handles, driver.mapped, driver.ranges, driver.pinned) == ({}, {}, {}, set())
    assert "unspecified launch failure" in caplog.text


@names
def test_graphs_outlive_sleep_and_go_on_with_the_same_tokens(harness: type[Harness], mode: dict[str, Any]) -> None:
    """Nothing is captured again: what they read and write is where it was."""
    platform = DryPlatform()
    stage = Stage(harness, platform, **mode)
    runner = stage.device._runner
    assert runner is not None
    graphs, found = dict(runner._graphs), []
    for number, step in enumerate(steps_of(harness, 8)):
        if number in (3, 5):
            used = platform.driver.total_bytes - platform.driver.free_bytes()
            for tag, blocks in (("weights", []), ("kv_cache", [0, 1, 2, 3])):
                stage.device.unmap(unmap_effect(tag), tag, "offload", blocks)
                assert stage.next().error is None
            assert platform.driver.free_bytes() == platform.driver.total_bytes
            for tag in ("weights", "kv_cache"):
                stage.device.map(map_effect(tag), tag, "offload")
                assert stage.next().error is None
            assert platform.driver.total_bytes - platform.driver.free_bytes() == used
        stage.launch(step)
        found.append(int(stage.next().token_ids[0]))
    cpu = Runner(harness.config(**mode), harness.info(), 32, progress=False)
    assert found == [int(cpu.run(step).token_ids[0]) for step in steps_of(harness, 8)]
    assert runner._graphs == graphs
    cpu.close()
    stage.device.close()
    driver = platform.driver
    assert (driver.handles, driver.mapped, driver.ranges, driver.pinned) == ({}, {}, {}, set())


def test_a_load_that_fails_gives_everything_back(harness: type[Harness]) -> None:
    platform = DryPlatform()
    platform.driver.total_bytes = 1 << 17  # the weights fit, the KV does not
    device = CudaDevice(harness.config(), harness.info(), 512, lambda: platform, progress=False)
    woken = threading.Semaphore(0)
    device.bind(woken.release)
    device.load()
    assert woken.acquire(timeout=60)
    (loaded,) = device.poll()
    assert isinstance(loaded, Loaded)
    assert "OUT_OF_MEMORY" in str(loaded.error)
    assert "bytes of kv_cache do not fit the " in str(loaded.error)
    device.close()
    driver = platform.driver
    assert (driver.handles, driver.mapped, driver.pinned) == ({}, {}, set())


@pytest.mark.parametrize("device_kind", ["cuda"])
def test_level_two_drops_the_copy_and_an_update_brings_the_weights_back(
    bench: Callable[..., Bench], harness: type[Harness]
) -> None:
    b = bench().load()
    digest, pinned = b.checksum(), len(b.platform.driver.pinned)
    assert b.unmap("weights", "discard").error is None
    assert len(b.platform.driver.pinned) == pinned - 1
    assert b.map("weights", "discard").error is None
    assert not b.runner.weights.arena.bytes.any()
    assert b.checksum() != digest
    fresh = bench().load()
    norms = ("q_norm.weight", "k_norm.weight")  # kept once for each head
    b.update({name: view[0] if name.endswith(norms) else view for name, view in fresh.runner.weights.destinations.items()})
    assert b.checksum() == digest
    for _ in range(2):  # the first sleep makes the copy, the second finds it
        assert b.unmap("weights", "offload").error is None
        assert b.map("weights", "offload").error is None
        assert b.checksum() == digest


@pytest.mark.parametrize("device_kind", ["cuda"])
def test_what_an_update_wrote_is_still_there_after_a_sleep(bench: Callable[..., Bench]) -> None:
    b = bench().load()
    new = torch.linspace(0.5, 1.5, 32)
    assert b.write([("model.norm.weight", new), ("model.layers.1.self_attn.q_norm.weight", torch.full((8,), 2.0))]) is None
    assert b.write([("model.norm.weight", torch.full((32,), float("nan")))]) is not None
    assert b.write([("model.norm.weight", new)]) is None
    digest = b.checksum()
    assert b.unmap("weights", "offload").error is None
    assert b.map("weights", "offload").error is None
    assert b.checksum() == digest
    assert torch.equal(b.runner.weights.norm, new)
