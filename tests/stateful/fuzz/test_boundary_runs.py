"""The fuzzer through the boundary of a core process: it meets what it should, finds nothing, and notices when the boundary is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quiesce.engine.link.connection import Connection
from quiesce.engine.link.process import ProcessLink
from quiesce.engine.stream import FrontEnd
from quiesce.stateful.fuzz.alphabet import Action
from quiesce.stateful.fuzz.boundary_runs import POINTS, BoundaryProduction
from quiesce.stateful.fuzz.hunt import drawn_schedule
from quiesce.stateful.fuzz.runs import run
from quiesce.stateful.fuzz.schedule import Schedule, from_json

SEEDS = range(70)
MUTANTS = 40
"""Seeds in which a broken boundary must be noticed."""


def test_programs_through_the_boundary_find_nothing_and_meet_losses_restarts_and_errors(ledger_folder: Path) -> None:
    losses = restarts = retryable = final = 0
    for seed in SEEDS:
        schedule, strategy = drawn_schedule(seed, "boundary")
        production = BoundaryProduction(ledger_folder, schedule, strategy)
        outcome = production.run()
        assert outcome.problem is None, (seed, outcome.problem)
        losses += production.link.num_losses
        restarts += len(production.link.cores) - 1
        told = [client.last for client in production.player.clients.values() if client.last is not None and client.last.error]
        retryable += sum(last.retryable for last in told)
        final += sum(not last.retryable for last in told)
    assert min(losses, restarts, retryable, final) >= 5, (losses, restarts, retryable, final)


def test_a_run_through_the_boundary_is_a_function_of_its_schedule(ledger_folder: Path) -> None:
    schedule, strategy = drawn_schedule(5, "boundary")
    first = run(ledger_folder, schedule, strategy)
    again = run(ledger_folder, from_json(first.schedule.to_json()))
    assert (again.trace_hash, again.state, again.schedule.choices) == (first.trace_hash, first.state, first.schedule.choices)


FAULTS = [
    (tag, to, after) for tag in ("kv_cache", "weights") for to in ("restored", "released", "zeroed") for after in (0, 1, 3)
]


@pytest.mark.parametrize("point", POINTS)
def test_a_core_that_is_killed_at_this_point_is_followed_by_one_that_serves(ledger_folder: Path, point: str) -> None:
    """Everything goes on at once: streams, an update, a pause, a sleep and its wake-up; then the next core answers a request."""
    tag, to, after = FAULTS[list(POINTS).index(point)]
    kill = Action("fail", {"what": "core", "tag": tag, "to": to, "after": after})
    asks: dict[str, Any] = {
        "length": 9, "first": 0, "max_tokens": 8, "temperature": 0.0, "stop_at": None, "stop_after": None, "paced": False, "cancel_at": None,
    }  # fmt: skip
    control = {"timeout": None, "operation_id": None}
    actions = [
        *([kill] if point == "connecting" else [Action("settle"), kill]),
        Action("connect", {**asks, "name": "c0"}),
        Action("advance", {"turns": 6}),
        Action("update_weights", {"weights": "full", "mode": "keep", "kv": "recompute", "name": "o0", **control}),
        Action("settle"),
        Action("connect", {**asks, "name": "c1"}),
        Action("advance", {"turns": 4}),
        Action("sleep", {"level": 1, "mode": "wait", "name": "o1", **control}),
        Action("settle"),
        Action("wake_up", {"tags": None, "timeout": None, "name": "o2", "operation_id": None}),
        Action("settle"),
        Action("connect", {**asks, "name": "c2"}),
        Action("settle"),
    ]
    production = BoundaryProduction(
        ledger_folder, Schedule(tuple(actions), config={"max_restarts": 1}, device="boundary"), None
    )
    outcome = production.run()
    assert outcome.problem is None, outcome.problem
    assert production.link.num_losses == 2, "the kill, and the shutdown at the end"
    assert [core.epoch for core in production.link.cores] == [1, 2]
    last = production.player.clients["c2"]
    assert last.last is not None
    assert last.last.finish_reason == "length"


def test_a_welcome_that_comes_when_the_link_is_given_up_is_nobodys(ledger_folder: Path) -> None:
    """Found: the front end connected to a core that it had given up (`connect while down`)."""
    late, cut = (
        Action("stall", {"what": "move"}),
        Action("fail", {"what": "hang", **dict(zip(("tag", "to", "after"), FAULTS[0], strict=True))}),
    )
    actions = (late, Action("settle"), cut, Action("settle"), Action("go_on"), Action("settle"))
    schedule = Schedule(actions, device="boundary")
    outcome = run(ledger_folder, schedule)
    assert outcome.problem is None, outcome.problem


def test_what_becomes_of_a_shutdown_whose_caller_has_left_is_heard(ledger_folder: Path) -> None:
    """Found: the caller left, the core died, and the error of its call was nobody's."""
    kill = Action("fail", {"what": "core", **dict(zip(("tag", "to", "after"), FAULTS[0], strict=True))})
    actions = (
        Action("settle"), Action("shutdown", {"timeout": 30.0, "name": "o0"}), Action("advance", {"turns": 1}),
        Action("hang_up", {"call": "o0"}), kill,
    )  # fmt: skip
    outcome = run(ledger_folder, Schedule(actions, config={"max_restarts": 1}, device="boundary"))
    assert outcome.problem is None, outcome.problem


def _found(folder: Path) -> bool:
    return any(run(folder, *drawn_schedule(seed, "boundary")).problem is not None for seed in range(MUTANTS))


def test_a_front_end_that_takes_news_of_a_lost_core_is_found(ledger_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    news = ProcessLink._news

    def taken(self: Any, epoch: int, letter: Any) -> None:
        if self._push is not None:
            news(self, self._epoch, letter)

    monkeypatch.setattr(ProcessLink, "_news", taken)
    assert _found(ledger_folder)


def test_a_link_that_starts_a_second_core_beside_the_first_is_found(
    ledger_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "do_kill_core", lambda self: None)
    assert _found(ledger_folder)


def test_a_front_end_that_promises_what_no_core_will_keep_is_found(
    ledger_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FrontEnd.answer_everybody
    monkeypatch.setattr(FrontEnd, "answer_everybody", lambda self, cause, is_retryable: answer(self, cause, True))
    assert _found(ledger_folder)
