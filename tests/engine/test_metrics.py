"""Metrics are the status in other words: equal to it at every instant, with no step needed in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import MappingProxyType

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from quiesce.engine import metrics
from quiesce.engine.api import AsyncEngine
from quiesce.engine.errors import EngineError
from quiesce.engine.outputs import Blocks, Status
from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.choices import POS, RandomWalk, Strategy
from quiesce.stateful.scenario import Client, World, prompt_of, run


def scrape(engine: metrics.HasStatus) -> dict[str, float]:
    """Sample name with its labels, as Prometheus would read it."""
    found = {}
    for family in text_string_to_metric_families(metrics.expose(engine)):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name.removeprefix("quiesce:") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def expected(status: Status) -> dict[str, float]:
    """The same figures, taken from the status by hand."""
    blocks = status.blocks

    def count(state: str) -> int:
        return status.requests.get(state, 0)

    return {
        "num_requests_running": count("running"),
        "num_requests_waiting": count("received") + count("admitted") + count("retracting"),
        "kv_cache_usage_perc": 1 - (blocks.free + blocks.cached) / blocks.total,
        "accepted_total": status.accepted,
        "admission_rejections_total": status.rejected,
        f"weights_version{{version={status.weights[0]}}}": 1,
        "engine_sleep_state{sleep_state=awake}": 1,
        "rejected_total": status.rejected,
        "steps_in_flight": status.steps_in_flight,
        "streams": status.streams,
        "blocks{owner=free}": blocks.free,
        "blocks{owner=cached}": blocks.cached,
        "blocks{owner=held}": blocks.held,
        "blocks{owner=fenced}": blocks.fenced,
        f"engine_state{{state={status.engine}}}": 1,
        f"admission{{admission={status.admission}}}": 1,
        **{
            f"requests{{state={state}}}": count(state)
            for state in ("received", "admitted", "running", "retracting", "draining")
        },
        **{f"request_success_total{{finished_reason={reason}}}": number for reason, number in status.finished.items()},
    }


def assert_exact(engine: AsyncEngine) -> dict[str, float]:
    found, wanted = scrape(engine), expected(engine.status())
    assert {name: found.get(name) for name in wanted} == pytest.approx(wanted)
    for family in ("engine_state", "engine_sleep_state"):
        assert sum(value for name, value in found.items() if name.startswith(family)) == 1
    reasons = sum(value for name, value in found.items() if name.startswith("num_requests_waiting_by_reason"))
    assert reasons == found["num_requests_waiting"]
    return found


@pytest.mark.parametrize("strategy", [None, RandomWalk(1), POS(2)], ids=["fifo", "random", "pos"])
def test_metrics_equal_the_status_after_every_pass_and_every_output(
    ledger_folder: Path, strategy: Strategy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    highest: dict[str, float] = {}

    def look(engine: AsyncEngine) -> None:
        for name, value in assert_exact(engine).items():
            highest[name] = max(highest.get(name, 0), value)

    async def body(world: World) -> None:
        engine, core = world.engine, world.engine._core
        step = core.step

        def watched_step() -> None:
            step()
            look(engine)

        monkeypatch.setattr(core, "step", watched_step)

        async def ask(number: int) -> None:
            client = Client(f"r{number}", prompt_of(number, 6), 50)
            params = SamplingParams(max_tokens=client.max_tokens, temperature=0, ignore_eos=True)
            try:
                async for output in engine.generate(client.prompt, params, request_id=client.name):
                    look(engine)
                    if number % 3 == 0 and not output.finished:
                        await engine.abort(client.name)
            except EngineError:
                look(engine)

        await asyncio.gather(*(ask(number) for number in range(12)))

    run(ledger_folder, body, strategy, num_kv_blocks=16, max_queue=6)
    seen = {name for name, value in highest.items() if value}
    assert {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "rejected_total", "steps_in_flight"} <= seen
    assert {
        "blocks{owner=held}",
        "blocks{owner=fenced}",
        "blocks{owner=cached}",
        "requests{state=retracting}",
        "streams",
    } <= seen
    assert {"request_success_total{finished_reason=length}", "request_success_total{finished_reason=abort}"} <= seen


def test_gauges_are_zero_when_nothing_is_asked_and_zero_again_afterwards(ledger_folder: Path) -> None:
    empty = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "streams", "steps_in_flight", "sessions")

    async def body(world: World) -> None:
        before = assert_exact(world.engine)
        assert [before[name] for name in empty] == [0] * len(empty)
        assert {value for name, value in before.items() if name.startswith("requests{")} == {0}
        await world.ask_all([Client(f"r{number}", prompt_of(number, 5), 6) for number in range(3)])
        await world.loop.wait_settled()
        after = assert_exact(world.engine)
        assert [after[name] for name in empty] == [0] * len(empty)
        assert after["accepted_total"] == after["request_success_total{finished_reason=length}"] == 3

    engine = run(ledger_folder, body)
    assert scrape(engine)["engine_state{state=stopped}"] == 1


def test_a_series_is_there_before_anything_has_happened_and_never_disappears(ledger_folder: Path) -> None:
    series: list[set[str]] = []

    async def body(world: World) -> None:
        series.append(set(scrape(world.engine)))
        await world.ask(Client("r", prompt_of(0, 5), 6))
        series.append(set(scrape(world.engine)))

    series.append(set(scrape(run(ledger_folder, body))))
    assert series[0] == series[1] == series[2]


def test_metrics_of_an_engine_stay_out_of_the_process_wide_registry(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        first, second = metrics.registry(world.engine), metrics.registry(world.engine)
        await world.ask(Client("r", prompt_of(0, 5), 6))
        for registry in (first, second):
            assert registry.get_sample_value("quiesce:accepted_total") == 1

    run(ledger_folder, body)
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("quiesce")]


@pytest.mark.parametrize(
    ("engine", "weights_memory", "weights_state", "said"),
    [
        ("running", "resident", "stable", "awake"),
        ("paused", "resident", "stable", "awake"),
        ("sleeping", "released", "stable", "weights_offloaded"),
        ("partially_awake", "resident", "stable", "weights_offloaded"),
        ("sleeping", "released", "undefined", "discard_all"),
        ("partially_awake", "undefined", "undefined", "discard_all"),
    ],
)
def test_what_sleep_has_taken_is_said_in_the_fields_words(
    engine: str, weights_memory: str, weights_state: str, said: str
) -> None:
    memory = MappingProxyType({"weights": weights_memory, "kv_cache": "resident"})
    none: MappingProxyType[str, str] = MappingProxyType({})
    counts: MappingProxyType[str, int] = MappingProxyType({"received": 1, "admitted": 2, "retracting": 4})
    blocks = Blocks(8, 8, 0, 0, 0)
    status = Status(engine, "reject", memory, (3, weights_state), none, None, counts, 0, 0, 0, blocks, 1, 7, 0)

    class Asleep:
        def status(self) -> Status:
            return status

    found = scrape(Asleep())
    assert {name for name, value in found.items() if name.startswith("engine_sleep_state") and value} == {
        f"engine_sleep_state{{sleep_state={said}}}"
    }
    assert found["weights_version{version=3}"] == 1
    waiting = {"capacity": 2, "deferred": 5} if engine == "running" else {"capacity": 0, "deferred": 7}
    assert {reason: found[f"num_requests_waiting_by_reason{{reason={reason}}}"] for reason in waiting} == waiting


def test_every_metric_says_what_it_is() -> None:
    for projection in metrics.METRICS:
        assert projection.documentation.endswith(".")
    names = [projection.name for projection in metrics.METRICS]
    assert len(set(names)) == len(names)
