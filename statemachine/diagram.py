"""The pictures and tables of review, drawn from the declaration: the same bytes whoever draws them, on any day.

Per machine a Mermaid diagram, a Graphviz diagram and a table; for all together what they share. Rows are counted from 0, as a trace
counts them: `[row 7]` in a picture is line 7 of the table and `"row": 7` in a trace. Rows that leave the state as it is are listed
beside their state instead of being drawn as loops. In Graphviz's SVG a state is `s_<state>`, an edge `e_<event>_<row>_<source>`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quiesce.spec import FACTS, HELD_MODE_POLICIES, MACHINES, PASS_ORDER
from quiesce.spec.check import decided
from quiesce.spec.language import Event, Fairness, Ignored, Machine, Owner, Refused, Row

LONGEST_GUARD = 32
"""A longer guard is elided to its row's number, and written out beside the state it leaves."""
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


@dataclass(frozen=True, slots=True)
class Edge:
    """One row, from one of its sources. `target` is the state after the move, also where the row stays."""

    number: int
    row: Row
    source: str
    target: str
    owner: Owner

    @property
    def stays(self) -> bool:
        return self.source == self.target

    @property
    def is_elided(self) -> bool:
        return len(self.row.when) > LONGEST_GUARD

    @property
    def guard(self) -> str:
        """The guard in square brackets as a picture shows it; empty where there is none."""
        if self.row.when == "true":
            return ""
        return f"[row {self.number}]" if self.is_elided else f"[{self.row.when}]"

    @property
    def label(self) -> str:
        return f"{self.row.event} {self.guard}".rstrip()


def edges(machine: Machine) -> list[Edge]:
    """Every row, once for each of its sources, in the order of the table."""
    owners = {event.name: event.owner for event in machine.events}
    return [
        Edge(number, row, str(source), str(source if row.target is None else row.target), owners[row.event])
        for number, row in enumerate(machine.rows)
        for source in row.source
    ]


# ---- Mermaid ----------------------------------------------------------------------------------------------------------------


def mermaid(machine: Machine) -> str:
    """A `stateDiagram-v2`: one edge for each row and source, what stays or is elided in a note beside its state."""
    drawn = edges(machine)
    lines = [f"%% {machine.name}: {machine.purpose} Drawn from {machine.file}; rows are counted from 0.", "stateDiagram-v2"]
    lines += [f"    {state}" for state in machine.states]
    lines.append(f"    [*] --> {machine.initial}")
    lines += [f"    {edge.source} --> {edge.target} : {edge.label}" for edge in drawn if not edge.stays]
    lines += [f"    {state} --> [*]" for state in machine.terminal]
    for state in machine.states:
        notes = _notes(edge for edge in drawn if edge.source == state)
        if notes:
            lines += [f"    note right of {state}", *(f"        {line}" for line in notes), "    end note"]
    return "\n".join(lines) + "\n"


def _notes(leaving: Iterable[Edge]) -> list[str]:
    """What is written beside a state: the rows that stay in it, then the guards too long for an edge."""
    found = list(leaving)
    lines = [line for edge in found if edge.stays for line in _wrapped(f"stays on {edge.label}", 60)]
    for edge in found:
        if edge.is_elided:
            lines += _wrapped(f"row {edge.number}: {edge.row.when}", 60)
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


# ---- Graphviz ---------------------------------------------------------------------------------------------------------------


def dot(machine: Machine) -> str:
    """A Graphviz digraph. Edges of one owner are drawn alike (`STYLES`); what stays stands in the state's box, long guards below."""
    drawn = edges(machine)
    lines = [
        f"digraph {machine.name} {{",
        f"    graph [id={_quoted('m_' + machine.name)}, rankdir=TB, nodesep=0.6, ranksep=0.7, fontname=Helvetica, fontsize=10, labelloc=b, labeljust=l,",
        f"           label={_quoted(_legend(machine, drawn), left=True)}]",
        "    node [shape=box, style=rounded, fontname=Helvetica, fontsize=12, margin=0.15]",
        "    edge [fontname=Helvetica, fontsize=10, arrowsize=0.7]",
        '    initial_mark [id="s__initial", shape=point, width=0.15, label="", tooltip="initial state"]',
    ]
    lines += [
        _node(machine, state, [edge for edge in drawn if edge.source == state and edge.stays]) for state in machine.states
    ]
    lines.append(f'    initial_mark -> {_quoted("s_" + machine.initial)} [id="e__initial", style=solid]')
    for edge in drawn:
        if not edge.stays:
            label = "\n".join(f" {line} " for line in (edge.row.event, *_wrapped(edge.guard, 24)))
            lines.append(
                f"    {_quoted('s_' + edge.source)} -> {_quoted('s_' + edge.target)}"
                f" [id={_quoted(_edge_id(edge))}, label={_quoted(label)}, style={STYLES[edge.owner]}, tooltip={_quoted(edge.row.why)}]"
            )
    return "\n".join([*lines, "}"]) + "\n"


def _node(machine: Machine, state: str, staying: list[Edge]) -> str:
    text = "\n".join([state, *(line for edge in staying for line in _wrapped(edge.label, 36))])
    ending = ", peripheries=2" if state in machine.terminal else ""
    return f"    {_quoted('s_' + state)} [id={_quoted('s_' + state)}, label={_quoted(text)}, tooltip={_quoted(machine.meanings[state])}{ending}]"


def _edge_id(edge: Edge) -> str:
    return f"e_{edge.row.event}_{edge.number}_{edge.source}"


def _legend(machine: Machine, drawn: list[Edge]) -> str:
    lines = [f"{machine.name}: {machine.purpose}", STYLE_LEGEND, "In a box: rows that stay in the state. Double box: terminal."]
    elided = {edge.number: edge.row for edge in drawn if edge.is_elided}
    for number, row in elided.items():
        lines += _wrapped(f"row {number}, {row.event}: {row.when}", 120)
    return "\n".join(lines)


def _quoted(text: str, left: bool = False) -> str:
    """A double-quoted Graphviz string; lines are centred, or flush left."""
    line_end = "\\l" if left else "\\n"
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", line_end)
    return f'"{escaped}{line_end if left else ""}"'


# ---- Markdown ---------------------------------------------------------------------------------------------------------------


def markdown_table(machine: Machine) -> str:
    """The whole machine as tables: its states and variables, its rows, and every cell that is ignored or refused."""
    events = {event.name: event for event in machine.events}
    states = [[_code(state) + _mark(machine, state), machine.meanings[state]] for state in machine.states]
    variables = [[_code(name), ", ".join(_code(value) for value in values)] for name, values in machine.variables.items()]
    rows = [_row_cells(number, row, events[row.event]) for number, row in enumerate(machine.rows)]
    ignored, refused = _answers(machine)
    blocks = [f"# {machine.name}\n\n{machine.purpose} Declared in `{machine.file}`; rows are counted from 0, as in a trace."]
    if machine.instances:
        blocks.append(f"Instances: {', '.join(_code(name) for name in machine.instances)}.")
    blocks.append(_table(("state", "meaning"), states))
    if variables:
        blocks.append(_table(("variable", "values, the initial one first"), variables))
    columns = ("row", "event", "owner", "from → to", "guard", "sets, also", "effects", "fairness", "why")
    blocks.append("## Rows\n\n" + _table(columns, rows))
    blocks.append("## Ignored\n\n" + _table(("event", "in", "reason"), ignored))
    blocks.append("## Refused\n\n" + _table(("event", "in", "when", "error", "what to do first"), refused))
    return "\n\n".join(blocks) + "\n"


def _mark(machine: Machine, state: str) -> str:
    marks = [word for word, holds in (("initial", state == machine.initial), ("terminal", state in machine.terminal)) if holds]
    return f" ({', '.join(marks)})" if marks else ""


def _row_cells(number: int, row: Row, event: Event) -> list[str]:
    sources = ", ".join(_code(source) for source in row.source)
    target = "stays" if row.target is None else _code(row.target)
    consequences = [
        *row.sets,
        *(f"also {joint}" for joint in row.also),
        *(["the newer step becomes the older"] if row.shifts else []),
    ]
    return [
        str(number),
        _code(row.event) + (" (boundary)" if event.boundary else ""),
        str(event.owner),
        f"{sources} → {target}",
        "" if row.when == "true" else _code(row.when),
        "<br>".join(_code(text) for text in consequences),
        "<br>".join(_code(text) for text in row.effects),
        _fairness(event),
        row.why,
    ]


def _fairness(event: Event) -> str:
    if event.fairness is Fairness.none:
        return ""
    return f"{event.fairness}: {event.mechanism}" if event.mechanism else str(event.fairness)


def _answers(machine: Machine) -> tuple[list[list[str]], list[list[str]]]:
    """Ignored and refused cells, one line an entry; states left over by other entries are written out, never as "elsewhere"."""
    ignored, refused = [], []
    for event in machine.events:
        for entry, states in _entries(machine, event.name):
            where = ", ".join(_code(state) for state in states)
            if isinstance(entry, Ignored):
                ignored.append([_code(event.name), where, entry.reason])
            else:
                when = "" if entry.when == "true" else _code(entry.when)
                refused.append([_code(event.name), where, when, _code(entry.error), entry.how_to])
    return ignored, refused


def _entries(machine: Machine, event: str) -> Iterator[tuple[Ignored | Refused, list[str]]]:
    cells = decided(machine, event)
    entries: list[Ignored | Refused] = [*machine.refused, *machine.ignored]
    for entry in entries:
        states = [state for state, found in cells.items() if any(other is entry for other in found)]
        if states:
            yield entry, states


def _code(text: str) -> str:
    return f"`{text}`"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(columns)
    lines = [names, ["---"] * len(names), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def coupling_markdown() -> str:
    """What the machines share: the order of the pass, the facts, the moves made jointly, and what a held mode means for requests."""
    pass_order = [[str(place), _code(f"{machine}.{event}")] for place, (machine, event) in enumerate(PASS_ORDER, 1)]
    facts = [[_code(fact.name), fact.of or "the engine", _code(fact.when), fact.sentence] for fact in FACTS]
    joints = [
        [_code(f"{machine.name}.{row.event}"), str(number), "<br>".join(_code(joint) for joint in row.also)]
        for machine in MACHINES
        for number, row in enumerate(machine.rows)
        if row.also
    ]
    policies = [
        [_code(policy.mode), policy.running, policy.admitted, policy.received, policy.new_call] for policy in HELD_MODE_POLICIES
    ]
    blocks = [
        "# What the machines share",
        "## Order of the pass\n\nThe core takes one call, fires these to a fixpoint in this order, then plans and launches.\n\n"
        + _table(("place", "event"), pass_order),
        "## Facts\n\n" + _table(("fact", "about", "holds when", "in words"), facts),
        "## Moves made in the same instant\n\nAll or nothing.\n\n" + _table(("event", "row", "moves"), joints),
        "## What a held mode means\n\n" + _table(("held mode", "running", "admitted", "received", "new call"), policies),
    ]
    return "\n\n".join(blocks) + "\n"


def write_all(folder: Path) -> list[Path]:
    """Writes `<machine>.mmd`, `.dot` and `.md` for every machine, and `coupling.md`; returns the paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"coupling.md": coupling_markdown()}
    for machine in MACHINES:
        texts |= {
            f"{machine.name}.mmd": mermaid(machine),
            f"{machine.name}.dot": dot(machine),
            f"{machine.name}.md": markdown_table(machine),
        }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return sorted(folder / name for name in texts)
