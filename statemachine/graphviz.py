"""Graphviz's form of a picture, and its SVG. What leads from one state to another is one arrow with a line of text for each row.

In the SVG a state is `s_<state>`, an arrow `p_<source>_<target>_<style>`, and a row's line of text `a_e_<event>_<row>_<source>`. A row
that leads to one state from many is one arrow, from a text `f_<row>` that names them.
"""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from html import escape
from pathlib import Path

from quiesce.spec.language import Machine, Owner
from quiesce.statemachine.edges import Edge, edges

STYLES = {
    Owner.client: "bold",
    Owner.operator: "bold",
    Owner.core: "solid",
    Owner.device: "dashed",
    Owner.timer: "dotted",
    Owner.environment: "dotted",
}
"""How an edge is drawn, so that it can be told on paper, without colour."""
STYLE_LEGEND = "bold: client or operator · plain: core · dashed: device · dotted: timer or environment"
LABEL_WIDTH, LEGEND_WIDTH = 20, 110
"""Characters in a line."""
CROWD = 4
"""A row that leads to one state from so many is drawn once, with its sources written at the foot of its arrow."""
DOT_TIMEOUT_S = 20.0
INDENT = AWAY = "&#160;&#160;"
"""Keeps a label away from its own arrow."""
LOOKS = (
    "    node [shape=box, style=rounded, fontname=Helvetica, fontsize=10, margin=0.1]",
    "    edge [fontname=Helvetica, fontsize=10, arrowsize=0.7]",
)


class ToolMissing(RuntimeError):
    """A program is not installed; the text names the package that brings it."""


class Mark(StrEnum):
    """What became of a row between two versions of a table; the value is the colour."""

    added = "#1a7f37"
    removed = "#cf222e"
    changed = "#9a6700"

    @property
    def sign(self) -> str:
        """How the mark is told without colour."""
        return {Mark.added: "+", Mark.removed: "−", Mark.changed: "±"}[self]


def dot(machine: Machine, marks: Mapping[int, Mark] | None = None, spells_guards: bool = True) -> str:
    """A Graphviz digraph. Rows of one owner are drawn alike (`STYLES`); what stays stands in the state's box, long guards below.

    Args:
        marks: row -> what became of it; its text and its arrow are coloured.
        spells_guards: the long guards are written out below the picture; not needed where the table of rows stands beside it.
    """
    marks = marks or {}
    drawn = edges(machine)
    lines = [
        f"digraph {machine.name} {{",
        f"    graph [id={quoted('m_' + machine.name)}, rankdir=TB, nodesep=0.2, ranksep=0.3, fontname=Helvetica, fontsize=10, labelloc=b, labeljust=l,",
        f"           label={_left(_legend(machine, drawn if spells_guards else []))}]",
        *LOOKS,
        '    initial_mark [id="s__initial", shape=point, width=0.15, label="", tooltip="initial state"]',
    ]
    lines += [
        _node(machine, state, [edge for edge in drawn if edge.source == state and edge.stays], marks)
        for state in machine.states
    ]
    lines.append(f'    initial_mark -> {quoted("s_" + machine.initial)} [id="e__initial", style=solid]')
    arrows: dict[tuple[str, str, str, Mark | None], list[Edge]] = {}
    crowds = _crowds(drawn)
    for number, sources in crowds.items():
        names = "\n".join(wrapped(f"from {', '.join(sources)}", LABEL_WIDTH))
        lines.append(
            f'    "f_{number}" [id="f_{number}", shape=plaintext, style="", fontname="Helvetica-Oblique", label={quoted(names)}]'
        )
    for edge in drawn:
        crowd = crowds.get(edge.number, [])
        if not edge.stays and (not crowd or edge.source == crowd[0]):
            begin = f"f_{edge.number}" if crowd else f"s_{edge.source}"
            arrows.setdefault((begin, edge.target, STYLES[edge.owner], marks.get(edge.number)), []).append(edge)
    for (begin, target, style, mark), group in arrows.items():
        name = f"p_{begin[2:]}_{target}_{style}" + (f"_{mark.name}" if mark else "")
        colour = f', color="{mark.value}"' if mark else ""
        lines.append(
            f"    {quoted(begin)} -> {quoted('s_' + target)}"
            f" [id={quoted(name)}, style={style}{colour}, label=<{_table(_line(edge, mark) for edge in group)}>]"
        )
    return "\n".join([*lines, "}"]) + "\n"


def _crowds(drawn: Iterable[Edge]) -> dict[int, list[str]]:
    """Rows that lead from so many states to one that their sources are written at the foot of one arrow: row -> sources."""
    sources: dict[int, list[str]] = {}
    for edge in drawn:
        if not edge.stays:
            sources.setdefault(edge.number, []).append(edge.source)
    return {number: found for number, found in sources.items() if len(found) >= CROWD}


def _node(machine: Machine, state: str, staying: Sequence[Edge], marks: Mapping[int, Mark]) -> str:
    ending = ", peripheries=2" if state in machine.terminal else ""
    label = _table(_title(state) if line is None else _line(line, marks.get(line.number)) for line in (None, *staying))
    tooltip = quoted(machine.meanings.get(state, state))
    return f"    {quoted('s_' + state)} [id={quoted('s_' + state)}, label=<{label}>, tooltip={tooltip}{ending}]"


def _line(edge: Edge, mark: Mark | None) -> str:
    """One row of a label, with the reason of the row as its tooltip."""
    event = f"{mark.sign} {edge.row.event}" if mark else str(edge.row.event)
    whole = f"{event} {edge.guard}".rstrip()
    lines = [whole] if len(whole) <= LABEL_WIDTH else [event, *wrapped(edge.guard, LABEL_WIDTH - 2)]
    away, indents = "" if edge.stays else AWAY, ("", *[INDENT] * (len(lines) - 1))
    words = "".join(
        f'{away}{indent}{escape(part.strip())}{away}<BR ALIGN="LEFT"/>' for indent, part in zip(indents, lines, strict=True)
    )
    shown = f'<FONT COLOR="{mark.value}">{words}</FONT>' if mark else words
    tooltip = escape(edge.row.why or edge.label)
    return f'<TR><TD ID="e_{edge.row.event}_{edge.number}_{edge.source}" HREF="" TOOLTIP="{tooltip}" ALIGN="LEFT" BALIGN="LEFT">{shown}</TD></TR>'


def lines_table(lines: Iterable[str], title: str = "") -> str:
    """A label of lines that are flush left: a box's under its title, or an arrow's, which keep away from the arrow."""
    away = "" if title else AWAY
    return _table(
        [*([_title(title)] if title else []), *(f'<TR><TD ALIGN="LEFT">{away}{escape(line)}{away}</TD></TR>' for line in lines)]
    )


def _title(text: str) -> str:
    return f'<TR><TD><FONT POINT-SIZE="12"><B>{escape(text)}</B></FONT></TD></TR>'


def _table(rows: Iterable[str]) -> str:
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{"".join(rows)}</TABLE>'


def _legend(machine: Machine, drawn: Iterable[Edge]) -> list[str]:
    lines = [
        "",
        f"{machine.name}: {machine.purpose}",
        STYLE_LEGEND,
        "In a box: rows that stay in the state. Double box: terminal.",
    ]
    for number, row in {edge.number: edge.row for edge in drawn if edge.is_elided}.items():
        lines += wrapped(f"row {number}, {row.event}: {row.when}", LEGEND_WIDTH)
    return lines


def wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def quoted(text: str) -> str:
    """A double-quoted Graphviz string of one line, or of centred lines."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _left(lines: Iterable[str]) -> str:
    """A Graphviz string of lines that are flush left."""
    return '"' + "".join(quoted(line)[1:-1] + "\\l" for line in lines) + '"'


def svg(text: str) -> str:
    """Graphviz's SVG of a digraph, without the lines before `<svg`.

    Raises:
        ToolMissing: `dot` is not installed.
        subprocess.SubprocessError: it cannot draw this.
    """
    program = shutil.which("dot")
    if program is None:
        raise ToolMissing("dot is not installed; it comes with the Debian package graphviz (apt-get install graphviz)")
    done = subprocess.run(
        [program, "-Tsvg"], input=text, capture_output=True, text=True, check=True, encoding="utf-8", timeout=DOT_TIMEOUT_S
    )
    return done.stdout[done.stdout.index("<svg") :]


def draw_all(paths: Iterable[Path]) -> list[Path]:
    """Draws every `.dot` of these files as an `.svg` beside it; the paths of the drawings.

    Raises:
        ToolMissing: `dot` is not installed.
    """
    drawn = []
    for path in paths:
        if path.suffix == ".dot":
            drawn.append(path.with_suffix(".svg"))
            drawn[-1].write_text(svg(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    return drawn
