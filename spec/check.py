"""Refuses a malformed declaration when `spec` is imported, naming its file, its row and the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from quiesce.spec.guards import (
    And,
    Guard,
    Is,
    Joint,
    Name,
    Not,
    Or,
    Positive,
    Quantified,
    Truth,
    parse_effect,
    parse_guard,
    parse_joint,
    parse_update,
)
from quiesce.spec.language import ELSEWHERE, Fact, Fairness, Ignored, Machine, Owner, Property, Refused, Row, SpecError

ASKED = (Owner.client, Owner.operator)
"""Owners to whom a cell must answer even when no guard holds; the others wait."""
COUNTERS = ("free",)
DOMAINS = {"member": "request", "named": "request"}


@dataclass(frozen=True, slots=True)
class Catalog:
    """All words a guard may use: variables and states of every machine, and the facts."""

    machines: Mapping[str, Machine]
    facts: Mapping[str, Fact]

    def values(self, machine: str, variable: str, slot: str = "") -> tuple[str, ...] | None:
        """The values of a variable, or None if there is no such variable."""
        found = self.machines.get(machine)
        if found is None:
            return None
        if variable == "state":
            return tuple(found.states)
        if slot:
            return found.variables.get(f"{variable}[{'0' if slot == 'this' else slot}]")
        return found.variables.get(variable)


def decided(machine: Machine, event: str) -> dict[str, list[Row | Ignored | Refused]]:
    """For one event: state -> what decides the cell, rows first, in the order they are tried. `ELSEWHERE` is expanded."""
    cells: dict[str, list[Row | Ignored | Refused]] = {state: [] for state in machine.states}
    entries: list[Row | Ignored | Refused] = [row for row in machine.rows if row.event == event]
    answers: list[Row | Ignored | Refused] = [*machine.refused, *machine.ignored]
    rest = [entry for entry in answers if entry.event == event]
    for entry in [*entries, *(entry for entry in rest if _states(entry) != ELSEWHERE)]:
        for state in _states(entry):
            if state in cells:  # an unknown state is a complaint of its own
                cells[state].append(entry)
    for entry in (entry for entry in rest if _states(entry) == ELSEWHERE):
        for state, found in cells.items():
            if not found:
                cells[state] = [entry]
    return cells


def _states(entry: Row | Ignored | Refused) -> tuple[str, ...]:
    return entry.source if isinstance(entry, Row) else entry.states


def check(machines: Iterable[Machine], facts: Iterable[Fact], properties: Iterable[Property]) -> None:
    """Checks form, names and totality.

    Raises:
        SpecError: with every complaint found, one a line.
    """
    catalog = Catalog({machine.name: machine for machine in machines}, {fact.name: fact for fact in facts})
    complaints = [*_check_facts(catalog), *_check_properties(catalog, properties)]
    for machine in catalog.machines.values():
        complaints += _check_words(machine)
        for number, row in enumerate(machine.rows):
            complaints += [
                f"{machine.file}, row {number} ({row.event}): {reason}" for reason in _check_row(catalog, machine, row)
            ]
        complaints += [f"{machine.file}: {reason}" for reason in _check_cells(catalog, machine)]
    if complaints:
        raise SpecError("\n".join(complaints))


def _check_facts(catalog: Catalog) -> Iterator[str]:
    for fact in catalog.facts.values():
        for reason in _guard_complaints(catalog, fact.of, fact.when, ()):
            yield f"spec/coupling.py, fact {fact.name}: {reason}"


def _check_properties(catalog: Catalog, properties: Iterable[Property]) -> Iterator[str]:
    for prop in properties:
        for text in (prop.when, prop.then):
            for reason in _guard_complaints(catalog, prop.machine, text, ()) if text else ():
                yield f"spec/properties.py, {prop.name}: {reason}"
        for event in prop.despite:
            machine, _, name = event.partition(".")
            if machine not in catalog.machines or name not in {one.name for one in catalog.machines[machine].events}:
                yield f"spec/properties.py, {prop.name}: there is no event {event!r}"
        if not prop.judges:
            yield f"spec/properties.py, {prop.name}: nobody judges it"


def _check_words(machine: Machine) -> Iterator[str]:
    states, events = set(machine.states), {event.name for event in machine.events}
    if set(machine.meanings) != states:
        yield f"{machine.file}: meanings must be given for exactly the states"
    for state in {machine.initial, *machine.terminal} - states:
        yield f"{machine.file}: {state!r} is not a state"
    for event in machine.events:
        if event.fairness is Fairness.strong and not event.mechanism:
            yield f"{machine.file}, event {event.name}: strong fairness must name its mechanism"
        if event.boundary and event.owner is not Owner.core:
            yield f"{machine.file}, event {event.name}: boundary work is the core's"
        if not any(row.event == event.name for row in machine.rows):
            yield f"{machine.file}, event {event.name}: no row"
    entries: list[Row | Ignored | Refused] = [*machine.rows, *machine.ignored, *machine.refused]
    for entry in entries:
        kind = type(entry).__name__
        if entry.event not in events:
            yield f"{machine.file}, {kind} {entry.event}: no such event"
        for state in _states(entry):
            if state not in states and not (_states(entry) == ELSEWHERE and not isinstance(entry, Row)):
                yield f"{machine.file}, {kind} {entry.event}: {state!r} is not a state"
        if isinstance(entry, Ignored) and not entry.reason:
            yield f"{machine.file}, {kind} {entry.event}: the reason is missing"
        if isinstance(entry, Refused) and not entry.how_to:
            yield f"{machine.file}, {kind} {entry.event}: say what the caller should do first"


def _check_row(catalog: Catalog, machine: Machine, row: Row) -> Iterator[str]:
    takes = next((event.takes for event in machine.events if event.name == row.event), ())
    if row.target is not None and row.target not in set(machine.states):
        yield f"{row.target!r} is not a state"
    if not row.why:
        yield "why is missing"
    yield from _guard_complaints(catalog, machine.name, row.when, takes)
    for text in row.sets:
        yield from _update_complaints(catalog, machine.name, text, takes)
    for text in row.also:
        yield from _joint_complaints(catalog, text, takes)
    for text in row.effects:
        try:
            parse_effect(text)
        except SpecError as error:
            yield str(error)


def _update_complaints(catalog: Catalog, machine: str, text: str, takes: tuple[str, ...]) -> Iterator[str]:
    try:
        update = parse_update(text)
    except SpecError as error:
        yield str(error)
        return
    name = update.variable
    owner = name.machine or machine
    values = catalog.values(DOMAINS.get(owner, owner), name.name, name.slot)
    if values is None:
        yield f"{text!r}: no such variable"
    elif reason := _instance_complaint(catalog, name):
        yield f"{text!r}: {reason}"
    elif name.name == "state":
        yield f"{text!r}: a state is changed by a row of its own machine, jointly if need be"
    elif not isinstance(update.value, str):
        yield from _tree_complaints(catalog, "request", update.value, takes, text, "request")
    elif update.value.startswith("event."):
        if update.value.removeprefix("event.") not in takes:
            yield f"{text!r}: the event does not carry it"
    elif update.value not in values:
        yield f"{text!r}: {update.value!r} is not one of {', '.join(values)}"


def _joint_complaints(catalog: Catalog, text: str, takes: tuple[str, ...]) -> Iterator[str]:
    try:
        joint: Joint = parse_joint(text)
    except SpecError as error:
        yield str(error)
        return
    machine = catalog.machines.get(joint.machine)
    if machine is None or joint.event not in {event.name for event in machine.events}:
        yield f"{text!r}: no such machine or event"
        return
    known = ("*", *(machine.instances or ("", "this")))
    if joint.instance not in known and not joint.instance.startswith("event."):
        yield f"{text!r}: {joint.instance!r} is not an instance"
    needed = set(machine.event(joint.event).takes)
    if needed != {name for name, _ in joint.data}:
        yield f"{text!r}: must give {', '.join(sorted(needed)) or 'no data'}"
    for _, word in joint.data:
        if word.startswith("event.") and word.removeprefix("event.") not in takes:
            yield f"{text!r}: the event does not carry {word!r}"


def _guard_complaints(catalog: Catalog, machine: str, text: str, takes: tuple[str, ...]) -> Iterator[str]:
    try:
        tree = parse_guard(text)
    except SpecError as error:
        yield str(error)
        return
    yield from _tree_complaints(catalog, machine, tree, takes, text)


def _tree_complaints(
    catalog: Catalog, machine: str, tree: Guard, takes: tuple[str, ...], text: str, each: str = ""
) -> Iterator[str]:
    match tree:
        case Truth():
            return
        case Positive(counter):
            if counter not in COUNTERS:
                yield f"{text!r}: {counter!r} is not a counter"
        case Not(part):
            yield from _tree_complaints(catalog, machine, part, takes, text, each)
        case And(parts) | Or(parts):
            for part in parts:
                yield from _tree_complaints(catalog, machine, part, takes, text, each)
        case Quantified(_, domain, body):
            yield from _tree_complaints(catalog, machine, body, takes, text, DOMAINS.get(domain, domain))
        case Is(variable, words):
            yield from _variable_complaints(catalog, machine, variable, words, takes, text, each)
        case Name() as name:
            yield from _bit_or_fact_complaints(catalog, machine, name, takes, text, each)


def _variable_complaints(
    catalog: Catalog, machine: str, name: Name, words: tuple[str, ...], takes: tuple[str, ...], text: str, each: str
) -> Iterator[str]:
    if name.machine == "event":
        if name.name not in takes:
            yield f"{text!r}: the event does not carry {name.name!r}"
        return
    owner = each if name.instance == "each" else name.machine or machine
    values = catalog.values(owner, name.name, name.slot)
    if values is None:
        yield f"{text!r}: {name.name!r} is not a variable of {owner or 'anything'}"
        return
    if reason := _instance_complaint(catalog, name):
        yield f"{text!r}: {reason}"
    for word in words:
        if word not in values:
            yield f"{text!r}: {word!r} is not one of {', '.join(values)}"


def _bit_or_fact_complaints(
    catalog: Catalog, machine: str, name: Name, takes: tuple[str, ...], text: str, each: str
) -> Iterator[str]:
    owner = each if name.instance == "each" else name.machine or machine
    fact = catalog.facts.get(name.name)
    if fact is not None:
        if fact.of and fact.of != owner:
            yield f"{text!r}: the fact {name.name!r} is about a {fact.of}"
        return
    values = catalog.values(owner, name.name, name.slot)
    if values is None or set(values) != {"no", "yes"}:
        yield f"{text!r}: {name.name!r} is neither a fact nor a bit of {owner or 'anything'}"
    elif reason := _instance_complaint(catalog, name):
        yield f"{text!r}: {reason}"


def _instance_complaint(catalog: Catalog, name: Name) -> str:
    """Why this is no instance of the machine named, or nothing: `memory.state` and `memory[sky].state` name no record.

    `stream[this]` is the stream of the same call: for properties and for what surrounds the tables; at run time it has no place.
    """
    machine = catalog.machines.get(name.machine)
    if machine is None or name.instance == "*" or name.instance in (machine.instances or ("",)):
        return ""
    if name.instance == "this" and not machine.instances:
        return ""
    return f"{name.instance!r} is not an instance of {name.machine}"


def _check_cells(catalog: Catalog, machine: Machine) -> Iterator[str]:
    for event in machine.events:
        for state, entries in decided(machine, event.name).items():
            cell = f"cell ({state}, {event.name})"
            rows = [entry for entry in entries if isinstance(entry, Row)]
            rest = [entry for entry in entries if not isinstance(entry, Row)]
            if not entries:
                yield f"{cell}: not decided; write a row, Ignored or Refused"
            if rows and not rest and event.owner in ASKED and all(row.when != "true" for row in rows):
                yield f"{cell}: a caller gets no answer when no guard holds"
            if any(row.when == "true" for row in rows[:-1]):
                yield f"{cell}: a row behind one without guard is never taken"
            if sum(isinstance(entry, Ignored) for entry in rest) > 1:
                yield f"{cell}: ignored for two reasons"
            for entry in rest:
                if isinstance(entry, Refused):
                    for reason in _guard_complaints(catalog, machine.name, entry.when, event.takes):
                        yield f"{cell}: {reason}"
