"""The suite runs, whatever its figures: they are judged by people and `make bench`, not by a timed test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quiesce.engine import cli
from quiesce.engine.bench import decode, mixed, peer_process, suite
from quiesce.engine.bench.gate import Bench
from quiesce.engine.bench.host import CONTEXT, HostLoop
from quiesce.engine.bench.peer_process import PeerError, PeerProcess

SUITE_KEYS = {"quiesce_bench", "kind", "quick", "rows", "machine", "duration_s", "figures"}


def test_gate_and_host_are_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "suite.json"
    assert cli.main(["bench", "--suite", "--quick", "--rows", "gate,host", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert set(found) == SUITE_KEYS
    assert found["rows"] == ["gate", "host"]
    judged = [figure["name"] for figure in found["figures"] if figure["floor"] is not None]
    assert judged == [
        "sealed: one guarded fire with its log entry",
        *(f"landed to launched, batch {batch}" for batch in (1, 32, 256)),
    ]
    assert all(figure["median"] > 0 for figure in found["figures"] if "guarded fire" not in figure["name"])
    assert "toy sizes" in capsys.readouterr().out


def test_without_a_path_the_suite_writes_where_make_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--suite", "--quick", "--rows", "gate"]) == 0
    assert json.loads((tmp_path / "build" / "bench" / "suite.json").read_text())["rows"] == ["gate"]


def test_the_measured_loop_is_in_steady_state_every_request_in_every_step(tmp_path: Path) -> None:
    loop = HostLoop(8, 10, tmp_path)
    for _ in range(5):
        loop.step()
        assert [len(step.rows) for step in loop.device.launched] == [8, 8]
    assert int(loop.core.batch.num_tokens.max()) < CONTEXT + 40


@pytest.mark.parametrize("stock", [False, True], ids=["sealed", "stock"])
def test_the_measured_lives_end_and_leave_nothing(stock: bool) -> None:
    bench = Bench(stock)
    bench.lives_us(3)
    bench.hot_us(3)
    assert not bench.world.requests
    assert bench.world.older is bench.world.empty_step
    assert not bench.gate.log


def test_rows_against_a_peer_are_skipped_with_a_reason_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_process, "NEEDS", ("a_package_that_is_not_there",))
    figures = list(suite.measure(("decode", "mixed"), quick=True))
    assert [figure.verdict for figure in figures] == ["skipped", "skipped"]
    assert all("pip install a_package_that_is_not_there" in figure.skipped for figure in figures)


@pytest.mark.skipif(bool(peer_process.missing()), reason=peer_process.missing() or "there")
def test_engine_and_peer_take_turns_on_the_same_weights(tmp_path: Path) -> None:
    with PeerProcess(tmp_path) as peer:
        assert peer.ask("make", tiny=True)["num_weights"] > 0
        figures = decode.measure(True, peer, tmp_path)
        assert [figure.name for figure in figures if figure.floor is not None and figure.unit == "x"] == [
            f"{dtype} batch {batch}: / transformers generate" for dtype in ("float32", "bfloat16") for batch in (1, 8)
        ]
        assert all(figure.median and figure.median > 0 for figure in figures)
        (row, *_) = mixed.measure(True, peer, tmp_path)
        assert row.samples or "psutil" in row.skipped
        with pytest.raises(PeerError, match="no_such_dtype"):
            peer.ask("load", dtype="no_such_dtype")
    with pytest.raises(PeerError):
        peer.ask("load", dtype="float32")


def test_the_lifecycle_row_pauses_sleeps_and_wakes_a_real_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "suite.json"
    assert cli.main(["bench", "--suite", "--quick", "--rows", "lifecycle", "--json", str(path)]) == 0
    figures = {figure["name"]: figure for figure in json.loads(path.read_text(encoding="utf-8"))["figures"]}
    assert figures["memory given back / the weights' arena"]["median"] >= 0.95
    assert figures["pause and resume of an idle engine"]["num_samples"] == 5


def test_the_boundary_row_serves_the_same_load_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    assert cli.main(["bench", "--suite", "--quick", "--rows", "boundary", "--json", str(path)]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    assert [figure["floor"] for figure in figures] == [0.85, None, None]
    ratio, thread, process = (figure["median"] for figure in figures)
    assert ratio == pytest.approx(process / thread)
