"""The row that streams over HTTP runs, and every answer it counts is whole."""

from __future__ import annotations

from quiesce.engine.bench import suite


def test_http_is_measured_beside_this_process() -> None:
    here, *streamed = suite.measure(("http",), quick=True)
    assert [figure.unit for figure in (here, *streamed)] == ["tokens/s", "tokens/s", "x", "tokens/s", "x"]
    for rate, ratio in (streamed[:2], streamed[2:]):
        assert ratio.median == rate.samples[0] / here.samples[0]
        assert min(here.samples + rate.samples) > 0
