"""Which files are mutated, how many mutants of each are drawn, and who looks at them."""

from __future__ import annotations

from tests.mutation.judge import Suite

SEED = 6
ENGINE = (
    "clear_cache", "commit", "failed_moves", "half_asleep", "open_update", "operations", "pause", "pause_withdrawn", "regressions",
    "shutdown_and_failure", "sleep_and_wake", "weight_update", "life_of_a_request", "children_and_stops",
)  # fmt: skip
"""Engine tests that are quick: three seconds in all."""
GATE = ("gate", "machine", "monitor", "remembered", "differential")


def _engine(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/engine/test_{name}.py" for name in names)


def _suite(own: tuple[str, ...], others: tuple[str, ...] = ENGINE) -> Suite:
    return Suite(own, tuple(file for file in _engine(*others) if file not in own), first_runs=4, middle_runs=40, last_runs=30)


_OF_THE_GATE = tuple(f"tests/statemachine/test_{name}.py" for name in GATE)

SAMPLE = {
    "statemachine/gate.py": 60,
    "statemachine/machine.py": 50,
    "engine/scheduler.py": 45,
    "engine/block_pool.py": 65,
    "engine/prefix_cache.py": 35,
    "engine/lifecycle.py": 85,
    "engine/pipeline.py": 40,
    "engine/interpreter.py": 30,
    "engine/operations.py": 35,
}
"""File -> mutants drawn from it."""
SUITES = {
    "statemachine/gate.py": _suite(_OF_THE_GATE, ("operations", "pause", "sleep_and_wake")),
    "statemachine/machine.py": _suite(_OF_THE_GATE, ("reprs", "operations", "pause", "sleep_and_wake")),
    "engine/scheduler.py": _suite(_engine("scheduler", "commit"), ("block_pool", "life_of_a_request", "bad_input")),
    "engine/block_pool.py": _suite(_engine("block_pool", "prefix_cache", "clear_cache"), ("pause", "life_of_a_request")),
    "engine/prefix_cache.py": _suite(
        _engine("prefix_cache", "block_pool", "clear_cache"), ("weight_update", "life_of_a_request")
    ),
    "engine/lifecycle.py": _suite(_engine("operations", "pause", "shutdown_and_failure", "regressions")),
    "engine/pipeline.py": _suite(
        _engine("pipeline", "commit", "regressions", "pause"), ("life_of_a_request", "bad_input", "cohort", "cancellation")
    ),
    "engine/interpreter.py": _suite(
        _engine("interpreter", "clear_cache", "commit", "sleep_and_wake"), (*ENGINE, "sampling_end_to_end", "measures")
    ),
    "engine/operations.py": _suite(_engine("operations", "pause_withdrawn", "half_asleep", "failed_moves", "errors")),
}
