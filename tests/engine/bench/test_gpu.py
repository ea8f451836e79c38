"""`make gpu` without a GPU: every block runs at toy size, says that it shows nothing, and costs nobody else its failure."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce.engine.bench.gpu import __main__ as gpu
from quiesce.engine.bench.gpu import blocks
from quiesce.engine.bench.gpu.blocks import BLOCKS, TOTAL_S, Block, run_all, run_apart, run_here
from quiesce.engine.bench.gpu.ground import ASSUMED, Ground, as_line, from_line, missing
from quiesce.engine.bench.peer_process import ENVIRONMENT
from quiesce.engine.bench.result import Figure

KEPT = 12_000
"""Characters of an output's end that a machine elsewhere sends back."""


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, int]:
    """The document, the output and the status of one dry run of everything, in a process of its own: it imports transformers."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "quiesce.engine.bench.gpu", "--dry", "--json", "made/gpu.json"]
    ran = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=TOTAL_S, env={**os.environ, **ENVIRONMENT}
    )
    assert (folder / "made" / "gpu.json").exists(), ran.stderr
    return json.loads((folder / "made" / "gpu.json").read_text()), ran.stdout, ran.returncode


@pytest.mark.timeout(300)
def test_every_block_runs_at_toy_size(dry: tuple[dict[str, Any], str, int]) -> None:
    document, said, status = dry
    assert [(block["name"], block["failure"]) for block in document["blocks"]] == [(block.name, "") for block in BLOCKS], said
    assert status == 0
    assert {figure["row"] for figure in document["figures"]} == {block.name for block in BLOCKS}
    assert all(figure["num_samples"] or figure["skipped"] for figure in document["figures"])
    assert not [figure for figure in document["figures"] if figure["skipped"]]


def test_a_dry_run_says_on_every_row_that_it_is_no_figure(dry: tuple[dict[str, Any], str, int]) -> None:
    document, said, _ = dry
    assert document["dry"] is True
    assert document["machine"]["gpu"] is None
    assert {figure["verdict"] for figure in document["figures"]} == {gpu.DRY.strip()}
    assert all(figure["floor"] is None and figure["aim"] is None for figure in document["figures"])
    rows = said.split("written to")[1].splitlines()[1:]
    assert len(rows) == len(document["figures"]) + len(BLOCKS)
    assert all(row.endswith(gpu.DRY) for row in rows if not row.startswith("["))


def test_what_was_right_was_right_in_the_dry_run_too(dry: tuple[dict[str, Any], str, int]) -> None:
    """These are no speeds: they hold at any size."""
    found = {(figure["row"], figure["name"]): figure["median"] for figure in dry[0]["figures"]}
    for row in ("memory", "large"):
        assert found[row, "answers equal to those before, each cycle"] == 1.0
        assert found[row, "graphs captured anew after a wake"] == 0.0
        assert found[row, "memory given back / arenas"] >= 0.99
    left = {name: value for (_, name), value in found.items() if "left over" in name}
    assert len(left) == 6
    assert set(left.values()) == {0.0}
    assert found["fuzz", "    kinds of failure"] == 0.0


def test_the_table_fits_what_is_kept_of_an_output(dry: tuple[dict[str, Any], str, int]) -> None:
    figures = [Figure(f["row"], f["name"], f["unit"], (f["median"],), 0.5, 0.75) for f in dry[0]["figures"]]
    assert len("\n".join(gpu.table(figures, dry=False))) < KEPT


def test_the_limits_of_the_blocks_leave_the_whole_within_ten_minutes() -> None:
    assert TOTAL_S < 600
    assert all(block.limit_s <= 120 for block in BLOCKS)


def test_without_a_gpu_it_says_so_and_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    said = capsys.readouterr().out.replace("\n", " ")
    assert "sees no CUDA device" in said
    assert "DRY=1" in said


def test_a_block_that_raises_keeps_its_figures_and_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def works(ground: Ground, tell: Any) -> None:
        tell(Figure("made", "first", "s", (1.0,)))
        raise ValueError("the second cannot be")

    monkeypatch.setattr(Block, "work", lambda self: works)
    ran = run_here(Block("made", 1.0, (), "made:up"), Ground(False, 1.0), lambda figure: None)
    assert [figure.name for figure in ran.figures] == ["first", "ended early"]
    assert "ValueError: the second cannot be" in ran.failure
    assert "in works" in ran.failure


def test_a_package_that_is_missing_is_named_and_costs_its_blocks_alone() -> None:
    assert missing("torch", "json") == ""
    assert "pip install no_such_thing" in missing("torch", "no_such_thing")
    assert "cuda_no" in missing("cuda_no.such.part")
    ran = run_here(Block("made", 1.0, ("no_such_thing",), "made:up"), Ground(False, 1.0), lambda figure: None)
    assert [figure.verdict for figure in ran.figures] == ["skipped"]
    assert "no_such_thing" in ran.failure


TOLD = f"print({json.dumps(json.dumps(as_line(Figure('made', 'first', 's', (1.0, 2.0)))))}, flush=True)"


@pytest.mark.parametrize(
    ("ends", "reason"),
    [("", ""), ("import os; os.abort()", "ended with status -6"), ("import sys; print('why', file=sys.stderr); sys.exit(3)", "ended with status 3"), ("while True: pass", "was ended after 1 s")],
    ids=["well", "by a signal", "with a status", "never"],
)  # fmt: skip
def test_however_the_process_of_a_block_ends_its_figures_are_kept(ends: str, reason: str) -> None:
    told: list[Figure] = []
    ran = run_apart([sys.executable, "-c", f"{TOLD}\n{ends}"], "made", 1.0, told.append)
    assert ran.figures[0] == Figure("made", "first", "s", (1.0, 2.0))
    assert told == ran.figures
    assert ran.failure.startswith(reason)
    assert [figure.skipped for figure in ran.figures[1:]] == ([reason] if reason else [])
    assert ("why" in ran.failure) == (ends.startswith("import sys"))


def test_a_block_whose_gpu_has_gone_says_why_and_nothing_that_could_be_read_as_a_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--block", json.dumps({"name": "ceilings", "limit_s": 1.0, "ceilings": ASSUMED})]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "no CUDA device" in said.err


class FakeCuda:
    """A clock that goes on by a second with each call of the work, and a graph that does it again."""

    def __init__(self) -> None:
        self.now_s, self.recorded = 0.0, list[int]()
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_s = cuda.now_s

            def synchronize(self) -> None:
                """It has been reached."""

            def elapsed_time(self, end: Event) -> float:
                return (end.at_s - self.at_s) * 1e3

        class CUDAGraph:
            def replay(self) -> None:
                cuda.now_s += len(cuda.recorded)

        self.Event, self.CUDAGraph = Event, CUDAGraph

    def work(self, number: int) -> None:
        self.now_s += 1.0
        self.recorded.append(number)

    def Stream(self) -> str:
        return "stream"

    def stream(self, stream: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, graph: object, stream: str) -> Iterator[None]:
        before = self.now_s
        self.recorded.clear()
        yield
        self.now_s = before  # what is captured is not done

    def synchronize(self) -> None:
        """Nothing is on its way."""


@pytest.mark.parametrize("how", ["seconds", "captured_seconds"])
def test_a_call_is_timed_by_the_devices_own_clock_after_a_warm_up(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    cuda = FakeCuda()
    for name in ("Event", "CUDAGraph", "Stream", "stream", "graph", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    found = getattr(Ground(False, 60.0), how)(cuda.work, calls=4, samples=3)
    assert found == (1.0, 1.0, 1.0)
    assert cuda.recorded[-4:] == [0, 1, 2, 3], "each call is told its number, so that it can take another set of numbers"


def test_a_figure_crosses_the_process_boundary_whole() -> None:
    figure = Figure("row", "name", "x", (1.0, 2.0), 3.0, 4.0, at_most=False)
    assert from_line(json.loads(json.dumps(as_line(figure)))) == figure


def test_what_the_ceilings_gave_is_what_later_blocks_divide_by(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def apart(command: list[str], name: str, limit_s: float, tell: Any) -> blocks.Ran:
        asked.append(json.loads(command[-1]))
        figures = [Figure(name, seen, "GB/s", (7.0,)) for seen in list(ASSUMED)[:2]] if name == "ceilings" else []
        return blocks.Ran(name, figures, 1.0)

    monkeypatch.setattr(blocks, "run_apart", apart)
    run_all(["ceilings", "kernels"], dry=False, tell=lambda figure: None)
    first, second, third = ASSUMED
    assert asked[0]["ceilings"] == ASSUMED
    assert asked[1]["ceilings"] == {first: 7.0, second: 7.0, third: ASSUMED[third]}
    assert all(one["limit_s"] < blocks.BY_NAME[one["name"]].limit_s for one in asked)
