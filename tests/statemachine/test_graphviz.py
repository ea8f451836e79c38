"""What Graphviz is given shows every row with its reason, and what it draws can be read: nothing covers anything."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from quiesce.spec import MACHINES
from quiesce.spec.language import Machine
from quiesce.statemachine.edges import edges
from quiesce.statemachine.graphviz import CROWD, STYLES, UNVISITED, Mark, ToolMissing, dot, of_hits, of_marks, svg
from tests.statemachine.geometry import Picture, laid_out
from tests.statemachine.tools import require_tool

BY_NAME = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
ARROW = re.compile(
    r'^    "[sf]_(\w+)" -> "s_(\w+)" \[id="p_\w+", style=(\w+)(?:, color="[^"]+")?, label=<(.*)>\]$', re.MULTILINE
)
BOX = re.compile(r'^    "s_(\w+)" \[id="s_\1", label=<(.*)>, tooltip="', re.MULTILINE)
LINE = re.compile(r'<TD ID="e_(\w+)" HREF="" TOOLTIP="([^"]*)" ALIGN="LEFT" BALIGN="LEFT">(.*?)</TD>')


def lines_of(label: str) -> list[tuple[str, str, str]]:
    """(id, reason, text) of the rows in a label."""
    found = []
    for identity, reason, cell in LINE.findall(label):
        text = unescape(re.sub(r"<[^>]+>", " ", cell)).replace("\N{NO-BREAK SPACE}", " ")
        found.append((identity, unescape(reason), " ".join(text.split())))
    return found


def drawn_once(machine: Machine) -> dict[int, list[str]]:
    """Rows that lead from so many states that they are drawn once: row -> sources."""
    sources: dict[int, list[str]] = {}
    for edge in edges(machine):
        if not edge.stays:
            sources.setdefault(edge.number, []).append(edge.source)
    return {number: found for number, found in sources.items() if len(found) >= CROWD}


@BY_NAME
def test_every_row_is_a_line_of_an_arrow_or_a_box_with_its_reason(machine: Machine) -> None:
    text, crowds = dot(machine), drawn_once(machine)
    drawn = [(source, target, style, *line) for source, target, style, label in ARROW.findall(text) for line in lines_of(label)]
    stays = [(state, state, "", *line) for state, label in BOX.findall(text) for line in lines_of(label)]
    wanted = [
        (
            str(edge.number) if edge.number in crowds and not edge.stays else edge.source,
            edge.target,
            "" if edge.stays else STYLES[edge.owner],
            f"{edge.row.event}_{edge.number}_{edge.source}",
            edge.row.why,
            edge.label,
        )
        for edge in edges(machine)
        if edge.stays or edge.source == crowds.get(edge.number, [edge.source])[0]
    ]
    assert sorted([*drawn, *stays]) == sorted(wanted)
    for number, sources in crowds.items():
        foot = text.split(f'"f_{number}" [')[1].split('label="')[1].split('"')[0]
        assert re.findall(r"\w+", foot.replace("\\n", " ")) == ["from", *sources]


@BY_NAME
def test_two_states_are_joined_by_one_arrow_of_each_kind(machine: Machine) -> None:
    arrows = [(source, target, style) for source, target, style, _ in ARROW.findall(dot(machine))]
    assert len(arrows) == len(set(arrows))


@BY_NAME
def test_a_guard_too_long_for_an_arrow_is_written_out_in_the_legend(machine: Machine) -> None:
    text = dot(machine)
    legend = text[text.index("label=") : text.index("    node [")].replace("\\l  ", " ")
    assert all(f"row {edge.number}, {edge.row.event}: {edge.row.when}" in legend for edge in edges(machine) if edge.is_elided)


@BY_NAME
def test_no_box_and_no_label_covers_another_and_no_arrow_runs_through_a_label(machine: Machine) -> None:
    picture = laid_out(dot(machine))
    crowds = (f"f_{number}" for number in drawn_once(machine))
    assert set(picture.states) == {"initial_mark", *(f"s_{state}" for state in machine.states), *crowds}
    assert picture.overlaps() == []
    assert picture.crossed_labels() == []


def test_what_covers_another_is_found() -> None:
    crowded = 'digraph g { graph [layout=neato]; a [pos="0,0!"]; b [pos="0.1,0!"] }'
    assert laid_out(crowded).overlaps() == [("a", "b")]
    through = Picture(labels={"word": (0, 0, 50, 10)}, arrows={"beside": [(60, 5)], "through": [(25, 5)]})
    assert through.crossed_labels() == [("word", "through")]


@BY_NAME
def test_the_svg_keeps_the_names_and_the_reasons(machine: Machine) -> None:
    require_tool("dot", "graphviz")
    drawn = svg(dot(machine))
    assert drawn.startswith("<svg ")
    assert all(f'id="s_{state}"' in drawn for state in machine.states)
    crowds = drawn_once(machine)
    for edge in edges(machine):
        if edge.stays or edge.source == crowds.get(edge.number, [edge.source])[0]:
            assert f'id="a_e_{edge.row.event}_{edge.number}_{edge.source}"' in drawn


def test_a_marked_row_has_its_own_arrow_its_colour_and_its_sign() -> None:
    machine = next(machine for machine in MACHINES if machine.name == "request")
    text = dot(machine, of_marks({3: Mark.added, 7: Mark.changed}))
    marked = [(source, target, lines_of(label)) for source, target, _, label in ARROW.findall(text) if Mark.added in label]
    assert [(source, target, [line[2] for line in lines]) for source, target, lines in marked] == [
        ("running", "retracting", ["+ preempt [row 3]"])
    ]
    staying = [line[2] for _, label in BOX.findall(text) for line in lines_of(label) if line[0].startswith("abort_7_")]
    assert staying == ["± abort [not abort_mark]"] * 4
    assert f'color="{Mark.added}"' in text


def test_without_graphviz_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="Debian package graphviz"):
        svg(dot(MACHINES[0]))


def test_what_was_never_taken_is_red_and_says_so_also_without_colour() -> None:
    machine = next(machine for machine in MACHINES if machine.name == "request")
    text = dot(machine, of_hits({(0, "absent"): 12}))
    assert text.count("×12") == 1
    lines = [line for line in text.splitlines() if "never" in line]
    assert lines
    assert all(UNVISITED in line or '"f_' in line for line in lines)
    everything = {(edge.number, edge.source): 1 for edge in edges(machine)}
    assert UNVISITED not in dot(machine, of_hits(everything))
