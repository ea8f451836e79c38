"""A trace that an engine wrote is a path of the model; one in which anything was changed is refused, with the line and the reason."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quiesce.proofs.trace_path import NoPath, follow, follow_file
from quiesce.stateful.fuzz.corpus import PROGRAMS, parse
from quiesce.stateful.fuzz.runs import run
from quiesce.stateful.fuzz.schedule import Schedule
from quiesce.statemachine.trace import read

Lines = list[dict[str, Any]]
RARE = {
    "preempt",
    "withdraw_sleep",
    "withdraw_update",
    "undrain",
    "commit_keep",
    "rollback",
    "load_failed",
    "restore_failed",
    "device_fault",
}


@pytest.fixture(scope="module")
def written(ledger_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Programs of clients, operators and faults; what each engine wrote."""
    folder = tmp_path_factory.mktemp("traces")
    paths = {}
    for number, (name, text) in enumerate(PROGRAMS.items()):
        paths[name] = folder / f"{number}.ndjson"
        run(ledger_folder, Schedule(tuple(parse(text)), (), {"trace_path": str(paths[name])}))
    return paths


def test_what_programs_make_an_engine_do_is_a_path_of_the_model(written: dict[str, Path]) -> None:
    followed = [follow_file(path) for path in written.values()]
    assert sum(one.num_actions for one in followed) > 3000
    moves = {(entry["machine"], entry["event"]) for path in written.values() for entry in read(path) if "machine" in entry}
    assert {event for _, event in moves} >= RARE
    assert ("engine", "fail") in moves


@pytest.fixture(scope="module")
def lines(written: dict[str, Path]) -> Lines:
    """A trace with a sleep, an update and several requests in it."""
    longest = max(written.values(), key=lambda path: path.stat().st_size)
    return list(read(longest))


def found(lines: Lines, **wanted: object) -> int:
    """The first line that says all this."""
    return next(n for n, line in enumerate(lines) if all(line.get(key) == value for key, value in wanted.items()))


def refusal(lines: Lines) -> NoPath:
    with pytest.raises(NoPath) as refused:
        follow(lines)
    return refused.value


def changed(lines: Lines, place: int, **values: object) -> Lines:
    other = copy.deepcopy(lines)
    other[place].update(values)
    return other


def test_the_trace_itself_is_followed_to_its_end(lines: Lines) -> None:
    follower = follow(lines)
    assert follower.path.value("engine.state") in ("stopped", "absent")
    assert not follower.slots


@pytest.mark.parametrize(
    "event", ["submit", "admit", "start", "plan", "launch", "land", "retire", "reap", "ready", "hold", "stop"]
)
def test_without_one_line_it_is_no_path(lines: Lines, event: str) -> None:
    place = found(lines, event=event)
    refused = refusal(lines[:place] + lines[place + 1 :])
    assert refused.line >= place + 2


def test_a_joint_move_that_is_left_out_is_missed_where_it_should_be(lines: Lines) -> None:
    """The token's line follows the engine's in the same instant, and so do those of all that moves with it, in whatever order."""
    place = found(lines, machine="pause_token", event="hold")
    refused = refusal(lines[:place] + lines[place + 1 :])
    assert place + 2 <= refused.line <= place + 5
    assert re.search(r"pause_token\[\w+\]\.hold", refused.reason)


@pytest.mark.parametrize(
    ("event", "target"), [("admit", "running"), ("land", "retired"), ("start", "admitted"), ("reap", "draining")]
)
def test_another_state_is_refused_at_its_line(lines: Lines, event: str, target: str) -> None:
    place = found(lines, event=event)
    refused = refusal(changed(lines, place, to=target))
    assert refused.line == place + 2
    assert f"to {target}" in refused.reason


def test_another_row_is_refused_at_its_line(lines: Lines) -> None:
    place = found(lines, machine="request", event="reap")
    row = lines[place]["row"]
    other = refusal(changed(lines, place, row=row + 1 if row == 20 else row - 1))
    assert other.line == place + 2


def test_two_lines_that_changed_places_are_refused(lines: Lines) -> None:
    place = found(lines, event="launch")
    before = max(n for n, line in enumerate(lines[:place]) if line.get("machine") == "step" and line["event"] == "plan")
    swapped = [*lines[:before], lines[place], *lines[before + 1 : place], lines[before], *lines[place + 1 :]]
    assert refusal(swapped).line == before + 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: line.pop("row"), "no row"),
        (lambda line: line.update(machine="moon"), "no machine is called 'moon'"),
        (lambda line: line.update(event="sing"), "has no event sing"),
        (lambda line: line.update(key=10**6), "never there"),
    ],
)
def test_a_line_that_says_nothing_sensible_is_refused(
    lines: Lines, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    place = found(lines, machine="request", event="admit")
    other = copy.deepcopy(lines)
    change(other[place])
    refused = refusal(other)
    assert refused.line == place + 2
    assert words in refused.reason


def test_a_step_that_names_who_is_not_there_is_refused(lines: Lines) -> None:
    place = next(n for n, line in enumerate(lines) if line.get("event") == "plan" and "data" in line)
    assert "was never submitted" in refusal(changed(lines, place, data={"requests": [10**6]})).reason
    assert "names no request" in refusal(changed(lines, place, data={"requests": []})).reason


def test_an_event_that_carried_something_else_is_refused(lines: Lines) -> None:
    def is_held(place: int) -> bool:
        return (
            "mode" in lines[place].get("data", {})
            and lines[place]["machine"] == "engine"
            and lines[place + 1].get("event") == "hold"
        )

    leader = next(place for place in range(len(lines)) if is_held(place))
    mode = {"keep": "wait", "wait": "abort", "abort": "keep"}[lines[leader + 1]["to"]]
    refused = refusal(changed(lines, leader, data={**lines[leader]["data"], "mode": mode}))
    assert refused.line in (leader + 2, leader + 3)


def test_the_other_machines_lines_are_held_against_their_tables(lines: Lines) -> None:
    place = found(lines, machine="stream", event="ack")
    assert "was opening" in refusal(lines[:place] + [line for line in lines[place:] if line is not lines[place]]).reason
    assert "stream has no row 0" in refusal(changed(lines, place, row=0)).reason


def test_a_device_step_is_told_once_and_only_of_a_step_that_landed(lines: Lines) -> None:
    place = next(n for n, line in enumerate(lines) if "step" in line)
    assert "already" in refusal([*lines[: place + 1], lines[place], *lines[place + 1 :]]).reason
    assert "has not landed" in refusal(changed(lines, place, step=10**6)).reason


def test_a_trace_of_another_declaration_is_not_followed(lines: Lines, tmp_path: Path) -> None:
    path = tmp_path / "other.ndjson"
    path.write_text("\n".join([json.dumps({"quiesce_trace": 2, "spec": "0" * 16}), *map(json.dumps, lines)]), encoding="utf-8")
    with pytest.raises(ValueError, match="written under the declaration 0000"):
        follow_file(path)
