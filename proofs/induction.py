"""Proves with z3 that the promises hold for any number of requests. `python -m quiesce.proofs.induction` prints the figures.

The invariant is the promises of `spec/properties.py` that the any-N proof judges, and the lemmas. Obligations: the initial state has
it; every action keeps every conjunct of it; every row and every action can be taken in some state that has it (or what is proved of
them is proved of nothing); before every action of which a promise on moves speaks, what is promised holds; and no action breaks a
promise on changes (`proofs/changes.py`). A conjunct that reads
nothing of what an action writes is kept for that reason, and counted so. An action that cannot be taken because an earlier row of the
same event speaks for the same data (a sleep of level 0 meets the rows of level 0) is counted so, too; its row must still be possible.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum, auto

import z3

from quiesce.proofs import moves, properties
from quiesce.proofs.changes import CHANGES
from quiesce.proofs.expr import Expr
from quiesce.proofs.lemmas import LEMMAS
from quiesce.proofs.model import Action
from quiesce.proofs.unbounded import EACH, State, Unbounded, UnboundedBuilder, all_of
from quiesce.spec import CATALOG, PROPERTIES
from quiesce.spec.language import Judge, Machine, Modality, Property, SpecError

MILLISECONDS = 20_000
"""For one question. None has needed a tenth of it."""


class Kind(StrEnum):
    """What is to be shown."""

    begins = auto()
    """The initial state has the conjunct."""
    kept = auto()
    """The action keeps the conjunct."""
    possible = auto()
    """The action can be taken under the invariant; a row, if one of its actions can."""
    promised = auto()
    """What a promise on moves demands holds before the action."""
    changed = auto()
    """What a promise on changes says of the states before and after the action."""


class How(StrEnum):
    """How an obligation was met, or that it was not."""

    solver = auto()
    untouched = auto()
    """The action writes nothing that the conjunct reads; a promise on moves: there is no action of which it speaks."""
    shadowed = auto()
    """It cannot be taken: for the same data earlier rows can, and without them it could."""
    failed = auto()
    undecided = auto()


@dataclass(frozen=True, slots=True)
class Obligation:
    """One thing to be shown, and what became of it."""

    kind: Kind
    action: str
    conjunct: str
    how: How
    counterexample: str = ""

    @property
    def is_met(self) -> bool:
        return self.how not in (How.failed, How.undecided)


@dataclass(slots=True)
class Proof:
    """Everything that was to be shown."""

    obligations: list[Obligation] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def unmet(self) -> list[Obligation]:
        return [one for one in self.obligations if not one.is_met]

    def counts(self) -> Counter[tuple[Kind, How]]:
        return Counter((one.kind, one.how) for one in self.obligations)


def promises() -> list[Property]:
    """The predicates of `spec/properties.py` that are proved for any number of requests."""
    return [prop for prop in PROPERTIES if prop.modality is Modality.always and prop.when and Judge.any_n_proof in prop.judges]


def conjuncts(builder: UnboundedBuilder, sentences: Iterable[Property]) -> dict[str, Expr]:
    """Each sentence as a tree; one about a request, or a tag, is about every one of them."""
    found = {}
    for prop in sentences:
        if prop.machine == "request":
            found[prop.name] = builder.every(builder.guard("request", EACH, prop.when))
            continue
        for instance in properties.instances_of(builder, prop):
            found[f"{prop.name}[{instance}]" if instance else prop.name] = builder.guard(
                prop.machine or "engine", instance, prop.when
            )
    return found


class Prover:
    """One solver that holds the invariant; every question is asked on top of it."""

    def __init__(
        self,
        machines: Mapping[str, Machine] | None = None,
        lemmas: Sequence[Property] = LEMMAS,
        callers: Sequence[str] = ("caller",),
        heard: Callable[[str, str, z3.Solver], None] | None = None,
    ) -> None:
        """`heard` is told of every question: its title, z3's verdict, and the solver that still holds it.

        Raises:
            SpecError: a conjunct speaks of `free` or `oldest`, which no action writes and which may change at any moment.
        """
        self.world = Unbounded(UnboundedBuilder(machines, callers))
        self.invariant = conjuncts(self.world.builder, [*promises(), *lemmas])
        for name, tree in self.invariant.items():
            if self.world.is_free(tree):
                raise SpecError(f"{name}: nothing is known of free blocks and of age where the number of requests is open")
        self.moves = [move for move in moves.on_moves(self.world.builder) if not move.name.endswith(f"[{EACH}]")]
        self.solver = z3.Solver()
        self.solver.set("timeout", MILLISECONDS)
        self.solver.add(*self.world.typing)
        self._callers, self._heard = callers, heard
        self._taken: set[tuple[str, int]] = set()
        """Name and row of every action that some state under the invariant allows."""

    def run(self, actions: Sequence[Action] | None = None) -> Proof:
        """All obligations, or those of some actions."""
        proof, began = Proof(), time.monotonic()
        proof.obligations += self._begins()
        for tree in self.invariant.values():
            self.solver.add(self.world.formula(tree, self.world.before))
        for number, action in enumerate(self.world.model.actions):
            if actions is None or action in actions:
                proof.obligations += self._of(number, action)
        if actions is None:
            proof.obligations += self._rows()
            proof.obligations += [
                Obligation(Kind.promised, "", move.name, How.untouched) for move in self.moves if not move.before
            ]
        proof.seconds = time.monotonic() - began
        return proof

    # ---- questions ----------------------------------------------------------------------------------------------------------

    def _begins(self) -> Iterator[Obligation]:
        self.solver.push()
        self.solver.add(*self.world.initial())
        for name, tree in self.invariant.items():
            yield self._shown(Kind.begins, "initial", name, self.world.formula(tree, self.world.before))
        self.solver.pop()

    def _of(self, number: int, action: Action) -> Iterator[Obligation]:
        world, title = self.world, f"{action.name}, row {action.row}"
        yield Obligation(Kind.possible, title, "", self._possible(action, title))
        self.solver.push()
        self.solver.add(world.formula(action.guard, world.before))
        for move in self.moves:
            if number in move.before:
                yield self._shown(Kind.promised, title, move.name, world.formula(move.before[number], world.before))
        after = world.after(action)
        yield from self._changed(action, title, after)
        yield from self._kept(action, title, after)
        self.solver.pop()

    def _possible(self, action: Action, title: str) -> How:
        """Whether some state that has the invariant allows the action."""
        verdict, _ = self._ask(f"{Kind.possible} {title}", self.world.formula(action.guard, self.world.before))
        if verdict == "sat":
            self._taken.add((action.name, action.row))
            return How.solver
        if verdict == "unsat":
            return How.shadowed if self._is_shadowed(action, title) else How.failed
        return How.undecided

    def _is_shadowed(self, action: Action, title: str) -> bool:
        """Whether nothing but earlier rows, which can be taken for the same data, keeps it from being taken."""
        if not any(name == action.name and row < action.row for name, row in self._taken):
            return False
        machine = self.world.builder.machines[action.machine]
        rows = tuple(row for number, row in enumerate(machine.rows) if row.event != action.event.name or number >= action.row)
        alone = {**CATALOG.machines, **self.world.builder.machines, action.machine: replace(machine, rows=rows)}
        world = Unbounded(UnboundedBuilder(alone, self._callers))
        dropped = len(machine.rows) - len(rows)
        for one in world.model.actions:
            if (one.name, one.row) == (action.name, action.row - dropped):
                verdict, _ = self._ask(f"{Kind.possible} {title}, without earlier rows", world.formula(one.guard, world.before))
                return verdict == "sat"
        return False

    def _rows(self) -> Iterator[Obligation]:
        """Every row whose event happens by itself has an action that can be taken."""
        can = {(one.machine, one.row) for one in self.world.model.actions if (one.name, one.row) in self._taken}
        for name, number in self.world.builder.own_rows():
            yield Obligation(Kind.possible, f"{name}, row {number}", "", How.solver if (name, number) in can else How.failed)

    def _changed(self, action: Action, title: str, after: State) -> Iterator[Obligation]:
        writes = self.world.writes(action)
        for change in CHANGES:
            if change.concerns(self.world, action, writes):
                yield self._shown(Kind.changed, title, change.name, change.claim(self.world, action, after))
            else:
                yield Obligation(Kind.changed, title, change.name, How.untouched)

    def _kept(self, action: Action, title: str, after: State) -> Iterator[Obligation]:
        writes = self.world.writes(action)
        touched = {name: tree for name, tree in self.invariant.items() if self.world.reads(tree) & writes}
        for name in self.invariant:
            if name not in touched:
                yield Obligation(Kind.kept, title, name, How.untouched)
        claims = {name: self.world.formula(tree, after) for name, tree in touched.items()}
        if self._ask(f"{Kind.kept} {title}: all that it touches", z3.Not(all_of(list(claims.values()))))[0] == "unsat":
            yield from (Obligation(Kind.kept, title, name, How.solver) for name in claims)
        else:
            yield from (self._shown(Kind.kept, title, name, claim) for name, claim in claims.items())

    def _shown(self, kind: Kind, action: str, conjunct: str, claim: z3.BoolRef) -> Obligation:
        verdict, story = self._ask(f"{kind} {action}: {conjunct}", z3.Not(claim), is_told=True)
        how = {"unsat": How.solver, "sat": How.failed}.get(verdict, How.undecided)
        return Obligation(kind, action, conjunct, how, story)

    def _ask(self, title: str, claim: z3.BoolRef, is_told: bool = False) -> tuple[str, str]:
        """Whether a state as the solver knows it can be such (sat, unsat or unknown), and which."""
        self.solver.push()
        self.solver.add(claim)
        verdict = str(self.solver.check())
        story = self._told(self.solver.model()) if is_told and verdict == "sat" else ""
        if self._heard is not None:
            self._heard(title, verdict, self.solver)
        self.solver.pop()
        return verdict, story

    def _told(self, model: z3.ModelRef) -> str:
        """The state of a counterexample: what differs from the initial one, and the requests in it."""
        world, initial = self.world, self.world.model.initial
        parts = []
        for place, term in world.before.globals.items():
            value = _number(model.eval(term, model_completion=True))
            if value != initial[place]:
                parts.append(f"{world.model.variables[place].name}={world.model.variables[place].values[value]}")
        for request in model.get_universe(world.sort) or []:
            inner = []
            for short, function in world.before.requests.items():
                place = world.builder.place[f"request[{EACH}].{short}"]
                value = _number(model.eval(function(request), model_completion=True))
                if value != initial[place]:
                    inner.append(f"{short}={world.model.variables[place].values[value]}")
            mine = " (this)" if model.eval(world.this, model_completion=True).eq(request) else ""
            parts.append(f"request{mine}: {' '.join(inner) or 'absent'}")
        return "; ".join(parts)


def _number(value: z3.ExprRef) -> int:
    return int(z3.is_true(value)) if z3.is_bool(value) else value.as_long()


def main() -> int:
    """Prints what was shown, for one caller and for two. Exit status 1 if anything was not."""
    unmet = 0
    for callers in (("caller",), ("caller", "another")):
        prover = Prover(callers=callers)
        proof = prover.run()
        unmet += len(proof.unmet)
        print(
            f"engine world, any number of requests, {len(callers)} owner(s) of tokens beside the engine's own: "
            f"{len(prover.world.model.actions)} actions, {len(prover.invariant)} conjuncts "
            f"({len(promises())} promises, {len(LEMMAS)} lemmas), {len(prover.moves)} promises on moves, {len(CHANGES)} on changes"
        )
        for (kind, how), count in sorted(proof.counts().items()):
            print(f"  {kind}: {count} {how}")
        for one in proof.unmet:
            print(f"  NOT MET  {one.kind} {one.action}: {one.conjunct}\n    {one.counterexample}")
        print(f"  {len(proof.obligations)} obligations, {len(proof.unmet)} not met, {proof.seconds:.1f} s")
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())
