"""The drawings show every row, agree with the objects of `transitions`, and are the same bytes whoever draws them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transitions.extensions import GraphMachine

from quiesce.spec import MACHINES
from quiesce.spec.language import Machine
from quiesce.statemachine.diagram import markdown_table, mermaid, write_all
from quiesce.statemachine.edges import edges
from quiesce.statemachine.machine import sealed_machines
from tests.statemachine.tables_of import table_rows
from tests.statemachine.tools import require_tool

BY_NAME = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
MERMAID_EDGE = re.compile(r"^\s+(\w+) --> (\w+) : (\w+)( \[(?P<guard>.*)\])?$", re.MULTILINE)
MERMAID_STAYS = re.compile(r"^\s+stays on (\w+)", re.MULTILINE)


def drawn_moves(text: str) -> Counter[tuple[str, str, str]]:
    return Counter((found[1], found[2], found[3]) for found in MERMAID_EDGE.finditer(text))


def leaving(machine: Machine) -> Counter[tuple[str, str, str]]:
    return Counter((edge.source, edge.target, str(edge.row.event)) for edge in edges(machine) if not edge.stays)


def draw_in_another_process(folder: Path, seed: str) -> dict[str, bytes]:
    code = "import sys, pathlib; from quiesce.statemachine.diagram import write_all; write_all(pathlib.Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], env={**os.environ, "PYTHONHASHSEED": seed, "TZ": f"UTC-{seed}"}, check=True
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_with_different_hash_seeds_draw_the_same_bytes(tmp_path: Path) -> None:
    first, second = draw_in_another_process(tmp_path / "1", "1"), draw_in_another_process(tmp_path / "2", "2")
    assert first == second
    assert sorted(first) == sorted(
        [f"{name}.{kind}" for name in (*(machine.name for machine in MACHINES), "coupling") for kind in ("mmd", "dot", "md")]
    )
    assert all(text.endswith(b"\n") and b"\r" not in text and b" object at 0x" not in text for text in first.values())


def test_writing_returns_what_was_written_and_overwrites_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "engine.mmd").write_text("old")
    paths = write_all(tmp_path)
    assert paths == sorted(tmp_path.iterdir())
    assert (tmp_path / "engine.mmd").read_text(encoding="utf-8") == mermaid(MACHINES[0])


@BY_NAME
def test_every_row_is_drawn_once_for_each_source(machine: Machine) -> None:
    drawn = edges(machine)
    assert len(drawn) == sum(len(row.source) for row in machine.rows)
    assert {edge.number for edge in drawn} == set(range(len(machine.rows)))
    text = mermaid(machine)
    assert drawn_moves(text) == leaving(machine)
    assert len(MERMAID_STAYS.findall(text)) == len([edge for edge in drawn if edge.stays])


@pytest.mark.parametrize("name", sorted(sealed_machines()))
def test_mermaid_shows_the_transitions_of_the_machine_that_gates_the_engine(name: str) -> None:
    machine = sealed_machines()[name]
    moves, stays = Counter[tuple[str, str, str]](), 0
    for event in machine.events.values():
        for source, found in event.transitions.items():
            for transition in found:
                if transition.dest in (None, source):
                    stays += 1
                else:
                    moves[source, str(transition.dest), event.name] += 1
    assert drawn_moves(mermaid(machine.table)) == moves
    assert len(MERMAID_STAYS.findall(mermaid(machine.table))) == stays


@BY_NAME
def test_mermaid_shows_the_edges_that_the_graph_machine_of_transitions_shows(machine: Machine) -> None:
    configs = [
        {
            "trigger": str(row.event),
            "source": [str(state) for state in row.source],
            "dest": None if row.target is None else str(row.target),
        }
        for row in machine.rows
    ]
    model: Any = SimpleNamespace()
    options: Any = {"states": [str(state) for state in machine.states], "transitions": configs, "initial": str(machine.initial)}
    GraphMachine(model=model, auto_transitions=False, graph_engine="mermaid", **options)
    theirs = set()
    for source, target, label in re.findall(r"^\s*(\w+) --> (\w+): (.+)$", model.get_graph().source, re.MULTILINE):
        theirs |= {(source, target, part.strip()) for part in label.split("|") if source != target}
    assert theirs == set(leaving(machine)) == set(drawn_moves(mermaid(machine)))


@BY_NAME
def test_mermaid_marks_the_first_and_the_last_states_and_names_all(machine: Machine) -> None:
    lines = mermaid(machine).splitlines()
    assert lines[1] == "stateDiagram-v2"
    assert lines.count(f"    [*] --> {machine.initial}") == 1
    assert [line for line in lines if line.endswith("--> [*]")] == [f"    {state} --> [*]" for state in machine.terminal]
    assert set(lines) >= {f"    {state}" for state in machine.states}
    assert sum(line.startswith("    note right of ") for line in lines) == lines.count("    end note")


@BY_NAME
def test_a_label_is_short_and_what_is_elided_is_written_out_beside_the_state(machine: Machine) -> None:
    text = mermaid(machine)
    notes = re.sub(r"\n\s+", " ", text)
    for edge in edges(machine):
        assert len(edge.label) <= 60
        assert not set(edge.label) & set(':;{}"\n')
        if edge.is_elided:
            assert f"row {edge.number}: {edge.row.when}" in notes
    assert max(len(line) for line in text.splitlines()[1:]) <= 100


@BY_NAME
def test_the_table_has_every_row_with_all_it_says(machine: Machine) -> None:
    rows = table_rows(markdown_table(machine), "Rows")
    assert [int(cells[0]) for cells in rows] == list(range(len(machine.rows)))
    for cells, row in zip(rows, machine.rows, strict=True):
        event = machine.event(row.event)
        assert len(cells) == 9
        assert cells[1].split()[0] == f"`{row.event}`"
        assert ("boundary" in cells[1]) == event.boundary
        assert cells[2] == event.owner
        assert cells[3] == ", ".join(f"`{state}`" for state in row.source) + " → " + (
            f"`{row.target}`" if row.target else "stays"
        )
        assert cells[4] == ("" if row.when == "true" else f"`{row.when}`")
        assert all(text in cells[5] for text in (*row.sets, *row.also))
        assert all(text in cells[6] for text in row.effects)
        assert cells[8] == row.why


@BY_NAME
def test_the_table_gives_every_cell_that_is_not_a_move_with_its_reason(machine: Machine) -> None:
    text = markdown_table(machine)
    moving = {(str(state), str(row.event)) for row in machine.rows for state in row.source}
    answered = set()
    for heading in ("Ignored", "Refused"):
        for cells in table_rows(text, heading):
            assert cells[-1]
            answered |= {(state.strip("` "), cells[0].strip("`")) for state in cells[1].split(",")}
    assert moving | answered == {(str(state), str(event.name)) for state in machine.states for event in machine.events}
    assert all(entry.reason in text for entry in machine.ignored)
    assert all(entry.how_to in text for entry in machine.refused)


def test_a_missing_tool_is_a_skip_that_names_its_package_and_a_failure_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QUIESCE_REQUIRE_TOOLS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_tool is not installed; it comes with the Debian package nothing"):
        require_tool("no_such_tool", "nothing")
    monkeypatch.setenv("QUIESCE_REQUIRE_TOOLS", "1")
    with pytest.raises(pytest.fail.Exception, match="Debian package nothing"):
        require_tool("no_such_tool", "nothing")
    assert Path(require_tool("sh", "dash")).exists()
