"""The load: the same for the same seed, and counted right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quiesce.engine import cli
from quiesce.engine.bench.serving import AT_ONCE, Load, Seen, arrivals, document, prompts

SERVING_KEYS = {
    "quiesce_bench", "kind", "load", "machine", "duration_s", "completed", "failed", "errors", "total_input_tokens", "total_output_tokens",
    "request_throughput", "output_throughput", "total_token_throughput", "balanced",
    *(f"{kind}_{name}_ms" for kind in ("mean", "p50", "p90", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
}  # fmt: skip


def test_the_same_seed_asks_the_same_and_another_asks_otherwise() -> None:
    load = Load(num_prompts=3, input_len=5, request_rate=10.0)
    assert prompts(load, 100) == prompts(load, 100)
    assert prompts(load, 100) != prompts(Load(num_prompts=3, input_len=5, seed=1), 100)
    assert arrivals(load) == arrivals(load)
    assert all(3 <= token < 100 for prompt in prompts(load, 100) for token in prompt)


def test_arrivals_come_at_the_asked_rate_or_all_at_once() -> None:
    due = arrivals(Load(num_prompts=2000, request_rate=50.0))
    assert due == sorted(due)
    assert 1999 / due[-1] == pytest.approx(50.0, rel=0.1)
    assert set(arrivals(Load(num_prompts=5, request_rate=AT_ONCE))) == {0.0}


def test_tokens_that_come_together_share_their_gap() -> None:
    seen = Seen(0.0)
    seen.note(1.0, 1)
    seen.note(3.0, 2)
    assert (seen.first_s, seen.last_s, seen.num_tokens, seen.gaps_s) == (1.0, 3.0, 3, [1.0, 1.0])


def test_figures_count_what_was_answered_and_name_what_failed() -> None:
    good, bad = Seen(0.0), Seen(0.0, error="QueueFull: full")
    good.note(0.1, 1)
    good.note(0.3, 2)
    found = document(Load(num_prompts=2, input_len=4), 2.0, [good, bad])
    assert (found["completed"], found["failed"], found["errors"]) == (1, 1, ["QueueFull: full"])
    assert (found["total_input_tokens"], found["total_output_tokens"], found["output_throughput"]) == (4, 3, 1.5)
    assert found["p50_ttft_ms"] == pytest.approx(100)
    assert found["mean_tpot_ms"] == found["p50_itl_ms"] == pytest.approx(100)
    assert found["load"]["request_rate"] is None


def test_the_shipped_model_is_measured_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    arguments = ["bench", "--quick", "--concurrency", "2", "--request-rate", "500", "--seed", "3", "--json", str(path)]
    assert cli.main(arguments) == 0
    found = json.loads(path.read_text())
    assert set(found) == SERVING_KEYS
    assert (found["completed"], found["failed"], found["balanced"]) == (8, 0, True)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (8 * 16, 8 * 8)
    assert 0 < found["p50_ttft_ms"] <= found["p99_e2el_ms"]
    assert "Output token throughput (tok/s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--num-prompts", "0"], ["--request-rate", "0"], ["--request-rate", "nan"], ["--concurrency", "0"], ["--suite", "--rows", "nothing"], ["--suite", "--profile", "x"]], ids=str
)  # fmt: skip
def test_a_load_that_cannot_be_is_refused_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
