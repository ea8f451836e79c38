"""What changed between two declarations: rows, cells, states, events, variables, facts, properties; as a reviewer reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from typing import Any, Final

from quiesce.spec.check import decided
from quiesce.spec.language import Ignored, Machine, Refused, Row
from quiesce.statemachine.revisions import Declaration

Answers = tuple[str, ...]
ALIKE: Final = 6.0
"""Rows at least this similar, of 12, are one row that changed; the others came and went."""
SEPARATE: Final = ("name", "file", "states", "meanings", "events", "rows", "ignored", "refused", "variables")
"""Parts of a machine that are compared one by one, or not at all."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that came, went or changed. `fields`: (field, before, after), for what changed."""

    kind: str
    """`row`, `state`, `event`, `variable`, `cell`, `fact`, `property` ..."""
    name: str
    before: str | None
    """In words; None: it is new."""
    after: str | None
    """None: it is gone."""
    fields: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row that came (`before` is None), went or changed. Rows are counted from 0."""

    before: tuple[int, Row] | None
    after: tuple[int, Row] | None

    @property
    def place(self) -> tuple[int, Row]:
        """The row as it is, or, of one that went, as it was."""
        found = self.after or self.before
        if found is None:
            raise ValueError("a change of no row")
        return found

    @property
    def fields(self) -> tuple[tuple[str, str, str], ...]:
        """(field, before, after) of what is not the same."""
        if self.before is None or self.after is None:
            return ()
        return _fields(self.before[1], self.after[1])


@dataclass(frozen=True, slots=True)
class MachineDifference:
    """What changed in one machine; None for a machine that was not there, or is not there any more."""

    name: str
    before: Machine | None
    after: Machine | None
    rows: tuple[RowChange, ...]
    swapped: tuple[tuple[int, int], ...]
    """Rows, by their numbers of today, that were tried in the other order before: the first that holds is taken."""
    others: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.rows or self.swapped or self.others)


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that changed. False if nothing did."""

    before: str
    after: str
    machines: tuple[MachineDifference, ...]
    others: tuple[Change, ...]
    """Facts, properties, the order of the pass."""

    def __bool__(self) -> bool:
        return bool(self.machines or self.others)

    def only(self, machine: str) -> Difference:
        """What changed in one machine; `coupling`: in what they share."""
        return replace(
            self,
            machines=tuple(one for one in self.machines if one.name == machine),
            others=self.others if machine == "coupling" else (),
        )


def compare(before: Declaration, after: Declaration) -> Difference:
    """What a reviewer has to look at."""
    names = [*after.machines, *(name for name in before.machines if name not in after.machines)]
    machines = [_machines(before.machines.get(name), after.machines.get(name)) for name in names]
    others = [*_named("fact", before.facts, after.facts), *_named("property", before.properties, after.properties)]
    if before.pass_order != after.pass_order:
        others.append(Change("order of the pass", "", ", ".join(before.pass_order), ", ".join(after.pass_order)))
    return Difference(before.name, after.name, tuple(one for one in machines if one), tuple(others))


def _machines(before: Machine | None, after: Machine | None) -> MachineDifference:
    rows, swapped = _rows(before.rows if before else (), after.rows if after else ())
    others: list[Change] = []
    kept = after or before
    name = kept.name if kept else ""
    if before is None or after is None:
        others.append(Change("machine", name, before.purpose if before else None, after.purpose if after else None))
    else:
        changed = tuple(one for one in _fields(before, after) if one[0] not in SEPARATE)
        if changed:
            others.append(Change("machine", name, before.purpose, after.purpose, changed))
    others += _named("state", _meanings(before), _meanings(after))
    others += _named("variable", before.variables if before else {}, after.variables if after else {})
    others += _named("event", _events(before), _events(after))
    others += _cells(before, after)
    return MachineDifference(name, before, after, rows, swapped, tuple(others))


def _meanings(machine: Machine | None) -> dict[str, object]:
    return {str(state): machine.meanings.get(state, "") for state in machine.states} if machine else {}


def _events(machine: Machine | None) -> dict[str, object]:
    return {event.name: event for event in machine.events} if machine else {}


# ---- rows -------------------------------------------------------------------------------------------------------------------


def _rows(before: tuple[Row, ...], after: tuple[Row, ...]) -> tuple[tuple[RowChange, ...], tuple[tuple[int, int], ...]]:
    """Pairs rows: the same first, then those of one event, sources and target, then the most similar."""
    pairs: dict[int, int] = {}
    free = dict(enumerate(after))
    for number, row in enumerate(before):
        same = next((other for other, found in free.items() if found == row), None)
        if same is not None:
            pairs[number] = same
            del free[same]
    candidates = [
        (-_is_alike(row, other), -_similarity(row, other), abs(number - place), number, place)
        for number, row in enumerate(before)
        if number not in pairs
        for place, other in free.items()
        if _similarity(row, other) >= ALIKE
    ]
    for _, _, _, number, place in sorted(candidates):
        if number not in pairs and place in free:
            pairs[number] = place
            del free[place]
    changes = [
        RowChange((number, before[number]), (place, after[place]))
        for number, place in pairs.items()
        if before[number] != after[place]
    ]
    changes += [RowChange((number, row), None) for number, row in enumerate(before) if number not in pairs]
    changes += [RowChange(None, (place, row)) for place, row in free.items()]
    return tuple(sorted(changes, key=lambda change: (change.place[0], change.after is None))), tuple(_swapped(after, pairs))


def _is_alike(one: Row, other: Row) -> bool:
    return (one.event, one.source, one.target) == (other.event, other.source, other.target)


def _similarity(one: Row, other: Row) -> float:
    """0 to 12: event, sources, target and guard count 2 each, what it does and why 1 each."""
    shared = set(one.source) & set(other.source)
    score = 2.0 * (one.event == other.event) + 2.0 * (one.target == other.target)
    score += 2.0 * len(shared) / len({*one.source, *other.source})
    score += 2.0 * SequenceMatcher(None, one.when, other.when).ratio()
    return score + (one.sets == other.sets) + (one.also == other.also) + (one.effects == other.effects) + (one.why == other.why)


def _swapped(after: tuple[Row, ...], pairs: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    kept = sorted(pairs)
    for place, first in enumerate(kept):
        for second in kept[place + 1 :]:
            one, other = after[pairs[first]], after[pairs[second]]
            if pairs[first] > pairs[second] and one.event == other.event and set(one.source) & set(other.source):
                yield pairs[second], pairs[first]


# ---- everything else --------------------------------------------------------------------------------------------------------


def _named(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Things with a name of their own: what went, what came, what changed."""
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        if old != new:
            changed = _fields(old, new) if name in before and name in after else ()
            yield Change(kind, name, _said(old) if name in before else None, _said(new) if name in after else None, changed)


def _fields(old: Any, new: Any) -> tuple[tuple[str, str, str], ...]:
    if not hasattr(type(old), "__dataclass_fields__"):
        return ()
    values = [(field.name, _said(getattr(old, field.name)), _said(getattr(new, field.name))) for field in fields(old)]
    return tuple(one for one in values if one[1] != one[2])


def _said(value: Any) -> str:
    """A value in words; of a fact or a property its sentence."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    sentence = getattr(value, "sentence", None)
    if sentence is not None:
        return str(sentence)
    owner = getattr(value, "owner", None)
    return f"{owner}'s" if owner is not None else str(value)


def _cells(before: Machine | None, after: Machine | None) -> Iterator[Change]:
    """Cells that are answered otherwise, one change for the states in which an event's answer changes alike."""
    old, new = _answers(before), _answers(after)
    grouped: dict[tuple[str, Answers | None, Answers | None], list[str]] = {}
    for cell in [*old, *(cell for cell in new if cell not in old)]:
        if old.get(cell) != new.get(cell):
            event, state = cell
            grouped.setdefault((event, old.get(cell), new.get(cell)), []).append(state)
    for (event, was, now), states in grouped.items():
        yield Change("cell", f"{event} in {', '.join(states)}", _beside(was, now), _beside(now, was))


def _beside(answers: Answers | None, others: Answers | None) -> str | None:
    """What is answered, without what both say; all of it if only the order differs."""
    if answers is None:
        return None
    return "; ".join(
        [one for one in answers if one not in (others or ())] or (answers if set(answers) == set(others or ()) else [])
    )


def _answers(machine: Machine | None) -> dict[tuple[str, str], Answers]:
    """(event, state) -> what is answered where no row is taken."""
    found = {}
    for event in machine.events if machine else ():
        for state, entries in decided(machine, event.name).items() if machine else ():
            found[event.name, state] = tuple(_answer(entry) for entry in entries if not isinstance(entry, Row)) or (
                "only what its rows say",
            )
    return found


def _answer(entry: Ignored | Refused) -> str:
    if isinstance(entry, Ignored):
        return f"ignored: {entry.reason}"
    when = "" if entry.when == "true" else f" when `{entry.when}`"
    return f"refused{when} with {entry.error}: {entry.how_to}"
