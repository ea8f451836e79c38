"""The tables with something taken away: what a rule is worth is seen without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quiesce.spec import CATALOG
from quiesce.spec.language import Fairness, Machine, Row, SpecError

Tables = Mapping[str, Machine]


@dataclass(frozen=True, slots=True)
class Edit:
    """One thing that is taken out of the rows of one event, or replaced there."""

    machine: str
    event: str
    """`*`: of every event."""
    part: str
    """`when`, `sets`, `also`, `effects`; `target`; `source`; `row`; `fairness`."""
    text: str = ""
    """What is taken out. Of `row` what its guard says, of `target` the new target, of `fairness` the new mark, of `source` a state more (`+state`) or less (`-state`)."""
    instead: str = ""
    """What comes in its place."""
    leaving: str = ""
    """Only rows that leave this state."""

    def __str__(self) -> str:
        what = f"{self.machine}.{self.event}" + (f" from {self.leaving}" if self.leaving else "")
        match self.part:
            case "row":
                return f"{what}: no row" + (f" when `{self.text}`" if self.text else "")
            case "target":
                return f"{what}: leads to {self.text}"
            case "source":
                return f"{what}: {'also' if self.text[0] == '+' else 'not'} from {self.text[1:]}"
            case "fairness":
                return f"{what}: {self.text} fairness"
            case _ if self.instead and self.text:
                return f"{what}: {self.part} has `{self.instead}` for `{self.text}`"
            case _:
                return f"{what}: {self.part} {'has also' if self.instead else 'has no'} `{self.instead or self.text}`"

    def row(self, row: Row) -> Row:
        """The row as it is then. One that is taken out is never taken, and keeps its place: others keep their numbers."""
        if self.event not in ("*", str(row.event)) or (self.leaving and self.leaving not in map(str, row.source)):
            return row
        match self.part:
            case "row":
                return replace(row, when="false") if self.text in row.when else row
            case "target":
                return replace(row, target=self.text)
            case "source" if self.text[0] == "+":
                return replace(row, source=(*row.source, self.text[1:]))
            case "source":
                return replace(row, source=tuple(state for state in row.source if str(state) != self.text[1:]))
            case "when":
                return replace(row, when=_reworded(row.when, self.text, self.instead))
            case "sets" | "also" | "effects":
                texts: tuple[str, ...] = getattr(row, self.part)
                kept = tuple(self.instead if text == self.text else text for text in texts)
                added = (self.instead,) if self.instead and not self.text else ()
                changes: dict[str, Any] = {self.part: (*filter(None, kept), *added)}
                return replace(row, **changes)
        return row


def _reworded(guard: str, text: str, instead: str) -> str:
    """A guard without one of its parts, or with another in its place."""
    if not instead:
        for joined in (f" and {text}", f"{text} and ", f" or {text}", f"{text} or "):
            if joined in guard:
                return guard.replace(joined, "")
    return guard.replace(text, instead or "true")


def fact_edit(machine: str, fact: str, text: str) -> Edit:
    """A fact of the coupling without one of its parts, wherever the rows of a machine name it; properties go on to mean all of it."""
    whole = CATALOG.facts[fact].when
    return Edit(machine, "*", "when", fact, f"({_reworded(whole, text, '')})")


def edited(edits: Sequence[Edit], tables: Tables = CATALOG.machines) -> Tables:
    """The tables after all edits.

    Raises:
        SpecError: an edit changes nothing.
    """
    found = dict(tables)
    for edit in edits:
        table = found[edit.machine]
        if edit.part == "fairness":
            changed = replace(table, events=tuple(
                replace(event, fairness=Fairness(edit.text)) if event.name == edit.event else event for event in table.events))  # fmt: skip
        else:
            changed = replace(table, rows=tuple(map(edit.row, table.rows)))
        if changed == table:
            raise SpecError(f"{edit} changes nothing")
        found[edit.machine] = changed
    return found
