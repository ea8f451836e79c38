"""A difference as Markdown for a pull request, and as coloured pictures of before and after."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from shutil import which

from quiesce.spec.language import Machine, Row
from quiesce.statemachine.difference import Change, Difference, MachineDifference, RowChange
from quiesce.statemachine.edges import Edge, edges
from quiesce.statemachine.graphviz import Mark, dot, of_marks, svg
from quiesce.statemachine.markdown import code, folded, table


def markdown(found: Difference) -> str:
    """What changed, machine by machine, with Mermaid pictures of before and after."""
    if not found:
        return f"Nothing changed in the lifecycles between {code(found.before)} and {code(found.after)}.\n"
    blocks = [
        f"# What changed in the lifecycles\n\nFrom {code(found.before)} to {code(found.after)}. "
        "+ came, − went, ± changed; rows are counted from 0.",
        _summary(found),
        *(_machine(one) for one in found.machines),
    ]
    if found.others:
        blocks.append("## What the machines share\n\n" + "\n".join(_change(change) for change in found.others))
    return "\n\n".join(blocks) + "\n"


def _summary(found: Difference) -> str:
    rows = []
    for one in found.machines:
        counts = [sum(_mark(row.before, row.after) is mark for row in one.rows) for mark in Mark]
        others = sum(change.kind != "cell" for change in one.others)
        rows.append([code(one.name), *map(str, counts), str(len(one.swapped)), str(others), str(len(one.others) - others)])
    if not rows:
        return "No machine changed."
    return table(
        ("machine", "rows +", "rows −", "rows ±", "tried in another order", "states, events, variables", "cells"), rows
    )


def _mark(before: object | None, after: object | None) -> Mark:
    return Mark.added if before is None else Mark.removed if after is None else Mark.changed


def _machine(one: MachineDifference) -> str:
    lines = [_row(row) for row in one.rows]
    lines += [f"- ± rows {first} and {second} are tried in the other order" for first, second in one.swapped]
    lines += [_change(change) for change in one.others]
    return "\n\n".join([f"## {one.name}", "\n".join(lines), *_pictures(one)])


def _row(change: RowChange) -> str:
    if change.before is None or change.after is None:
        number, row = change.place
        return f"- {_mark(change.before, change.after).sign} row {number}: {_told(row)}"
    (old, _), (new, row) = change.before, change.after
    number_now = f"row {new}" if old == new else f"row {old}, now {new}"
    head = f"- {Mark.changed.sign} {number_now}: {code(row.event)}, {_move(row)}"
    return "\n".join([head, *(f"  - {name}: {_was_now(was, now)}" for name, was, now in change.fields)])


def _told(row: Row) -> str:
    """A whole row in a line."""
    parts = [f"{code(row.event)}, {_move(row)}"]
    if row.when != "true":
        parts.append(f"when {code(row.when)}")
    parts += [
        f"{word} {', '.join(map(code, texts))}"
        for word, texts in (("sets", row.sets), ("also", row.also), ("effects", row.effects))
        if texts
    ]
    return f"{'; '.join(parts)}: {row.why}"


def _move(row: Row) -> str:
    return f"{', '.join(map(code, row.source))} → {'stays' if row.target is None else code(row.target)}"


def _change(change: Change) -> str:
    head = f"- {_mark(change.before, change.after).sign} {change.kind} {code(change.name) if change.name else ''}".rstrip()
    if change.fields:
        return "\n".join([head, *(f"  - {name}: {_was_now(was, now)}" for name, was, now in change.fields)])
    if change.before is not None and change.after is not None:
        return f"{head}: {_was_now(change.before, change.after)}"
    return f"{head}: {change.after if change.before is None else change.before}"


def _was_now(was: str, now: str) -> str:
    return f"{_word(was)} → {_word(now)}"


def _word(text: str) -> str:
    return "nothing" if not text else text if "`" in text else code(text)


# ---- pictures ---------------------------------------------------------------------------------------------------------------


def marks(one: MachineDifference) -> tuple[dict[int, Mark], dict[int, Mark]]:
    """Row -> what becomes of it, in the table before; and what became of it, in the table after."""
    before = {row.before[0]: _mark(row.before, row.after) for row in one.rows if row.before}
    after = {row.after[0]: _mark(row.before, row.after) for row in one.rows if row.after}
    return before, after


def _pictures(one: MachineDifference) -> list[str]:
    if not one.rows:
        return []
    found = []
    for title, machine, marked in zip(("Before", "After"), (one.before, one.after), marks(one), strict=True):
        if machine is not None:
            found.append(folded(f"{title}: {one.name}", f"```mermaid\n{flowchart(machine, marked).rstrip()}\n```"))
    return found


def flowchart(machine: Machine, marked: Mapping[int, Mark]) -> str:
    """A Mermaid flowchart with the marked rows in colour and with their guards; the others are thin, by their events' names."""
    drawn = edges(machine)
    lines = ["flowchart TB"]
    for state in machine.states:
        staying = [
            _marked_line(edge, marked[edge.number])
            for edge in drawn
            if edge.source == state and edge.stays and edge.number in marked
        ]
        lines.append(f'    s_{state}["{"<br>".join([str(state), *staying])}"]')
    arrows: dict[tuple[str, str, Mark | None], list[Edge]] = {}
    for edge in drawn:
        if not edge.stays:
            arrows.setdefault((edge.source, edge.target, marked.get(edge.number)), []).append(edge)
    for (source, target, mark), group in arrows.items():
        texts = [_marked_line(edge, mark) if mark else str(edge.row.event) for edge in group]
        lines.append(f'    s_{source} {"==>" if mark else "-->"}|"{"<br>".join(dict.fromkeys(texts))}"| s_{target}')
    for number, (_, _, mark) in enumerate(arrows):
        if mark:
            lines.append(f"    linkStyle {number} stroke:{mark},color:{mark},stroke-width:3px")
    return "\n".join(lines) + "\n"


def _marked_line(edge: Edge, mark: Mark) -> str:
    return escape(f"{mark.sign} {edge.label}", quote=True)


def write_pictures(found: Difference, folder: Path) -> list[Path]:
    """Writes `<machine>.before.dot` and `.after.dot` of what changed, and their `.svg` where Graphviz is installed; the paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in found.machines:
        for word, machine, marked in zip(("before", "after"), (one.before, one.after), marks(one), strict=True):
            if machine is None:
                continue
            text = dot(machine, of_marks(marked))
            texts = {"dot": text} | ({"svg": svg(text)} if which("dot") else {})
            for kind, content in texts.items():
                path = folder / f"{one.name}.{word}.{kind}"
                path.write_text(content, encoding="utf-8", newline="\n")
                paths.append(path)
    return sorted(paths)
