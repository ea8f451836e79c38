"""The profile of a real run: spans nest, and the device does one step at a time."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from quiesce.engine import cli
from quiesce.engine.bench.profile import DEVICE, HOST, LAUNCH, PASS, Ring

Span = dict[str, Any]
SLACK_US = 1e-3
"""A microsecond is a float here; times are whole nanoseconds."""


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Span]:
    path = tmp_path_factory.mktemp("profile") / "made" / "profile.json"
    assert cli.main(["bench", "--quick", "--profile", str(path)]) == 0
    found: list[Span] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return found


def spans(events: list[Span], track: int) -> list[Span]:
    return sorted((e for e in events if e["ph"] == "X" and e["tid"] == track), key=lambda e: (e["ts"], -e["dur"]))


def end_of(span: Span) -> float:
    return float(span["ts"] + span["dur"])


def test_tracks_have_names(events: list[Span]) -> None:
    named = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert named == {HOST: "host", DEVICE: "device"}


def test_parts_lie_inside_their_pass_one_after_the_other_and_leave_nothing_out(events: list[Span]) -> None:
    host = spans(events, HOST)
    assert host[0]["name"] == "pass"
    passes = [span for span in host if span["name"] == "pass"]
    parts = [span for span in host if span["name"] != "pass"]
    assert len(passes) > 10
    assert {"commit", "schedule", "launch", "account", "deliver"} == {span["name"] for span in parts}
    for first, second in pairwise(passes):
        assert end_of(first) <= second["ts"] + SLACK_US
    assert end_of(parts[-1]) <= end_of(passes[-1]) + SLACK_US
    for whole in passes:
        inside = [p for p in parts if whole["ts"] - SLACK_US <= p["ts"] and end_of(p) <= end_of(whole) + SLACK_US]
        assert sum(part["dur"] for part in inside) == pytest.approx(whole["dur"], abs=0.01)
        for first, second in pairwise(inside):
            assert end_of(first) <= second["ts"] + SLACK_US


def test_the_device_does_one_step_after_the_other_in_the_order_of_their_numbers(events: list[Span]) -> None:
    steps = spans(events, DEVICE)
    assert [span["args"]["step"] for span in steps] == list(range(1, len(steps) + 1))
    for first, second in pairwise(steps):
        assert end_of(first) <= second["ts"] + SLACK_US


def test_a_step_begins_after_its_launch_has_begun_and_lands_in_a_pass_after_its_end(events: list[Span]) -> None:
    launches = {span["args"]["step"]: span for span in spans(events, HOST) if span["name"] == "launch"}
    arrows = {e["id"]: e for e in events if e["ph"] == "f"}
    passes = [span for span in spans(events, HOST) if span["name"] == "pass"]
    for step in spans(events, DEVICE):
        number = step["args"]["step"]
        assert launches[number]["ts"] <= step["ts"] + SLACK_US
        assert end_of(step) <= arrows[number]["ts"] + SLACK_US
        assert any(one["ts"] - SLACK_US <= arrows[number]["ts"] <= end_of(one) + SLACK_US for one in passes)
        assert step["args"]["rows"] >= 1
        assert step["args"]["tokens"] >= step["args"]["rows"]


def test_a_full_ring_forgets_the_oldest() -> None:
    ring = Ring(3)
    for number in range(5):
        ring.add(PASS, number, number + 1, number)
    assert [number for _, _, _, number in ring.spans()] == [2, 3, 4]
    half = Ring(3)
    half.add(LAUNCH, 1, 2, 7)
    assert half.spans() == [(LAUNCH, 1, 2, 7)]
