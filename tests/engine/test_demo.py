"""The demo runs, its books balance, and books that do not balance are reported."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from rich.console import Console

from quiesce.engine import demo
from quiesce.engine.demo import Leaving, Show, plan, problems_of
from quiesce.engine.demo_view import frame, plain_line
from quiesce.engine.outputs import Blocks, Status
from quiesce.proofs.trace_path import follow_file
from quiesce.statemachine import trace

COMMAND = [sys.executable, "-m", "quiesce.engine.cli", "demo"]
QUIET = Status(
    engine="running",
    admission="accept",
    memory=MappingProxyType({"weights": "resident", "kv_cache": "resident"}),
    weights=(0, "stable"),
    pause_owners=MappingProxyType({}),
    operation=None,
    requests=MappingProxyType({}),
    sessions=0,
    streams=0,
    steps_in_flight=0,
    blocks=Blocks(total=96, free=40, cached=56, held=0, fenced=0),
    epoch=1,
    accepted=10,
    rejected=0,
    finished=MappingProxyType({"stop": 6, "length": 1, "abort": 3, "error": 0}),
)
SEEN = {"stop": 6, "length": 1, "abort": 1}


@dataclass(frozen=True)
class Ran:
    status: int
    lines: str
    errors: str
    out: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    out = tmp_path_factory.mktemp("demo")
    done = subprocess.run([*COMMAND, "--out", str(out)], capture_output=True, text=True, timeout=110)
    return Ran(done.returncode, done.stdout, done.stderr, out)


def numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    assert found, text
    return [int(number) for number in found.groups()]


def test_the_demo_ends_well_and_says_nothing_to_stderr(ran: Ran) -> None:
    assert (ran.status, ran.errors) == (0, ""), ran.lines
    assert "\x1b" not in ran.lines
    assert "NOT RIGHT" not in ran.lines


def test_the_printed_books_balance(ran: Ran) -> None:
    text = ran.lines
    accepted, *ended, live, refused = numbers(
        r"(\d+) accepted = (\d+) stop \+ (\d+) length \+ (\d+) abort \+ (\d+) error; (\d+) live, (\d+) refused", text
    )
    asked = sum(len(client.turns) for client in plan())
    assert (accepted, live, refused, ended[-1]) == (asked, 0, 0, 0)
    assert accepted == sum(ended)
    seen, left = numbers(r"(\d+) answers seen to their end .*, (\d+) left without waiting", text)
    assert (seen, left) == (asked - 4, 4)
    assert ended[2] == left + 3
    total, free, cached, held, fenced = numbers(r"(\d+) = (\d+) free \+ (\d+) cached \+ (\d+) held \+ (\d+) fenced", text)
    assert (total, held, fenced) == (free + cached, 0, 0)
    assert numbers(r"(\d+) open, (\d+) steps in flight", text) == [0, 0]


def test_who_left_and_who_was_aborted_is_told(ran: Ran) -> None:
    told = [leaving for leaving in Leaving if leaving is not Leaving.not_at_all for _ in re.findall(leaving.value, ran.lines)]
    assert sorted(leaving.name for leaving in told) == ["abort"] * 3 + ["cancel"] * 2 + ["close", "drop"]


def test_most_answers_are_right(ran: Ran) -> None:
    right, complete = numbers(r"(\d+) of (\d+) complete answers are the tables' own", ran.lines)
    assert complete > 50
    assert right >= 0.8 * complete


def test_the_trace_tells_one_end_for_each_request(ran: Ran) -> None:
    entries = list(trace.read(ran.out / "trace.ndjson"))
    begun = [entry["id"] for entry in entries if entry.get("machine") == "request" and entry["event"] == "submit"]
    ended = [entry["id"] for entry in entries if entry.get("machine") == "request" and entry["to"] == "ended"]
    assert sorted(begun) == sorted(ended)
    assert len(set(begun)) == len(begun) == sum(len(client.turns) for client in plan())


@pytest.mark.parametrize("name", ["trace.ndjson", "second_act.ndjson"])
def test_each_act_is_a_path_of_the_model(ran: Ran, name: str) -> None:
    assert follow_file(ran.out / name).num_actions > 200


def test_the_second_act_loses_repeats_and_invents_no_token_and_gives_memory_back(ran: Ran) -> None:
    (streams, tokens) = numbers(r"(\d+) streams, ([\d]+) tokens: none lost, none repeated, none invented", ran.lines)
    assert tokens == streams * 96
    assert re.search(
        r"sleep\(level=1\) .* engine sleeping; weights released, kv_cache released; kept 6; \d+\.\d MB given back", ran.lines
    )
    assert re.search(r"wake_up\(\['weights'\]\) .* engine partially_awake", ran.lines)
    assert re.search(r"tokens 0 to (\d+) by version 0, tokens \1 to 96 by version 'tuned'", ran.lines)
    moved = {(entry["machine"], entry["to"]) for entry in trace.read(ran.out / "second_act.ndjson") if "machine" in entry}
    assert moved >= {("engine", "sleeping"), ("engine", "partially_awake"), ("weights", "updating"), ("operation", "done")}


def test_the_evidence_is_where_the_demo_says(ran: Ran) -> None:
    chrome = json.loads((ran.out / "trace.chrome.json").read_text(encoding="utf-8"))
    assert {event["ph"] for event in chrome["traceEvents"]} >= {"M", "X", "b", "e"}
    assert (ran.out / "diagrams" / "engine.mmd").is_file()


def test_an_interrupted_demo_exits_130_without_a_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        while not running.stdout.readline().startswith("ready"):
            assert running.poll() is None
        os.kill(running.pid, signal.SIGINT)
        output, errors = running.communicate(timeout=110)
    assert (running.returncode, errors) == (130, "quiesce demo: interrupted\n")
    assert "Balance" not in output


# ---- the plan and the books -----------------------------------------------------------------------------------------------------


def test_the_plan_is_the_same_every_time() -> None:
    assert plan() == plan()
    assert plan(1) != plan(2)


def test_four_clients_leave_and_three_are_aborted_in_the_middle_of_an_answer() -> None:
    clients = plan()
    assert len(clients) == 16
    cut = [(client, turn) for client in clients for turn in client.turns if turn.leaving is not Leaving.not_at_all]
    assert sorted(turn.leaving.name for _, turn in cut) == ["abort"] * 3 + ["cancel"] * 2 + ["close", "drop"]
    for client, turn in cut:
        assert turn.params.ignore_eos
        assert turn.params.max_tokens is not None
        assert 0 < turn.after < turn.params.max_tokens / 10
        assert turn.leaving is Leaving.abort or turn is client.turns[-1]


def test_balanced_books_have_no_problem() -> None:
    assert problems_of(QUIET, SEEN, 2) == []


BLOCKS = QUIET.blocks
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a request is lost": ({"accepted": 11}, "11 requests were accepted, 10 have ended"),
    "a request is live": ({"requests": {"running": 1}, "accepted": 11}, "1 are live"),
    "a request drains": ({"requests": {"draining": 1}}, "1 requests still wait for their last step"),
    "a block is held": ({"blocks": replace(BLOCKS, free=39, held=1)}, "1 held"),
    "a block is fenced": ({"blocks": replace(BLOCKS, free=39, fenced=1)}, "1 fenced"),
    "a block is lost": ({"blocks": replace(BLOCKS, free=39)}, "39 free + 56 cached"),
    "a stream is open": ({"streams": 1}, "1 streams are open"),
    "a step is in flight": ({"steps_in_flight": 1}, "1 steps in flight"),
    "an end nobody saw": ({"finished": {"stop": 7, "length": 1, "abort": 2, "error": 0}, "accepted": 11}, "have ended"),
    "an end seen twice": ({"finished": {"stop": 5, "length": 1, "abort": 4, "error": 0}}, "clients saw"),
    "an end too many": ({"finished": {"stop": 7, "length": 1, "abort": 3, "error": 0}, "accepted": 11}, "clients saw"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_balance_is_reported(name: str) -> None:
    changes, text = BROKEN[name]
    assert text in "; ".join(problems_of(replace(QUIET, **changes), SEEN, 2))


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (110, 32), (240, 60)])
def test_the_live_view_fits_the_terminal(width: int, height: int) -> None:
    clients = plan()
    for client in clients:
        client.doing, client.question, client.text = "reading", client.turns[0].question, "word [bold] " * 40
    show = Show(clients, news=["one", "two", "three"])
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    lines = console.render_lines(frame(QUIET, show, width, height), pad=False)
    assert len(lines) <= max(height, 12)
    assert max(sum(segment.cell_length for segment in line) for line in lines) <= width
    assert "[bold]" in "".join(segment.text for line in lines for segment in line)


def test_the_plain_line_says_what_the_live_view_shows() -> None:
    status = replace(QUIET, requests=MappingProxyType({"running": 3, "admitted": 2}))
    line = plain_line(status, Show(plan()))
    for part in ("running", "2 admitted, 3 running", "0 held, 0 fenced, 56 cached, 40 free", "tokens/s"):
        assert part in line
    assert demo.MAX_TOKENS == 48
