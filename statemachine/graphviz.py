"""Graphviz's form of a picture, and its SVG. What leads from one state to another is one arrow with a line of text for each row.

In the SVG a state is `s_<state>`, an arrow `p_<source>_<target>_<style>`, and a row's line of text `a_e_<event>_<row>_<source>`. A row
that leads to one state from many is one arrow, from a text `f_<row>` that names them.
"""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
VISITED, UNVISITED = "#1f2328", "#cf222e"
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


@dataclass(frozen=True, slots=True)
class Paint:
    """How a row is shown from one of its states: in which colour, and how that is told without colour."""

    colour: str
    before: str = ""
    after: str = ""


Paints = Callable[[Edge], Paint | None]


def of_marks(marks: Mapping[int, Mark]) -> Paints:
    """What became of each row."""
    return lambda edge: Paint(marks[edge.number].value, before=f"{marks[edge.number].sign} ") if edge.number in marks else None


def of_hits(hits: Mapping[tuple[int, str], int]) -> Paints:
    """How often each row was taken from each of its states; what never was is red."""

    def paint(edge: Edge) -> Paint:
        count = hits.get((edge.number, edge.source), 0)
        return Paint(VISITED if count else UNVISITED, after=f" ×{count:,}" if count else " never")

    return paint


def dot(machine: Machine, paints: Paints | None = None, spells_guards: bool = True) -> str:
    """A Graphviz digraph. Rows of one owner are drawn alike (`STYLES`); what stays stands in the state's box, long guards below.

    Args:
        paints: how rows are coloured, their text and their arrow.
        spells_guards: the long guards are written out below the picture; not needed where the table of rows stands beside it.
    """
    paint = paints or (lambda edge: None)
    drawn = edges(machine)
    lines = [
        f"digraph {machine.name} {{",
        f"    graph [id={quoted('m_' + machine.name)}, rankdir=TB, nodesep=0.2, ranksep=0.3, fontname=Helvetica, fontsize=10, labelloc=b, labeljust=l,",
        f"           label={_left(_legend(machine, drawn if spells_guards else []))}]",
        *LOOKS,
        '    initial_mark [id="s__initial", shape=point, width=0.15, label="", tooltip="initial state"]',
    ]
    lines += [
        _node(machine, state, [edge for edge in drawn if edge.source == state and edge.stays], paint)
        for state in machine.states
    ]
    lines.append(f'    initial_mark -> {quoted("s_" + machine.initial)} [id="e__initial", style=solid]')
    arrows: dict[tuple[str, str, str, str], list[Edge]] = {}
    crowds = _crowds(drawn)
    for number, crowd in crowds.items():
        names = "\n".join(wrapped(f"from {', '.join(edge.source + _after(paint(edge)) for edge in crowd)}", LABEL_WIDTH))
        lines.append(
            f'    "f_{number}" [id="f_{number}", shape=plaintext, style="", fontname="Helvetica-Oblique", label={quoted(names)}]'
        )
    shades: dict[Edge, Paint | None] = {}
    for edge in drawn:
        crowd = crowds.get(edge.number, [])
        if not edge.stays and (not crowd or edge is crowd[0]):
            begin = f"f_{edge.number}" if crowd else f"s_{edge.source}"
            shade = shades[edge] = _together([paint(other) for other in crowd]) if crowd else paint(edge)
            arrows.setdefault((begin, edge.target, STYLES[edge.owner], shade.colour if shade else ""), []).append(edge)
    for (begin, target, style, shade_of), group in arrows.items():
        name = f"p_{begin[2:]}_{target}_{style}" + (f"_{shade_of.lstrip('#')}" if shade_of else "")
        colour = f', color="{shade_of}"' if shade_of else ""
        lines.append(
            f"    {quoted(begin)} -> {quoted('s_' + target)}"
            f" [id={quoted(name)}, style={style}{colour}, label=<{_table(_line(edge, shades[edge]) for edge in group)}>]"
        )
    return "\n".join([*lines, "}"]) + "\n"


def _crowds(drawn: Iterable[Edge]) -> dict[int, list[Edge]]:
    """Rows that lead from so many states to one that their sources are written at the foot of one arrow: row -> its edges."""
    found: dict[int, list[Edge]] = {}
    for edge in drawn:
        if not edge.stays:
            found.setdefault(edge.number, []).append(edge)
    return {number: crowd for number, crowd in found.items() if len(crowd) >= CROWD}


def _after(paint: Paint | None) -> str:
    return paint.after if paint else ""


def _together(paints: Sequence[Paint | None]) -> Paint | None:
    """One arrow for many: what is red for one of them is red; each says its own at the foot."""
    shown = [paint for paint in paints if paint is not None]
    if not shown:
        return None
    worst = next((paint for paint in shown if paint.colour == UNVISITED), shown[0])
    return Paint(worst.colour, worst.before)


def _node(machine: Machine, state: str, staying: Sequence[Edge], paint: Paints) -> str:
    ending = ", peripheries=2" if state in machine.terminal else ""
    label = _table(_title(state) if line is None else _line(line, paint(line)) for line in (None, *staying))
    tooltip = quoted(machine.meanings.get(state, state))
    return f"    {quoted('s_' + state)} [id={quoted('s_' + state)}, label=<{label}>, tooltip={tooltip}{ending}]"


def _line(edge: Edge, paint: Paint | None) -> str:
    """One row of a label, with the reason of the row as its tooltip."""
    event = f"{paint.before}{edge.row.event}{paint.after}" if paint else str(edge.row.event)
    whole = f"{event} {edge.guard}".rstrip()
    lines = [whole] if len(whole) <= LABEL_WIDTH else [event, *wrapped(edge.guard, LABEL_WIDTH - 2)]
    away, indents = "" if edge.stays else AWAY, ("", *[INDENT] * (len(lines) - 1))
    words = "".join(
        f'{away}{indent}{escape(part.strip())}{away}<BR ALIGN="LEFT"/>' for indent, part in zip(indents, lines, strict=True)
    )
    shown = f'<FONT COLOR="{paint.colour}">{words}</FONT>' if paint else words
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
