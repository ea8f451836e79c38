"""What is counted is what happened: held against the answers that clients were sent, pass by pass, with a clock that moves."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quiesce.engine import metrics
from quiesce.engine.answers import Ack, Answers, Terminal, Tokens
from quiesce.engine.cohort import Cohort
from quiesce.engine.histogram import Counts, Histogram
from quiesce.engine.measures import HISTOGRAMS, Measured, Measures
from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.choices import RandomWalk
from quiesce.stateful.scenario import Client, World, prompt_of, run

Sequence = tuple[int, int]


def counts_of(bounds: tuple[float, ...], values: list[float]) -> Counts:
    """As slowly as can be."""
    edges = (-math.inf, *bounds, math.inf)
    by_bound = (sum(low < value <= high for value in values) for low, high in itertools.pairwise(edges))
    return Counts(bounds, tuple(by_bound), sum(values))


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    bounds = (1.0, 2.0, 5.0)
    values = [0.0, 1.0, 1.5, 2.0, 2.0001, 5.0, 6.0, 1e9]
    one_by_one, at_once = Histogram(bounds), Histogram(bounds)
    for value in values:
        one_by_one.add(value)
    at_once.add_each(np.array(values[:3]))
    before = at_once.counts()
    at_once.add_each(np.array(values[3:]))
    assert one_by_one.counts() == at_once.counts() == counts_of(bounds, values)
    assert before == counts_of(bounds, values[:3]), "what was given out does not change"
    assert at_once.counts() is at_once.counts()
    assert before.cumulative == [("1.0", 2.0), ("2.0", 3.0), ("5.0", 3.0), ("+Inf", 3.0)]
    many = Histogram(bounds)
    many.add(1.5, 3)
    many.add_each(np.empty(0))
    assert many.counts() == counts_of(bounds, [1.5] * 3)


class Books:
    """Every figure once more, from the answers alone."""

    def __init__(self, world: World) -> None:
        self.engine, self.core = world.engine, world.engine._core
        self.now = 0.0
        self.num_checked = 0
        self.arrived: dict[int, float] = {}
        self.prompts: dict[int, int] = {}
        self.times: dict[Sequence, list[float]] = {}
        self.values: dict[str, list[float]] = {name: [] for name in HISTOGRAMS}
        self.prompt_tokens = 0
        step, deliver = self.core.step, self.core.deliver
        rng = np.random.default_rng(4)

        def step_later() -> None:
            self.now += float(rng.choice([0.001, 0.013, 0.4, 7.0]))
            step()

        def checked(answers: Answers) -> None:
            self.enter(answers)
            self.check(answers.status.measured)
            deliver(answers)

        self.core.clock, self.core.step, self.core.deliver = lambda: self.now, step_later, checked  # type: ignore[method-assign]

    def enter(self, answers: Answers) -> None:
        for answer in answers.answers:
            match answer:
                case Ack():
                    self.arrived[answer.stream] = self.now
                    self.prompts[answer.stream] = len(self.engine._front.by_key[answer.stream].prompt_token_ids)
                case Tokens():
                    for sequence in zip(answer.streams.tolist(), answer.children.tolist(), strict=True):
                        self.token(sequence)
                case Terminal():
                    self.end((answer.stream, answer.child))

    def token(self, sequence: Sequence) -> None:
        times = self.times.setdefault(sequence, [])
        if times:
            self.values["inter_token_latency_seconds"].append(self.now - times[-1])
        else:
            self.values["time_to_first_token_seconds"].append(self.now - self.arrived[sequence[0]])
            self.prompt_tokens += self.prompts[sequence[0]]
        times.append(self.now)

    def end(self, sequence: Sequence) -> None:
        times, values = self.times.get(sequence, []), self.values
        values["e2e_request_latency_seconds"].append(self.now - self.arrived[sequence[0]])
        values["request_prompt_tokens"].append(self.prompts[sequence[0]])
        values["request_generation_tokens"].append(len(times))
        if times:
            values["request_decode_time_seconds"].append(times[-1] - times[0])
        if len(times) > 1:
            values["request_time_per_output_token_seconds"].append((times[-1] - times[0]) / (len(times) - 1))

    def check(self, measured: Measured) -> None:
        self.num_checked += 1
        assert measured.generation_tokens == sum(map(len, self.times.values()))
        assert measured.prompt_tokens == self.prompt_tokens
        for name, values in self.values.items():
            if not values:
                continue
            found, wanted = measured.histograms[name], counts_of(HISTOGRAMS[name][0], values)
            assert found.by_bound == wanted.by_bound, name
            assert found.total == pytest.approx(wanted.total), name


@pytest.mark.parametrize("cohorts", [True, False], ids=["gathered once", "gathered each time"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("changes", [{}, {"overlap": False}], ids=["two steps in flight", "one step in flight"])
def test_every_figure_agrees_with_the_answers_after_every_pass(
    ledger_folder: Path, seed: int, changes: dict[str, Any], cohorts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cohorts:
        monkeypatch.setattr(Cohort, "fits", staticmethod(lambda *_: False))

    async def body(world: World) -> None:
        engine, core, books = world.engine, world.engine._core, Books(world)
        num_landed = 0
        landed = Cohort.landed

        def noted(self: Cohort, batch: Any) -> None:
            nonlocal num_landed
            num_landed += 1
            landed(self, batch)

        monkeypatch.setattr(Cohort, "landed", noted)

        async def ask(number: int) -> None:
            params = SamplingParams(max_tokens=25 + number, n=1 + (number % 4 == 3), ignore_eos=True)
            async for output in engine.generate(prompt_of(number, 8), params, request_id=f"r{number}"):
                if number % 5 == 4 and output.token_ids:
                    await engine.abort(f"r{number}")

        await asyncio.gather(*(ask(number) for number in range(8)))
        measured, status = core.status.measured, engine.status()
        assert core.failure is None
        assert books.num_checked > 30
        assert bool(num_landed) == cohorts
        assert status.measured == measured
        assert measured.num_preemptions == sum(entry.get("event") == "preempt" for entry in core.trace.entries) > 0
        histograms = {name: found.count for name, found in measured.histograms.items()}
        assert histograms["e2e_request_latency_seconds"] == sum(status.finished.values()) == 10
        assert histograms["request_queue_time_seconds"] == 10, "each began once, however often it was preempted"
        assert measured.prefix_cache_queries == 10 * 8
        parts = ("request_prefill_time_seconds", "request_decode_time_seconds")
        whole = measured.histograms["request_inference_time_seconds"].total
        assert sum(measured.histograms[name].total for name in parts) == pytest.approx(whole)
        assert {histograms[name] for name in parts} == {histograms["time_to_first_token_seconds"]}
        begun = (
            measured.histograms["request_queue_time_seconds"].total + measured.histograms["request_prefill_time_seconds"].total
        )
        assert begun == pytest.approx(measured.histograms["time_to_first_token_seconds"].total)

    run(ledger_folder, body, RandomWalk(seed), num_kv_blocks=22, step_timeout_s=1e6, **changes)


def test_the_prefix_cache_is_asked_once_for_each_request_and_what_it_knew_is_told(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        for number in range(3):
            await world.ask(Client(f"r{number}", prompt_of(1, 21), 3))
        measured = world.engine.status().measured
        assert (measured.prefix_cache_queries, measured.prefix_cache_hits) == (63, 40)
        assert (measured.prompt_tokens, measured.prompt_tokens_cached) == (63, 40)

    run(ledger_folder, body)


def test_a_prefix_cache_that_is_off_is_not_asked(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        await world.ask(Client("r", prompt_of(1, 21), 3))
        measured = world.engine.status().measured
        assert (measured.prefix_cache_queries, measured.prefix_cache_hits, measured.prompt_tokens) == (0, 0, 21)

    run(ledger_folder, body, enable_prefix_caching=False)


def test_a_request_that_never_began_counts_where_it_waited_and_ended_alone(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 2")
        first = asyncio.create_task(world.ask(Client("first", prompt_of(0, 4), 6)))
        await world.loop.wait_settled()
        second = asyncio.create_task(world.ask(Client("second", prompt_of(1, 5), 6)))
        await world.loop.wait_settled()
        await world.engine.abort("second")
        await second
        counts = {name: found.count for name, found in world.engine.status().measured.histograms.items()}
        assert (counts["request_queue_time_seconds"], counts["e2e_request_latency_seconds"]) == (1, 1)
        assert counts["request_prefill_time_seconds"] == 0
        world.loop.release("step 2")
        await first

    run(ledger_folder, body, max_num_seqs=1)


def test_a_scrape_shows_them_in_the_fields_words(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        await world.ask_all([Client(f"r{number}", prompt_of(number, 5), 6) for number in range(3)])
        families = {family.name: family for family in text_string_to_metric_families(metrics.expose(world.engine))}
        measured = world.engine.status().measured
        for name in ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions"):
            (sample,) = families[f"quiesce:{name}"].samples
            assert (sample.name, sample.value) == (f"quiesce:{name}_total", getattr(measured, name))
        assert measured.generation_tokens == 18
        for name, counts in measured.histograms.items():
            family = families[f"quiesce:{name}"]
            assert family.type == "histogram"
            buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
            assert buckets == dict(counts.cumulative)
            assert list(buckets.values()) == sorted(buckets.values())
            rest = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples if "le" not in sample.labels}
            assert rest["count"] == counts.count
            assert rest["sum"] == pytest.approx(counts.total)

    run(ledger_folder, body)


@pytest.mark.parametrize(
    "name",
    [
        "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens",
    ],
)  # fmt: skip
def test_the_histograms_that_dashboards_read_are_there(name: str) -> None:
    bounds, documentation = HISTOGRAMS[name]
    assert list(bounds) == sorted(set(bounds))
    assert documentation.endswith(".")


@pytest.mark.parametrize("overlap", [True, False], ids=["two steps in flight", "one step in flight"])
@pytest.mark.parametrize("number", range(8, 14))
def test_gaps_are_right_when_somebody_joins_a_batch_that_was_the_same(ledger_folder: Path, number: int, overlap: bool) -> None:
    """A step of before may be planned and not launched then; it still lands as one of a batch that is no more."""

    async def body(world: World) -> None:
        books = Books(world)
        asked = [asyncio.create_task(world.ask(Client(f"r{name}", prompt_of(name, 4), 20))) for name in range(3)]
        world.loop.hold(f"step {number}")
        await world.loop.wait_settled()
        asked.append(asyncio.create_task(world.ask(Client("late", prompt_of(9, 4), 6))))
        await world.loop.wait_settled()
        world.loop.release(f"step {number}")
        await asyncio.gather(*asked)
        assert books.core.failure is None
        assert books.num_checked > 8

    run(ledger_folder, body, num_kv_blocks=64, step_timeout_s=1e6, overlap=overlap)


def test_a_preemption_is_counted_when_it_happens() -> None:
    measures = Measures()
    measures.preempted()
    assert measures.snapshot() == Measured(num_preemptions=1)


def test_nothing_is_copied_while_nothing_happens(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        before = world.engine._core.measures.snapshot()
        assert world.engine._core.measures.snapshot() is before
        await world.ask(Client("r", prompt_of(0, 4), 3))
        after = world.engine._core.measures.snapshot()
        assert after is not before
        assert before == Measured(), "what was published stays as it was"
        assert world.engine._core.measures.snapshot() is after

    run(ledger_folder, body)
