"""The project's tables with one rule broken: what a judge is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quiesce.spec import CATALOG
from quiesce.spec.language import Machine, Row

Mutate = Callable[[Row], Row | None]


def mutated(machine: str, change: Mutate) -> dict[str, Machine]:
    """The project's tables with some rows of one machine changed, or dropped (None)."""
    table = CATALOG.machines[machine]
    rows = tuple(kept for row in table.rows if (kept := change(row)) is not None)
    assert rows != table.rows, "the mutant differs"
    return {**CATALOG.machines, machine: replace(table, rows=rows)}


def without(text: str, event: str) -> Mutate:
    """Drops a conjunct of the guards of one event."""

    def change(row: Row) -> Row:
        if row.event != event or text not in row.when:
            return row
        return replace(row, when=row.when.replace(f" and {text}", "").replace(f"{text} and ", "").replace(text, "true"))

    return change
