"""What a measurement gives: medians, spread, and whether the floor was reached."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from quiesce.engine.bench import result
from quiesce.engine.bench.result import Figure, percentile, ratio

FIGURE_KEYS = {
    "row", "name", "unit", "median", "quartile_low", "quartile_high", "num_samples", "floor", "aim", "better", "verdict", "skipped",
}  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "at_most", "verdict"),
    [((5.0,), True, "missed"), ((3.0,), True, "met"), ((1.0,), True, "aim"), ((1.0,), False, "missed"), ((3.0,), False, "met"), ((9.0,), False, "aim"), ((), True, "skipped")],
)  # fmt: skip
def test_a_figure_says_whether_it_reaches_its_floor_or_its_aim(samples: tuple[float, ...], at_most: bool, verdict: str) -> None:
    floor, aim = (3.0, 2.0) if at_most else (3.0, 4.0)
    assert Figure("row", "name", "us", samples, floor, aim, at_most).verdict == verdict


def test_a_figure_without_a_floor_is_shown_and_not_judged() -> None:
    assert Figure("row", "name", "us", (1.0,)).verdict == ""


def test_one_slow_sample_moves_neither_median_nor_quartiles_much() -> None:
    figure = Figure("row", "name", "us", (1.0, 2.0, 3.0, 4.0, 1000.0))
    assert figure.median == 3.0
    assert figure.quartiles == (2.0, 4.0)


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio("row", "name", (1.0, 2.0), (2.0, 2.0), 1.0).samples == (2.0, 1.0)


def test_percentiles_are_samples_that_were_seen() -> None:
    samples = [float(value) for value in range(1, 101)]
    assert [percentile(samples, percent) for percent in (50, 90, 99)] == [50.0, 90.0, 99.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None


def test_the_table_shows_floors_verdicts_and_why_a_row_was_skipped() -> None:
    figures = [
        Figure("a", "fast", "us", (1.0,), 3.0, 2.0),
        Figure("b", "peer", "x", floor=3.0, at_most=False, skipped="needs psutil"),
    ]
    out = io.StringIO()
    Console(file=out, width=140).print(result.table(figures))
    text = out.getvalue()
    assert "<= 3" in text
    assert ">= 3" in text
    assert "aim" in text
    assert "peer: needs psutil" in text


def test_figures_are_written_as_json_with_the_documented_keys(tmp_path: Path) -> None:
    path = tmp_path / "made" / "figures.json"
    result.write(
        path, {"figures": [Figure("a", "fast", "us", (1.0,)).as_json(), Figure("b", "none", "x", skipped="why").as_json()]}
    )
    for found in json.loads(path.read_text())["figures"]:
        assert set(found) == FIGURE_KEYS
