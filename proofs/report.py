"""The report for reviewers, made from `Evidence` and the tables alone: `REPORT.md`, and the same with pictures as `report.html`.

    python -m quiesce.proofs.report EVIDENCE.json FOLDER

The same evidence gives the same bytes. What a run did not do is said where it would stand.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from quiesce.proofs import composed, report_findings, report_verdict
from quiesce.proofs.document import Block, Folded, Picture, Report, Section, Table, Text, table, to_markdown
from quiesce.proofs.evidence import Evidence
from quiesce.proofs.report_html import to_html
from quiesce.proofs.tool_versions import tool_versions
from quiesce.spec import FACTS, MACHINES
from quiesce.spec.language import Machine
from quiesce.statemachine import coupling, diagram, graphviz
from quiesce.statemachine.difference_report import flowchart
from quiesce.statemachine.markdown import code

TITLE: Final = "Quiesce: what is proved of its lifecycles"


def build(evidence: Evidence, tools: Mapping[str, str], date: str = "", view: composed.View | None = None) -> Report:
    """The report.

    Args:
        tools: name -> version of what judged.
        date: of the run; left out if empty, so that two reports of the same evidence are the same.
        view: engine, memory and weights together, as explored; said to be missing if None.
    """
    return Report(
        TITLE,
        (
            report_verdict.verdict(evidence, tools, date),
            report_findings.properties(evidence),
            Section("Machines", (Text("Each as it is declared: the engine runs these rows, the judges above judged them."),),
                    tuple(_machine(machine, evidence) for machine in MACHINES)),
            _together(view),
            report_findings.rules(evidence),
            report_findings.mutants(evidence),
            report_findings.fairness(evidence),
        ),
    )  # fmt: skip


def _machine(machine: Machine, evidence: Evidence) -> Section:
    worlds = sorted({run.world for run in evidence.runs if machine.name in report_verdict.machines_of(run.world)})
    where = f"Explored in: {', '.join(worlds)}." if worlds else "In no world that this profile explored."
    blocks: list[Block] = [
        *(Text(part) for part in diagram.introduction(machine).split("\n\n")),
        Text(where),
        Picture(machine.name, flowchart(machine, {}), graphviz.dot(machine, spells_guards=False)),
    ]
    parts = {title: (columns, rows) for title, columns, rows in diagram.tables(machine)}
    if machine.variables:
        blocks.append(Text("Variables: " + "; ".join(f"{name} ({values})" for name, values in parts["Variables"][1]) + "."))
    columns, rows = parts["Rows"]
    place = columns.index("fairness")  # what provides it is said in the section on fairness
    short = [[*row[:place], row[place].partition(":")[0], *row[place + 1 :]] for row in rows]
    blocks += [table(*parts["States"]), table(columns, short)]
    answers = _answers(parts["Ignored"][1], parts["Refused"][1])
    blocks.append(Folded(f"Ignored and refused cells, of {len(answers)} events", (table(("event", "answer"), answers),)))
    return Section(machine.name, tuple(blocks))


def _answers(ignored: Sequence[Sequence[str]], refused: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Each event with what is answered where no row is taken, a line for each entry."""
    lines: dict[str, list[str]] = {}
    for event, where, reason in ignored:
        lines.setdefault(event, []).append(f"{where}: ignored, {reason}")
    for event, where, when, error, how_to in refused:
        lines.setdefault(event, []).append(f"{where}: {error}{f' when {when}' if when else ''}, {how_to}")
    return [(event, "<br>".join(lines[event])) for event in sorted(lines)]


def _together(view: composed.View | None) -> Section:
    facts = [(code(fact.name), fact.of or "the engine", code(fact.when), fact.sentence) for fact in FACTS]
    shared = Section(
        "Who touches whom",
        (
            Text(coupling.MESSAGES),
            Picture("coupling", coupling.mermaid(), coupling.dot()),
            Folded("The facts that guards name", (table(("fact", "about", "holds when", "in words"), facts),)),
        ),
    )
    if view is None:
        whole: tuple[Block, ...] = (Text("Not explored for this report; `quiesce diagram composed` shows it."),)
    else:
        drawn = Picture("composed", composed.mermaid(view), composed.dot(view))
        combined = Folded("Every combination", (Table(*composed.combinations(view)),))
        whole = (*(Text(line) for line in composed.legend(view)), drawn, combined)
    return Section("Together", (), (shared, Section("Engine, memory and weights", whole)))


def write(
    evidence: Evidence, folder: Path, tools: Mapping[str, str] | None = None, date: str = "", view: composed.View | None = None
) -> tuple[Path, Path]:
    """Writes `REPORT.md` and `report.html`; their paths. `tools`: None asks the tools of this machine."""
    report = build(evidence, tool_versions() if tools is None else tools, date, view)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "REPORT.md", folder / "report.html"
    for path, text in zip(paths, (to_markdown(report), to_html(report)), strict=True):
        path.write_text(text, encoding="utf-8", newline="\n")
    return paths


if __name__ == "__main__":
    for written in write(Evidence.read(Path(sys.argv[1])), Path(sys.argv[2]), view=composed.view()):
        print(written)
