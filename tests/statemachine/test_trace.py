"""A trace is read as it was written, says which declaration it belongs to, and opens in a viewer of Chrome traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from quiesce.spec.vocabulary import Mode
from quiesce.statemachine import trace
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.records import RequestRecord
from quiesce.statemachine.trace import Trace, chrome_trace, header, read, spec_hash
from tests.statemachine.worlds import open_world


def record_a_run(path: Path | None = None, capacity: int = 10_000) -> Trace:
    """Two requests served, one aborted while it runs, and one device step."""
    world, gate, written = open_world(), Gate(), Trace(path, capacity)
    requests = [RequestRecord(world, key, f"r{key}") for key in (1, 2)]
    now_s = 0.0
    for number, event in enumerate(("submit", "admit", "start", "abort", "aborted", "reap")):
        for request in requests:
            gate.fire(request, event)
        now_s += 0.001
        written.transitions(now_s, number, gate.log)
        gate.log.clear()
    written.step(0.0041, 4, 7, 0.00305, 0.00395, 2, 19)
    written.close()
    return written


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trace.ndjson"
    written = record_a_run(path)
    assert list(read(path)) == list(written.entries)
    assert len(written.entries) == 13
    assert written.entries[0] == {
        "t": 0.001, "pass": 0, "machine": "request", "id": "r1", "key": 1, "event": "submit", "from": "absent", "to": "received", "row": 0,
    }  # fmt: skip
    assert written.entries[-1] == {
        "t": 0.0041,
        "pass": 4,
        "step": 7,
        "began": 0.00305,
        "ended": 0.00395,
        "rows": 2,
        "tokens": 19,
    }


def test_a_line_says_what_its_event_carried_and_a_batch_that_stays_the_same_is_said_once() -> None:
    world, gate, written = open_world(), Gate(), Trace()
    request = RequestRecord(world, 1, "r1")
    for event in ("submit", "admit", "start"):
        gate.fire(request, event)
    batch = (request,)
    for number in (1, 2):
        gate.fire(world.new_step(number), "plan", {"requests": batch})
        gate.fire(world.older if number == 1 else world.newer, "launch")
    gate.fire(world.engine, "pause", {"owner": "user", "mode": Mode.keep})
    written.transitions(0.0, 1, gate.log)
    carried = [(entry["event"], entry.get("data")) for entry in written.entries][3:]
    assert carried == [
        ("plan", {"requests": [1]}), ("launch", None), ("plan", None), ("launch", None),
        ("pause", {"owner": "user", "mode": "keep"}), ("hold", {"mode": "keep"}),
    ]  # fmt: skip


def test_a_trace_file_is_one_json_object_a_line_behind_a_header(tmp_path: Path) -> None:
    path = tmp_path / "trace.ndjson"
    record_a_run(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == header() == {"quiesce_trace": 2, "spec": spec_hash()}
    assert len(lines) == 14


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    written = record_a_run(tmp_path / "trace.ndjson")
    written.close()
    written.step(1.0, 1, 1, 0.0, 1.0, 1, 1)
    assert len(list(read(tmp_path / "trace.ndjson"))) == 13


@pytest.mark.parametrize("first", ["", "{}", '{"quiesce_trace": 1, "spec": "x"}', '{"t": 1}'])
def test_what_is_no_trace_of_this_version_is_refused(tmp_path: Path, first: str) -> None:
    path = tmp_path / "other.ndjson"
    path.write_text(first + "\n" if first else "", encoding="utf-8")
    with pytest.raises(ValueError, match="not a quiesce trace of version 2"):
        list(read(path))


def test_in_memory_the_last_entries_are_kept_and_in_the_file_all(tmp_path: Path) -> None:
    path = tmp_path / "trace.ndjson"
    written = record_a_run(path, capacity=4)
    everything = list(read(path))
    assert len(everything) == 13
    assert list(written.entries) == everything[-4:]


def test_the_hash_of_the_declaration_is_the_same_in_every_process() -> None:
    code = "from quiesce.statemachine.trace import spec_hash; print(spec_hash())"
    told = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert told == {spec_hash()}


@pytest.mark.parametrize("part", ["MACHINES", "FACTS", "PASS_ORDER"])
def test_the_hash_changes_with_any_part_of_the_declaration(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    before = spec_hash()
    monkeypatch.setattr(trace, part, getattr(trace, part)[1:])
    assert spec_hash() != before


def chrome_events(written: Trace) -> list[dict[str, Any]]:
    whole = json.loads(json.dumps(chrome_trace(written.entries)))
    assert set(whole) == {"traceEvents", "displayTimeUnit"}
    events: list[dict[str, Any]] = whole["traceEvents"]
    return events


def test_a_chrome_trace_names_its_threads_and_uses_the_documented_phases() -> None:
    events = chrome_events(record_a_run())
    assert Counter(event["ph"] for event in events) == {"M": 2, "i": 12, "b": 8, "e": 8, "X": 1}
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["core", "device"]
    assert all({"pid", "tid", "ph", "name"} <= set(event) for event in events)
    assert all(event["ts"] >= 0 for event in events if event["ph"] != "M")


def test_a_device_step_is_a_slice_on_the_devices_thread_in_microseconds() -> None:
    (step,) = (event for event in chrome_events(record_a_run()) if event["ph"] == "X")
    assert (step["name"], step["tid"], step["args"]) == ("step 7", 2, {"rows": 2, "tokens": 19})
    assert step["ts"] == pytest.approx(3050)
    assert step["dur"] == pytest.approx(900)


def test_the_states_of_a_request_are_slices_that_open_and_close_in_turn() -> None:
    events = chrome_events(record_a_run())
    for name in ("r1", "r2"):
        told = [
            (event["ph"], event["name"], event["ts"])
            for event in events
            if event["ph"] in "be" and event["id"].split(" #")[0] == name
        ]
        states = ["received", "admitted", "running", "draining"]
        assert [(ph, state) for ph, state, _ in told] == [(ph, state) for state in states for ph in "be"]
        assert [ts for _, _, ts in told] == sorted(ts for _, _, ts in told)
        assert all(ended == began for (_, _, ended), (_, _, began) in zip(told[1:-1:2], told[2::2], strict=True))


def test_a_request_still_alive_leaves_exactly_its_present_state_open() -> None:
    written = record_a_run()
    entries = [entry for entry in written.entries if entry.get("event") != "reap"]
    phases = Counter((event["ph"], event["name"]) for event in chrome_trace(entries)["traceEvents"] if event["ph"] in "be")
    assert phases["b", "draining"] == 2
    assert phases["e", "draining"] == 0


def test_a_trace_that_begins_in_mid_life_closes_nothing_it_has_not_opened() -> None:
    tail = list(record_a_run().entries)[-5:]
    opened = 0
    for event in chrome_trace(tail)["traceEvents"]:
        opened += {"b": 1, "e": -1}.get(event["ph"], 0)
        assert opened >= 0
