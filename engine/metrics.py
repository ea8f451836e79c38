"""Prometheus metrics: a pure projection of `Status`. Nothing is counted here (`measures` does), so a scrape is exact at every instant.

The names are vLLM's where it has the same thing, behind our own prefix. Two tables declare them all, `METRICS` and `HISTOGRAMS`; a scrape
takes one snapshot and reads every metric from it, so the figures of one scrape agree with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from quiesce.engine.measures import HISTOGRAMS
from quiesce.engine.outputs import LIVE, Status
from quiesce.spec.vocabulary import EngineState, FinishReason, MemoryState, RequestState, Tag, WeightsState

PREFIX: Final = "quiesce:"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""The media type of `expose`."""

Sample = tuple[tuple[str, ...], float]
ADMISSIONS: Final = ("accept", "queue", "reject")
REQUEST_STATES: Final = (*LIVE, RequestState.draining)
"""States in which a request holds something."""
SLEEP_STATES: Final = ("awake", "weights_offloaded", "discard_all")
WAITING: Final = (RequestState.received, RequestState.admitted, RequestState.retracting)


class HasStatus(Protocol):
    """An engine, as far as metrics look: `AsyncEngine`, `Engine`, or a test's own."""

    def status(self) -> Status: ...


@dataclass(frozen=True, slots=True)
class Projection:
    """One metric family and how to read it from a status."""

    name: str
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    documentation: str
    read: Callable[[Status], Iterable[Sample]]
    labels: tuple[str, ...] = ()


def _one(read: Callable[[Status], float]) -> Callable[[Status], Iterable[Sample]]:
    return lambda status: (((), read(status)),)


def _each(counts: Callable[[Status], Mapping[str, int]], names: Iterable[str]) -> Callable[[Status], Iterable[Sample]]:
    """One sample for each name, 0 where the status does not mention it: a series never disappears."""
    known = tuple(str(name) for name in names)
    return lambda status: [((name,), counts(status).get(name, 0)) for name in known]


def _is(read: Callable[[Status], str], names: Iterable[str]) -> Callable[[Status], Iterable[Sample]]:
    """1 for the state it is in, 0 for the others."""
    known = tuple(str(name) for name in names)
    return lambda status: [((name,), float(read(status) == name)) for name in known]


def _usage(status: Status) -> float:
    blocks = status.blocks
    return (blocks.held + blocks.fenced) / blocks.total


def _blocks(status: Status) -> Iterable[Sample]:
    return [((owner,), getattr(status.blocks, owner)) for owner in ("free", "cached", "held", "fenced")]


def _memory(status: Status) -> Iterable[Sample]:
    return [((str(tag), str(state)), float(status.memory.get(tag) == state)) for tag in Tag for state in MemoryState]


def _owners(status: Status) -> Iterable[Sample]:
    return [((owner, mode), 1.0) for owner, mode in status.pause_owners.items()]


def _running(status: Status) -> float:
    return status.requests.get(RequestState.running, 0)


def _waiting(status: Status) -> float:
    return sum(status.requests.get(state, 0) for state in WAITING)


def _waiting_by_reason(status: Status) -> Iterable[Sample]:
    """`capacity`: for blocks or a place in the batch; `deferred`: for the gate, or for blocks on their way home."""
    count = status.requests.get(RequestState.admitted, 0)
    held = status.engine != EngineState.running
    deferred = status.requests.get(RequestState.received, 0) + status.requests.get(RequestState.retracting, 0)
    return [(("capacity",), 0 if held else count), (("deferred",), deferred + (count if held else 0))]


def _sleep_state(status: Status) -> str:
    """vLLM's words for what is in memory."""
    weights = status.memory.get(Tag.weights)
    if status.engine not in (EngineState.sleeping, EngineState.partially_awake):
        return "awake"
    discarded = weights == MemoryState.undefined or status.weights[1] == WeightsState.undefined
    return "discard_all" if discarded else "weights_offloaded"


def _weights_version(status: Status) -> Iterable[Sample]:
    return [((str(status.weights[0]),), 1.0)]


GAUGE: Final = GaugeMetricFamily
COUNTER: Final = CounterMetricFamily
METRICS: Final = (
    Projection("num_requests_running", GAUGE, "Requests that hold a place in the batch.", _one(_running)),
    Projection("num_requests_waiting", GAUGE, "Live requests without a place in the batch, preempted ones included.", _one(_waiting)),
    Projection("num_requests_waiting_by_reason", GAUGE, "The same by what they wait for.", _waiting_by_reason, ("reason",)),
    Projection("kv_cache_usage_perc", GAUGE, "Part of the KV blocks that are held or fenced, 0 to 1.", _one(_usage)),
    Projection("request_success", COUNTER, "Requests that ended, by finish reason.", _each(lambda s: s.finished, FinishReason), ("finished_reason",)),
    Projection("prompt_tokens", COUNTER, "Prompt tokens of sequences that have their first token.", _one(lambda s: s.measured.prompt_tokens)),
    Projection("prompt_tokens_cached", COUNTER, "Those of them from the prefix cache.", _one(lambda s: s.measured.prompt_tokens_cached)),
    Projection("generation_tokens", COUNTER, "Tokens sent to streams.", _one(lambda s: s.measured.generation_tokens)),
    Projection("prefix_cache_queries", COUNTER, "Tokens looked for in the prefix cache.", _one(lambda s: s.measured.prefix_cache_queries)),
    Projection("prefix_cache_hits", COUNTER, "Tokens found there.", _one(lambda s: s.measured.prefix_cache_hits)),
    Projection("num_preemptions", COUNTER, "Sequences that yielded their blocks.", _one(lambda s: s.measured.num_preemptions)),
    Projection("admission_rejections", COUNTER, "Calls refused, which were never accepted.", _one(lambda s: s.rejected)),
    Projection("engine_sleep_state", GAUGE, "1 for what sleep has taken.", _is(_sleep_state, SLEEP_STATES), ("sleep_state",)),
    Projection("weights_version", GAUGE, "1 for the version of the weights.", _weights_version, ("version",)),
    Projection("accepted", COUNTER, "Requests accepted.", _one(lambda s: s.accepted)),
    Projection("rejected", COUNTER, "Calls refused, which were never accepted.", _one(lambda s: s.rejected)),
    Projection("engine_state", GAUGE, "1 for the state the engine is in.", _is(lambda s: s.engine, EngineState), ("state",)),
    Projection("admission", GAUGE, "1 for what becomes of a new call.", _is(lambda s: s.admission, ADMISSIONS), ("admission",)),
    Projection("requests", GAUGE, "Requests by state.", _each(lambda s: s.requests, REQUEST_STATES), ("state",)),
    Projection("blocks", GAUGE, "KV blocks by owner; their sum is the pool.", _blocks, ("owner",)),
    Projection("steps_in_flight", GAUGE, "Device steps launched and not retired.", _one(lambda s: s.steps_in_flight)),
    Projection("streams", GAUGE, "Streams whose terminal is not delivered yet.", _one(lambda s: s.streams)),
    Projection("sessions", GAUGE, "Open sessions.", _one(lambda s: s.sessions)),
    Projection("memory_state", GAUGE, "1 for the state of each memory tag.", _memory, ("tag", "state")),
    Projection("weights_state", GAUGE, "1 for the state of the weights.", _is(lambda s: s.weights[1], WeightsState), ("state",)),
    Projection("pause_tokens_held", GAUGE, "1 for each held pause token.", _owners, ("owner", "mode")),
    Projection("control_operation_in_progress", GAUGE, "Whether a control call is acting.", _one(lambda s: float(s.operation is not None))),
    Projection("engine_epoch", GAUGE, "Grows when the engine gives up what is on the device.", _one(lambda s: s.epoch)),
)  # fmt: skip


class StatusCollector(Collector):
    """Reads one snapshot for each scrape."""

    def __init__(self, engine: HasStatus) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status()
        for projection in METRICS:
            family = projection.kind(PREFIX + projection.name, projection.documentation, labels=projection.labels)
            for labels, value in projection.read(status):
                family.add_metric(labels, value)
            yield family
        for name, (_, documentation) in HISTOGRAMS.items():
            counts = status.measured.histograms[name]
            yield HistogramMetricFamily(PREFIX + name, documentation, counts.cumulative, counts.total)


def registry(engine: HasStatus) -> CollectorRegistry:
    """A registry of this engine's own, apart from the process-wide one: two engines never mix."""
    made = CollectorRegistry()
    made.register(StatusCollector(engine))
    return made


def expose(engine: HasStatus) -> str:
    """The metrics of an engine in Prometheus' text form, as of now."""
    return generate_latest(registry(engine)).decode()
