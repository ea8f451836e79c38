"""The fuzzer itself: a run repeats exactly, a clean engine raises no alarm, a broken one is caught and made small."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine.block_pool import BlockPool
from quiesce.engine.core import Core
from quiesce.engine.interpreter import Interpreter
from quiesce.engine.messages import WeightsWritten
from quiesce.engine.stream import FrontEnd
from quiesce.spec import MACHINES
from quiesce.stateful.driver import ledger_checkpoint
from quiesce.stateful.fuzz import command
from quiesce.stateful.fuzz.corpus import parse
from quiesce.stateful.fuzz.coverage import Coverage, declared_cells, read
from quiesce.stateful.fuzz.hunt import Hunt, Report, drawn_schedule
from quiesce.stateful.fuzz.loop_device import InLoop
from quiesce.stateful.fuzz.runs import rig_for, run
from quiesce.stateful.fuzz.schedule import Schedule, load

RUNS, SEEDS = 6, 30


@pytest.mark.parametrize("place", range(RUNS))
def test_a_clean_engine_raises_no_alarm(ledger_folder: Path, place: int) -> None:
    report = Hunt(ledger_folder).for_seeds(place * SEEDS, SEEDS)
    assert [finding.schedule for finding in report.findings] == []
    assert report.left == ()


def test_the_real_device_gives_every_request_the_tokens_that_it_has_alone(ledger_folder: Path) -> None:
    hunt = Hunt(ledger_folder, device="cpu")
    report = hunt.for_seeds(0, 11)
    assert [finding.schedule for finding in report.findings] == []
    assert not [name for name in report.left if name.startswith("thread")]


def test_weights_that_are_not_written_are_noticed_by_their_tokens(ledger_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: InLoop, pairs: Sequence[tuple[str, Any]]) -> WeightsWritten:
        self.written(pairs)
        return WeightsWritten()

    schedule = Schedule(tuple(parse("settle; update_weights; settle; connect; settle")), device="cpu")
    assert run(ledger_folder, schedule).problem is None, "the engine with these weights is made, too"
    monkeypatch.setattr(InLoop, "_write", write)
    outcome = run(ledger_folder, schedule)
    rig_for("cpu").close_all()
    assert outcome.problem is not None
    assert outcome.problem.oracle == "tokens"


def trace_of(folder: Path, seed: int) -> str:
    schedule, strategy = drawn_schedule(seed)
    outcome = run(folder, schedule, strategy)
    again = run(folder, outcome.schedule)
    assert again.trace_hash == outcome.trace_hash, "as it was recorded"
    return outcome.trace_hash


def test_a_run_repeats_as_it_was_recorded_in_any_process(ledger_folder: Path) -> None:
    seeds = range(5)
    here = [trace_of(ledger_folder, seed) for seed in seeds]
    assert len(set(here)) == len(here)
    for hash_seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, __file__, str(ledger_folder)],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.split() == here


def test_a_schedule_survives_its_file(ledger_folder: Path, tmp_path: Path) -> None:
    schedule, strategy = drawn_schedule(5)
    played = run(ledger_folder, schedule, strategy).schedule
    assert load(played.save(tmp_path / "schedule.json")) == played
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"other\.json"):
        load(tmp_path / "other.json")


def hunted(folder: Path, out: Path, seeds: int = 120) -> Report:
    """The first kind of failure that is found, made small."""
    hunt = Hunt(folder, out)
    for seed in range(seeds):
        hunt.play(seed)
        if hunt.report.findings:
            return hunt.report
    raise AssertionError("nothing was found")


def test_a_prefix_that_outlives_its_content_is_found_and_made_small(
    ledger_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefix index that outlives its content (vllm#17103): what is found is small, and replays from its file."""
    monkeypatch.setattr(Interpreter, "do_drop_prefix_index", lambda self, effect: None)
    finding = hunted(ledger_folder, tmp_path).findings[0]
    assert finding.schedule.oracle in ("tokens", "answer")
    assert len(finding.schedule.actions) <= 12
    assert finding.path is not None
    assert command.is_schedule(finding.path)
    assert command.rerun(finding.path, tmp_path / "run.mmd", tmp_path / "test_stale_prefix.py") == 1
    assert (tmp_path / "run.mmd").read_text().startswith("sequenceDiagram\n    participant ")
    compile((tmp_path / "test_stale_prefix.py").read_text(), "test_stale_prefix.py", "exec")
    monkeypatch.undo()
    assert command.rerun(finding.path) == 0, "it is the engine that was broken"


def test_a_stream_that_never_closes_is_left(ledger_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = FrontEnd.terminal
    monkeypatch.setattr(FrontEnd, "terminal", lambda self, stream: None if stream.key % 5 == 0 else deliver(self, stream))
    assert hunted(ledger_folder, tmp_path).findings[0].schedule.oracle == "left"


def test_a_miscounted_request_is_out_of_balance(ledger_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = Core._refuse

    def refuse_and_forget(self: Core, event: object, error: Exception) -> None:
        refuse(self, event, error)  # type: ignore[arg-type]
        self.num_rejected -= 1

    monkeypatch.setattr(Core, "_refuse", refuse_and_forget)
    assert hunted(ledger_folder, tmp_path).findings[0].schedule.oracle == "balance"


def test_a_block_that_is_lost_is_left(ledger_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = BlockPool.free
    monkeypatch.setattr(BlockPool, "free", lambda self, effect, blocks: free(self, effect, blocks[1:]))
    assert hunted(ledger_folder, tmp_path).findings


def test_coverage_counts_every_row_and_cell_once(ledger_folder: Path, tmp_path: Path) -> None:
    coverage = Coverage()
    run(ledger_folder, Schedule(drawn_schedule(3)[0].actions), coverage=coverage)
    found = read(coverage.save(tmp_path / "coverage.json"))
    assert len(found["edges"]) == sum(len(row.source) for machine in MACHINES for row in machine.rows)
    assert len(found["cells"]) == len(declared_cells())
    assert sum(count for *_, count in found["edges"]) == coverage.num_transitions == found["transitions"] > 0


if __name__ == "__main__":
    print(*(trace_of(ledger_checkpoint(Path(sys.argv[1])), seed) for seed in range(5)))
