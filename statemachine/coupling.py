"""What the machines share, as a picture and as tables: who moves whom, who reads whose variables, the order of the pass, the facts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from quiesce.spec import CATALOG, FACTS, HELD_MODE_POLICIES, MACHINES, PASS_ORDER
from quiesce.spec.check import DOMAINS
from quiesce.spec.guards import (
    And,
    Guard,
    Is,
    Name,
    Not,
    Or,
    Positive,
    Quantified,
    Truth,
    parse_guard,
    parse_joint,
    parse_update,
)
from quiesce.statemachine.graphviz import LOOKS, lines_table, quoted
from quiesce.statemachine.markdown import code, table

MESSAGES: Final = "Messages between front end and core are effects, not rows: a stream and its request share none."


@dataclass(frozen=True, slots=True)
class Touch:
    """What the rows of one machine do to another."""

    machine: str
    other: str
    moves: tuple[str, ...]
    """Events of the other that happen in the same instant."""
    writes: tuple[str, ...]
    """Variables of the other."""
    reads: tuple[str, ...]
    """Variables of the other, in guards."""


def touches() -> list[Touch]:
    """Every pair of machines of which the first moves, writes or reads the second, in the order of the declaration."""
    moves, writes, reads = set[tuple[str, str, str]](), set[tuple[str, str, str]](), set[tuple[str, str, str]]()
    for machine in MACHINES:
        for row in machine.rows:
            moves |= {(machine.name, joint.machine, joint.event) for joint in map(parse_joint, row.also)}
            for update in map(parse_update, row.sets):
                owner = update.variable.machine or machine.name
                writes.add((machine.name, DOMAINS.get(owner, owner), update.variable.name))
                if not isinstance(update.value, str):
                    reads |= {(machine.name, *one) for one in _read("request", update.value)}
        for when in (*(row.when for row in machine.rows), *(entry.when for entry in machine.refused)):
            reads |= {(machine.name, *one) for one in _read(machine.name, parse_guard(when))}
    names = [machine.name for machine in MACHINES]
    return [
        Touch(
            one,
            other,
            *(tuple(sorted(word for a, b, word in found if (a, b) == (one, other))) for found in (moves, writes, reads)),
        )
        for one in names
        for other in names
        if one != other and any((a, b) == (one, other) for a, b, _ in moves | writes | reads)
    ]


def _read(machine: str, tree: Guard, each: str = "") -> Iterator[tuple[str, str]]:
    """(machine, variable) of everything a guard looks at; `each` is the machine a quantifier ranges over."""
    match tree:
        case Truth():
            return
        case Positive():
            yield "request", "state"  # a block is free when few enough requests hold one
        case Not(part):
            yield from _read(machine, part, each)
        case And(parts) | Or(parts):
            for part in parts:
                yield from _read(machine, part, each)
        case Quantified(_, domain, body):
            yield from _read(machine, body, DOMAINS.get(domain, domain))
        case Is(variable, _):
            yield from _named(machine, variable, each)
        case Name() as name:
            fact = CATALOG.facts.get(name.name)
            if fact is None:
                yield from _named(machine, name, each)
            else:
                yield from _read(fact.of or "engine", parse_guard(fact.when))


def _named(machine: str, name: Name, each: str) -> Iterator[tuple[str, str]]:
    if name.machine != "event":
        yield (each if name.instance == "each" else name.machine or machine), name.name


def mermaid() -> str:
    """A flowchart: an arrow moves or writes the other in the same instant; what a machine reads stands in its box."""
    lines = ["%% What the rows of one machine move, write and read of another. Drawn from spec/.", "flowchart TB"]
    lines += [f'    {machine.name}["{"<br>".join([machine.name, *_read_by(machine.name)])}"]' for machine in MACHINES]
    for one in touches():
        if one.moves or one.writes:
            lines.append(f'    {one.machine} -->|"{"<br>".join(_done(one))}"| {one.other}')
    return "\n".join(lines) + "\n"


def dot() -> str:
    """A Graphviz digraph, drawn likewise."""
    legend = "An arrow: moves the other in the same instant, or writes one of its variables. In a box: what its guards read of others."
    lines = [
        "digraph coupling {",
        '    graph [id="coupling", rankdir=TB, nodesep=0.4, ranksep=0.5, fontname=Helvetica, fontsize=10, labelloc=b, labeljust=l,',
        f'           label="\\n{legend}\\l"]',
        *LOOKS,
    ]
    for machine in MACHINES:
        label = lines_table(_read_by(machine.name), machine.name)
        lines.append(f"    {machine.name} [label=<{label}>, tooltip={quoted(machine.purpose)}]")
    for one in touches():
        if one.moves or one.writes:
            lines.append(f"    {one.machine} -> {one.other} [label=<{lines_table(_done(one))}>]")
    return "\n".join([*lines, "}"]) + "\n"


def _done(one: Touch) -> list[str]:
    return [*one.moves, *(f"writes {name}" for name in one.writes)]


def _read_by(machine: str) -> list[str]:
    return [f"reads {one.other}: {', '.join(one.reads)}" for one in touches() if one.machine == machine and one.reads]


def markdown() -> str:
    """What the machines share: the order of the pass, the facts, the moves made jointly, and what a held mode means for requests."""
    touched = [
        [code(one.machine), code(one.other), *(", ".join(map(code, words)) for words in (one.moves, one.writes, one.reads))]
        for one in touches()
    ]
    pass_order = [[str(place), code(f"{machine}.{event}")] for place, (machine, event) in enumerate(PASS_ORDER, 1)]
    facts = [[code(fact.name), fact.of or "the engine", code(fact.when), fact.sentence] for fact in FACTS]
    joints = [
        [code(f"{machine.name}.{row.event}"), str(number), "<br>".join(code(joint) for joint in row.also)]
        for machine in MACHINES
        for number, row in enumerate(machine.rows)
        if row.also
    ]
    policies = [
        [code(policy.mode), policy.running, policy.admitted, policy.received, policy.new_call] for policy in HELD_MODE_POLICIES
    ]
    blocks = [
        "# What the machines share",
        "## Who touches whom\n\nA fact stands for what it is made of. "
        + MESSAGES
        + "\n\n"
        + table(("machine", "and", "moves it by", "writes its", "reads its"), touched),
        "## Order of the pass\n\nThe core takes one call, fires these to a fixpoint in this order, then plans and launches.\n\n"
        + table(("place", "event"), pass_order),
        "## Facts\n\n" + table(("fact", "about", "holds when", "in words"), facts),
        "## Moves made in the same instant\n\nAll or nothing.\n\n" + table(("event", "row", "moves"), joints),
        "## What a held mode means\n\n" + table(("held mode", "running", "admitted", "received", "new call"), policies),
    ]
    return "\n\n".join(blocks) + "\n"
