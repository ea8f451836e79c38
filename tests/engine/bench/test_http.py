"""The row that streams over HTTP runs, and every answer it counts is whole."""

from __future__ import annotations

from quiesce.engine.bench import suite


def test_http_is_measured_beside_this_process() -> None:
    here, through, ratio = suite.measure(("http",), quick=True)
    assert {figure.unit for figure in (here, through)} == {"tokens/s"}
    assert ratio.median is not None
    assert ratio.median == through.samples[0] / here.samples[0]
    assert min(here.samples + through.samples) > 0
