"""The tables with one thing changed: every single-point mutant of the rows and events of some machines.

A guard loses one of its parts, or has it negated; an update is dropped or writes another value; a joint move or an effect is dropped; a
row is deleted or leads elsewhere; an event loses its fairness, or the law that it goes first. What a named fact says is changed where
the rows name it, while the promises go on to mean all of it. Order and names are the same in every run.
"""

from __future__ import annotations

import ast
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from quiesce.spec import CATALOG
from quiesce.spec.guards import parse_update
from quiesce.spec.language import Event, Fairness, Machine, Row

Tables = Mapping[str, Machine]
SAME_STATE = {"ended": "absent", "retired": "empty", "dropped": "empty"}
"""States that the models do not tell apart."""
TWINS = {"free_blocks(cache)": "free_blocks(drop)", "free_blocks(drop)": "free_blocks(cache)", "terminal(abort)": "terminal(error)",
         "terminal(finish)": "terminal(abort)", "terminal(error)": "terminal(finish)"}  # fmt: skip
"""Effect -> another that says something else."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change, and the tables with it."""

    name: str
    """`request.reap[21] when: drop "not in_flight"`."""
    machine: str
    kind: str
    tables: Tables


# ---- guards -----------------------------------------------------------------------------------------------------------------


def guards(text: str) -> Iterator[tuple[str, str, str]]:
    """Kind, what is done, and the guard after it: each part of each `and` and `or` dropped, each part of the whole negated."""
    if text == "true":
        return
    tree = ast.parse(text, mode="eval").body
    nodes = list(ast.walk(tree))
    whole = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
    for part in whole:
        yield "negate conjunct", f'negate "{ast.unparse(part)}"', _put(text, nodes.index(part), _negated)
    if whole == [tree]:
        yield "drop conjunct", f'drop "{text}"', "true"
    told: Counter[str] = Counter()
    for place, node in enumerate(nodes):
        for number, part in enumerate(node.values if isinstance(node, ast.BoolOp) else []):
            kind = "drop conjunct" if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) else "drop disjunct"
            words = ast.unparse(part)
            told[words] += 1
            again = f", time {told[words]}" if told[words] > 1 else ""
            yield kind, f'drop "{words}"{again}', _put(text, place, partial(_without, number))


def _negated(node: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), node)


def _without(number: int, node: ast.expr) -> ast.expr:
    if not isinstance(node, ast.BoolOp):
        raise TypeError(ast.dump(node))
    rest = [*node.values[:number], *node.values[number + 1 :]]
    return rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _put(text: str, place: int, change: Callable[[ast.expr], ast.expr]) -> str:
    """A guard with another part in one place (in the order of `ast.walk`)."""
    tree = ast.parse(text, mode="eval")
    old = list(ast.walk(tree.body))[place]

    class Put(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return change(node) if node is old and isinstance(node, ast.expr) else self.generic_visit(node)

    return ast.unparse(Put().visit(tree))


def facts() -> Iterator[tuple[str, str, str, str]]:
    """Fact, kind, what is done, and what the fact says after it."""
    for fact in CATALOG.facts.values():
        for kind, told, when in guards(fact.when):
            yield fact.name, kind, told, when


def inlined(text: str, fact: str, when: str) -> str:
    """A guard in which a fact means something else; named through other facts, too."""

    class Inline(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return self._read(node, node.id, "")

        def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
            each = isinstance(node.value, ast.Name) and node.value.id == "each"
            return self._read(node, node.attr, "each") if each else node

        def _read(self, node: ast.expr, name: str, each: str) -> ast.AST:
            if name == fact:
                meant = when
            elif name in CATALOG.facts and (meant := inlined(CATALOG.facts[name].when, fact, when)) != CATALOG.facts[name].when:
                pass
            else:
                return node
            tree = ast.parse(meant, mode="eval").body
            return _About(name).visit(tree) if each else tree

    found = ast.unparse(Inline().visit(ast.parse(text, mode="eval")))
    return text if found == ast.unparse(ast.parse(text, mode="eval")) else found


class _About(ast.NodeTransformer):
    """What a fact says of a record, said of `each`."""

    def __init__(self, fact: str) -> None:
        self.own = {"state", *CATALOG.machines[CATALOG.facts[fact].of].variables}
        self.own |= {name.partition("[")[0] for name in self.own}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        mine = node.id in self.own or (node.id in CATALOG.facts and CATALOG.facts[node.id].of)
        return ast.Attribute(ast.Name("each"), node.id) if mine else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        return ast.Compare(self.visit(node.left), node.ops, node.comparators)


# ---- rows -------------------------------------------------------------------------------------------------------------------


def _rows(machine: Machine, row: Row) -> Iterator[tuple[str, str, Row | None]]:
    """Kind, what is done, and the row after it."""
    for kind, told, when in guards(row.when):
        yield kind, f"when: {told}", replace(row, when=when)
    for number, text in enumerate(row.sets):
        yield "drop update", f'sets: drop "{text}"', replace(row, sets=_less(row.sets, number))
        for other in _other_values(machine, text):
            yield "retarget update", f'sets: "{other}"', replace(row, sets=(*row.sets[:number], other, *row.sets[number + 1 :]))
    for number, text in enumerate(row.also):
        yield "drop joint", f'also: drop "{text}"', replace(row, also=_less(row.also, number))
    for number, text in enumerate(row.effects):
        yield "drop effect", f'effects: drop "{text}"', replace(row, effects=_less(row.effects, number))
        if text in TWINS:
            twin = (*row.effects[:number], TWINS[text], *row.effects[number + 1 :])
            yield "retarget effect", f'effects: "{TWINS[text]}" for "{text}"', replace(row, effects=twin)
    if row.shifts:
        yield "drop update", "shifts: drop", replace(row, shifts=False)
    if len(row.source) > 1:
        for state in row.source:
            yield "drop source", f"not from {state}", replace(row, source=tuple(one for one in row.source if one != state))
    if row.target is not None:
        alike = {SAME_STATE.get(row.target, row.target)}
        for state in machine.states:
            if (name := SAME_STATE.get(state, str(state))) not in alike:
                alike.add(name)
                yield "retarget row", f"leads to {state}", replace(row, target=state)
    yield "drop row", "no such row", None


def _less(texts: Sequence[str], number: int) -> tuple[str, ...]:
    return (*texts[:number], *texts[number + 1 :])


def _other_values(machine: Machine, text: str) -> Iterator[str]:
    """The update with each other value."""
    update = parse_update(text)
    left = text.partition(" := ")[0]
    if not isinstance(update.value, str):
        yield f"{left} := not ({text.partition(' := ')[2]})"
        return
    owner = machine if update.variable.machine in ("", "named") else CATALOG.machines.get(update.variable.machine, machine)
    if update.variable.machine == "named":
        owner = CATALOG.machines["request"]
    name = update.variable.name + ("[0]" if update.variable.slot else "")
    for value in owner.variables.get(name, ()):
        if str(value) != update.value:
            yield f"{left} := {value}"


def _events(event: Event) -> Iterator[tuple[str, str, Event]]:
    if event.fairness is not Fairness.none:
        yield "drop fairness", "no fairness", replace(event, fairness=Fairness.none)
    if event.fairness is Fairness.strong:
        yield "weaken fairness", "weak fairness", replace(event, fairness=Fairness.weak)
    if event.boundary:
        yield "drop boundary", "not before the next call", replace(event, boundary=False)


# ---- all of them ------------------------------------------------------------------------------------------------------------


def mutations(machines: Sequence[str]) -> Iterator[Mutation]:
    """Every single-point mutant of these tables, in the order of their rows."""
    tables = CATALOG.machines
    for name in machines:
        table = tables[name]
        for number, row in enumerate(table.rows):
            for kind, told, changed in _rows(table, row):
                rows = (*table.rows[:number], *([changed] if changed else []), *table.rows[number + 1 :])
                yield Mutation(f"{name}.{row.event}[{number}] {told}", name, kind, {**tables, name: replace(table, rows=rows)})
        for number, event in enumerate(table.events):
            for kind, told, other in _events(event):
                events = (*table.events[:number], other, *table.events[number + 1 :])
                yield Mutation(f"{name}.{event.name}: {told}", name, kind, {**tables, name: replace(table, events=events)})
    for fact, kind, told, when in facts():
        said = {name: _says(tables[name], fact, when) for name in machines}
        if any(said[name] != tables[name] for name in machines):
            yield Mutation(f"{fact}: {told}", "coupling", kind, {**tables, **said})


def _says(table: Machine, fact: str, when: str) -> Machine:
    rows = tuple(replace(row, when=inlined(row.when, fact, when)) for row in table.rows)
    return replace(table, rows=rows) if rows != table.rows else table


def sample(found: Sequence[Mutation], number: int, seed: int) -> list[Mutation]:
    """So many of them, drawn by a seed, each kind of each machine in turn."""
    draw = random.Random(seed)
    strata: dict[tuple[str, str], list[Mutation]] = {}
    for mutation in found:
        strata.setdefault((mutation.machine, mutation.kind), []).append(mutation)
    for stratum in strata.values():
        draw.shuffle(stratum)
    turns = itertools.zip_longest(*strata.values())
    return [mutation for turn in turns for mutation in turn if mutation][:number]
