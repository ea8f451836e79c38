"""The corpus is clean, and reaches all that can be reached; an engine that goes where the model cannot is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.stateful.fuzz.corpus import RUNS, corpus, parse
from quiesce.stateful.fuzz.coverage import Coverage, declared_cells
from quiesce.stateful.fuzz.hunt import Hunt
from quiesce.stateful.fuzz.runs import run
from quiesce.stateful.fuzz.schedule import Schedule
from quiesce.stateful.fuzz.unreachable import UNREACHABLE
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.records import WeightsRecord


@pytest.fixture(scope="module")
def hunt(ledger_folder: Path) -> Hunt:
    hunt = Hunt(ledger_folder)
    hunt.play_corpus()
    return hunt


def test_no_program_of_the_corpus_finds_anything(hunt: Hunt) -> None:
    assert hunt.report.num_runs == len([*corpus("ledger")])
    assert [(finding.schedule.failure, finding.schedule.actions) for finding in hunt.report.findings] == []


def test_every_declared_cell_that_can_be_reached_is_touched(hunt: Hunt) -> None:
    coverage: Coverage = hunt.report.coverage
    declared = set(declared_cells())
    assert set(UNREACHABLE) <= declared
    assert set(coverage.missing()) == set(UNREACHABLE), "and whoever reaches one of those has to take it from the list"
    assert len(UNREACHABLE) < 0.05 * len(declared)


def test_a_program_says_what_is_done_with_what() -> None:
    connect, pause = parse('connect length=9; pause mode="wait" owner=ops')
    assert (connect.verb, connect.given["length"], connect.given["name"]) == ("connect", 9, "c0")
    assert (pause.given["mode"], pause.given["owner"], pause.given["operation_id"]) == ("wait", "ops", None)
    for wrong in ("dance", "pause loudness=3"):
        with pytest.raises(ValueError, match=r"no verb|no value"):
            parse(wrong)


def test_a_record_that_is_written_beside_the_gate_is_not_where_the_model_is(
    ledger_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsRecord, "base_intact", property(lambda self: True, lambda self, value: None), raising=False)
    actions = next(parse(text) for name, text in RUNS.items() if name.startswith("R33"))
    found = run(ledger_folder, Schedule(tuple(actions)), follow=True).problems
    assert any(problem.oracle == "model" and "weights.base_intact is yes, not no" in problem.text for problem in found)


def test_a_move_that_the_model_does_not_have_is_no_path(ledger_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of it is a declared one, so that the monitor is content."""
    monkeypatch.setattr(Gate, "_choose", lambda self, record, event, cell, data: cell.moves[0] if cell.moves else None)
    actions = next(parse(text) for name, text in RUNS.items() if name.startswith("R26"))
    found = run(ledger_folder, Schedule(tuple(actions)), follow=True).problems
    assert any(problem.oracle == "model" and "no path of the model" in problem.text for problem in found)
