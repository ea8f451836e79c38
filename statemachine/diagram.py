"""The pictures and tables of review, drawn from the declaration: the same bytes whoever draws them, on any day.

Per machine a Mermaid diagram, a Graphviz diagram (`graphviz.py`) and a table; for all together what they share (`coupling.py`). Rows
are counted from 0, as a trace counts them: `[row 7]` in a picture is line 7 of the table and `"row": 7` in a trace. Rows that leave the
state as it is are listed beside their state instead of being drawn as loops.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from quiesce.spec import MACHINES
from quiesce.spec.check import decided
from quiesce.spec.language import Event, Fairness, Ignored, Machine, Refused, Row
from quiesce.statemachine import coupling
from quiesce.statemachine.edges import Edge, edges
from quiesce.statemachine.graphviz import dot, wrapped
from quiesce.statemachine.markdown import code, table

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
    lines = [line for edge in found if edge.stays for line in wrapped(f"stays on {edge.label}", 60)]
    for edge in found:
        if edge.is_elided:
            lines += wrapped(f"row {edge.number}: {edge.row.when}", 60)
    return lines


# ---- Markdown ---------------------------------------------------------------------------------------------------------------


def markdown_table(machine: Machine) -> str:
    """The whole machine as tables: its states and variables, its rows, and every cell that is ignored or refused."""
    blocks = [f"# {machine.name}\n\n{introduction(machine)}"]
    for title, columns, rows in tables(machine):
        heading = f"## {title}\n\n" if title in ("Rows", "Ignored", "Refused") else ""
        if rows or heading:
            blocks.append(heading + table(columns, rows))
    return "\n\n".join(blocks) + "\n"


def introduction(machine: Machine) -> str:
    """What it is, where it is declared, and its instances."""
    text = f"{machine.purpose} Declared in `{machine.file}`; rows are counted from 0, as in a trace."
    return f"{text}\n\nInstances: {', '.join(code(name) for name in machine.instances)}." if machine.instances else text


def tables(machine: Machine) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, columns and rows of each table, the cells in Markdown; in this order: States, Variables, Rows, Ignored, Refused."""
    events = {event.name: event for event in machine.events}
    states = [[code(state) + _mark(machine, state), machine.meanings[state]] for state in machine.states]
    variables = [[code(name), ", ".join(code(value) for value in values)] for name, values in machine.variables.items()]
    ignored, refused = _answers(machine)
    columns = ("row", "event", "owner", "from → to", "guard", "sets, also", "effects", "fairness", "why")
    return [
        ("States", ("state", "meaning"), states),
        ("Variables", ("variable", "values, the initial one first"), variables),
        ("Rows", columns, [_row_cells(number, row, events[row.event]) for number, row in enumerate(machine.rows)]),
        ("Ignored", ("event", "in", "reason"), ignored),
        ("Refused", ("event", "in", "when", "error", "what to do first"), refused),
    ]


def _mark(machine: Machine, state: str) -> str:
    marks = [word for word, holds in (("initial", state == machine.initial), ("terminal", state in machine.terminal)) if holds]
    return f" ({', '.join(marks)})" if marks else ""


def _row_cells(number: int, row: Row, event: Event) -> list[str]:
    sources = ", ".join(code(source) for source in row.source)
    target = "stays" if row.target is None else code(row.target)
    consequences = [
        *row.sets,
        *(f"also {joint}" for joint in row.also),
        *(["the newer step becomes the older"] if row.shifts else []),
    ]
    return [
        str(number),
        code(row.event) + (" (boundary)" if event.boundary else ""),
        str(event.owner),
        f"{sources} → {target}",
        "" if row.when == "true" else code(row.when),
        "<br>".join(code(text) for text in consequences),
        "<br>".join(code(text) for text in row.effects),
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
            where = ", ".join(code(state) for state in states)
            if isinstance(entry, Ignored):
                ignored.append([code(event.name), where, entry.reason])
            else:
                when = "" if entry.when == "true" else code(entry.when)
                refused.append([code(event.name), where, when, code(entry.error), entry.how_to])
    return ignored, refused


def _entries(machine: Machine, event: str) -> Iterator[tuple[Ignored | Refused, list[str]]]:
    cells = decided(machine, event)
    entries: list[Ignored | Refused] = [*machine.refused, *machine.ignored]
    for entry in entries:
        states = [state for state, found in cells.items() if any(other is entry for other in found)]
        if states:
            yield entry, states


def write_all(folder: Path) -> list[Path]:
    """Writes `<machine>.mmd`, `.dot` and `.md` for every machine and for the coupling; returns the paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"coupling.mmd": coupling.mermaid(), "coupling.dot": coupling.dot(), "coupling.md": coupling.markdown()}
    for machine in MACHINES:
        texts |= {
            f"{machine.name}.mmd": mermaid(machine),
            f"{machine.name}.dot": dot(machine),
            f"{machine.name}.md": markdown_table(machine),
        }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return sorted(folder / name for name in texts)
