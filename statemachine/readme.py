"""Keeps the generated parts of a Markdown file fresh: what stands between `<!-- generated: NAME -->` and `<!-- end -->`.

NAME is a machine (its diagram), `NAME table` (its rows, ignored and refused cells) or `machines` (one line each).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from quiesce.spec import MACHINES
from quiesce.statemachine.diagram import markdown_table, mermaid

BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """The text with every generated block written anew.

    Raises:
        KeyError: a block names no machine.
    """
    return BLOCK.sub(lambda block: f"{block[1]}{_content(block['name'])}{block[3]}", text)


def _content(name: str) -> str:
    if name == "machines":
        cells = sum(len(machine.states) * len(machine.events) for machine in MACHINES)
        lines = [f"| `{machine.name}` | {machine.purpose} | {len(machine.rows)} | `{machine.file}` |" for machine in MACHINES]
        head = ["| machine | what it is | rows | file |", "|---|---|---|---|"]
        return (
            "\n".join(
                [*head, *lines, "", f"{sum(len(machine.rows) for machine in MACHINES)} rows; {cells} cells, each decided."]
            )
            + "\n"
        )
    machines = {machine.name: machine for machine in MACHINES}
    if name.endswith(" table"):
        return markdown_table(machines[name.removesuffix(" table")]).rstrip() + "\n"
    return f"```mermaid\n{mermaid(machines[name]).rstrip()}\n```\n"


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
