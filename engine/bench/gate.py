"""The gate alone: what one fired event costs, guard, state, log and minted effects included, and stock `transitions` beside it.

Two looks. One event again and again, the record put back by hand each time (putting back is measured and taken off): what a fire costs
where it is hot. And whole lives, a request's and its step's, every event once: what it costs where it is not. The monitor's look before
a move is set, as in the engine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from quiesce.engine.bench.result import Figure
from quiesce.spec.vocabulary import EngineEvent, RequestEvent, StepEvent, StepState
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.monitor import Monitor
from quiesce.statemachine.records import Record, RequestRecord, StepRecord, World

FLOOR_US: Final = 0.5
AIM_US: Final = 0.2
HOT_TURNS: Final = 5
KINDS: Final = {"sealed": False, "stock": True}


class Bench:
    """A world whose engine runs, with a gate on it."""

    def __init__(self, stock: bool) -> None:
        self.world = World()
        self.gate = Gate(stock=stock)
        self.gate.watch = Monitor(self.world).watch
        self.gate.fire(self.world.engine, EngineEvent.ready)
        self.world.free = 1
        self._number = 0

    def hot_us(self, count: int) -> float:
        """Microseconds of one `land` of a step: guard, state and log, no effect."""
        self._begin()
        step, launched, event, fire = self.world.older, StepState.launched, StepEvent.land, self.gate.fire

        def fires() -> None:
            for _ in range(count):
                _put(step, launched)
                fire(step, event)

        def puts_back() -> None:
            for _ in range(count):
                _put(step, launched)

        both = [(_ns(fires), _ns(puts_back)) for _ in range(HOT_TURNS)]
        fire(step, event)
        self._end()
        return (statistics.median(with_it for with_it, _ in both) - statistics.median(put for _, put in both)) / 1e3 / count

    def lives_us(self, count: int) -> tuple[float, float]:
        """Microseconds of the gating of one device step of one request (4 events), and of one request (6 events)."""
        steps = requests = 0
        for _ in range(count):
            request, taken = self._begin()
            steps, requests = steps + taken[0], requests + taken[1]
            step = self.world.older
            steps += self._fire(step, StepEvent.land)
            requests += self._fire(request, RequestEvent.eos) + self._fire(request, RequestEvent.finish)
            steps += self._fire(step, StepEvent.retire)
            requests += self._fire(request, RequestEvent.reap)
            self.gate.log.clear()
        return steps / 1e3 / count, requests / 1e3 / count

    def _begin(self) -> tuple[RequestRecord, tuple[int, int]]:
        """A request that runs and its step, launched; nanoseconds of the step's and of the request's events."""
        self._number += 1
        request = RequestRecord(self.world, self._number, "r")
        spent = sum(self._fire(request, event) for event in (RequestEvent.submit, RequestEvent.admit, RequestEvent.start))
        step = self.world.new_step(self._number)
        planned = self._fire(step, StepEvent.plan, self._named(request)) + self._fire(step, StepEvent.launch)
        return request, (planned, spent)

    def _end(self) -> None:
        step = self.world.older
        (request,) = step.members.values()
        for record, event in (
            (request, RequestEvent.eos),
            (request, RequestEvent.finish),
            (step, StepEvent.retire),
            (request, RequestEvent.reap),
        ):
            self.gate.fire(record, event)
        self.gate.log.clear()

    @staticmethod
    def _named(request: RequestRecord) -> dict[str, Any]:
        return {"requests": [request]}

    def _fire(self, record: Record, event: str, data: Any = None) -> int:
        given = data or {}
        began = time.perf_counter_ns()
        self.gate.fire(record, event, given)
        return time.perf_counter_ns() - began


_put: Final[Callable[[StepRecord, StepState], None]] = vars(StepRecord)["state"].__set__
"""Puts a record back where it was; in the engine only the gate writes a state."""


def _ns(work: Callable[[], None]) -> int:
    began = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - began


def measure(quick: bool) -> list[Figure]:
    """The row `gate`. Sealed and stock take turns."""
    rounds, count, lives = (3, 100, 20) if quick else (15, 1000, 200)
    benches = {name: Bench(stock) for name, stock in KINDS.items()}
    hot: dict[str, list[float]] = {name: [] for name in KINDS}
    steps: dict[str, list[float]] = {name: [] for name in KINDS}
    requests: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(rounds):
        for name, bench in benches.items():
            hot[name].append(bench.hot_us(count))
            step, request = bench.lives_us(lives)
            steps[name].append(step)
            requests[name].append(request)
    bounds = {"sealed": (FLOOR_US, AIM_US), "stock": (None, None)}
    figures = [
        Figure("gate", f"{name}: one guarded fire with its log entry", "us", tuple(hot[name]), *bounds[name]) for name in KINDS
    ]
    figures += [Figure("gate", f"    {name}: a device step's 4 events, watched", "us", tuple(steps[name])) for name in KINDS]
    figures += [Figure("gate", f"    {name}: a request's 6 events, watched", "us", tuple(requests[name])) for name in KINDS]
    return figures
