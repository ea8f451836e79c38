"""The rows of a machine as edges of a picture."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.spec.language import Machine, Owner, Row

LONGEST_GUARD = 32
"""A longer guard is elided to its row's number, and written out beside the state it leaves."""


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
