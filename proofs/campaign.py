"""The campaign: every mutant of the tables is judged, and either a named promise is broken, or it is shown that nothing has changed.

Judged three times, the cheap way first. In the states of the tables themselves (`near`): where a changed action can be taken and breaks a
promise, or something promised is not possible any more, the story that leads there is played on the mutant; if the mutant can follow it,
the promise is broken. A mutant that in every state does what the tables do has their graph, and no promise can tell it from them. The
others are explored on their own (`safety`), and their leads-to judged under the one-pass rule (`liveness`). What nobody notices is a
survivor, and is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quiesce.proofs import explorer, lasso, moves, properties, vectors
from quiesce.proofs.after import after
from quiesce.proofs.aged import aged
from quiesce.proofs.difference import changed_actions, difference
from quiesce.proofs.evidence import Evidence, Mutant
from quiesce.proofs.expr import FALSE, Expr, conj, neg
from quiesce.proofs.model import Action, Builder, Model
from quiesce.proofs.mutants import Mutation, mutations, sample
from quiesce.proofs.world import World
from quiesce.spec.language import Machine
from quiesce.statemachine.trace import spec_hash

SEED: Final = 2026
MACHINES: Final = ("engine", "pause_token", "memory", "weights", "step", "request")
FIRST: Final = World.engine(1)
WIDER: Final = tuple(
    World.engine(2, capacity, callers=(), without={"engine.clear", "request.device_fault", "engine.begin_update"})
    for capacity in (1, 2)
)
"""Two requests, and room for one or for both; what makes the world large, and has little to do with their number, is left out."""
POSSIBLE: Final = "E"
"""How the names of promises about what must be possible begin."""
TRIES: Final = 8
"""States from which a broken promise is told, if the mutant cannot follow the story to the nearest."""
OF_EVENTS: Final = ("drop fairness", "weaken fairness", "drop boundary")
"""Kinds of mutants that move as the tables do; leads-to judge them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The promises that a mutant breaks, and a shortest story."""

    killed_by: tuple[str, ...] = ()
    story: tuple[str, ...] = ()


def _verdict(stories: Mapping[str, tuple[str, ...]]) -> Verdict:
    return Verdict(tuple(sorted(stories)), min(stories.values(), key=len)) if stories else Verdict()


class Campaign:
    """The tables' own world, and what can be asked about mutants there."""

    def __init__(self, world: World) -> None:
        self.world = world
        builder = Builder(world)
        self.table = vectors.explore(builder.build())
        self.always = properties.always(builder)

    def judge(self, mutation: Mutation) -> Mutant:
        """What noticed the mutant, or that in this world nobody can. If one promise alone does at first sight, all are asked."""
        size = self.world.size
        if mutation.kind in OF_EVENTS:
            found = self.liveness(mutation)
            found = found if found.killed_by else self.one_pass(mutation)
        else:
            found = self.near(mutation)
            if not found.killed_by and self.is_alike(mutation):
                return Mutant(mutation.name, mutation.machine, mutation.kind, size=size, certificate=f"same graph at {size}")
            if len(found.killed_by) < 2:
                found = self.safety(mutation)
            found = found if found.killed_by else self.liveness(mutation)
        return Mutant(mutation.name, mutation.machine, mutation.kind, found.killed_by, found.story, size)

    def near(self, mutation: Mutation) -> Verdict:
        """Promises that are broken by a changed action, or by its lack, in a state that the tables reach, too."""
        builder = Builder(self.world, mutation.tables)
        model = builder.build()
        stories: dict[str, tuple[str, ...]] = {}
        for name, tree in properties.always(builder).items():
            if tree != self.always[name] and (story := self._told(model, neg(tree), self.table.where(neg(tree)))) is not None:
                stories[name] = story
        changed = changed_actions(self.table.model, model)
        promises = moves.on_moves(builder, frozenset(changed))
        for number in changed:
            action = model.actions[number]
            able = self.table.where(action.guard)
            here = self.table.columns[:, able]
            known: dict[Expr, vectors.Bits] = {}
            for name, wrong in self._breaks(
                action, [(move.name, move.before[number]) for move in promises if number in move.before]
            ):
                if name in stories or wrong == FALSE:
                    continue
                broken = able[vectors.holds(wrong, here, known)]
                if (story := self._told(model, conj([action.guard, wrong]), broken)) is not None:
                    stories[name] = (*story, action.name)
        return _verdict(stories)

    def _breaks(self, action: Action, before: Iterable[tuple[str, Expr]]) -> Iterator[tuple[str, Expr]]:
        """Promises that this action breaks where it is taken in states such as these: those on states by where it leads."""
        for name, tree in self.always.items():
            if not name.startswith(POSSIBLE) and (then := after(action, tree)) != tree:
                yield name, neg(then)
        for name, tree in before:
            yield name, neg(tree)

    def _told(self, model: Model, breaks: Expr, states: NDArray[np.int64]) -> tuple[str, ...] | None:
        """A story that the mutant follows to one of these states, if what it breaks is broken there."""
        for state in states[:TRIES]:
            names = [self.table.model.actions[action].name for action in self.table.way(int(state))]
            arrived = follow(model, names)
            if arrived is not None and vectors.holds(breaks, arrived)[0]:
                return tuple(names)
        return None

    def is_alike(self, mutation: Mutation) -> bool:
        """Whether the mutant has the same graph as the tables."""
        apart = difference(self.table.model, Builder(self.world, mutation.tables).build())
        return apart == FALSE or not len(self.table.where(apart))

    def safety(self, mutation: Mutation) -> Verdict:
        """Promises on states and on moves, in all states of the mutant."""
        builder = Builder(self.world, mutation.tables)
        model = builder.build()
        found = explorer.explore(model, properties.always(builder), moves.on_moves(builder), progress=False)
        return _verdict(found.stories)

    def one_pass(self, mutation: Mutation) -> Verdict:
        """Whether calls wait for the core, where they should."""
        builder = Builder(self.world, mutation.tables)
        found = explorer.explore(builder.build(), {}, [moves.calls_wait(builder)], one_pass=True, progress=False)
        return _verdict(found.stories)

    def liveness(self, mutation: Mutation) -> Verdict:
        """Leads-to, under the fairness of the mutant and the one-pass rule."""
        return _verdict(lively(self.world, mutation.tables))


def lively(world: World, tables: Mapping[str, Machine]) -> dict[str, tuple[str, ...]]:
    """Leads-to that do not hold, with a story each; of several requests the oldest that runs never yields its blocks."""
    builder = Builder(world, tables)
    model = builder.build()
    model = aged(model) if len(world.instances["request"]) > 1 else model
    (found,) = lasso.judge(model, list(properties.eventually(builder)), progress=False).lassos
    return {name: one.story for name, one in found.items() if one}


def judged(mutations: Sequence[Mutation], worlds: Sequence[World] = (FIRST, *WIDER)) -> Iterator[Mutant]:
    """What noticed each mutant: in the first world, else, if it may differ for some number of requests, in the wider ones."""
    from quiesce.proofs.alike import AnyNumber  # z3: only who asks it pays for it

    first, *wider = worlds
    campaign, left = Campaign(first), []
    for mutation in mutations:
        found = campaign.judge(mutation)
        if found.killed_by:
            yield found
        else:
            left.append((mutation, found))
    alike = AnyNumber()
    seen = []
    for mutation, found in left:
        if mutation.kind not in OF_EVENTS and alike.is_alike(mutation):
            yield replace(
                found,
                certificate=f"z3: for any number of requests it does what the tables do; {found.certificate}".rstrip("; "),
            )
        else:
            seen.append((mutation, found))
    others = [Campaign(world) for world in wider]
    for mutation, found in seen:
        each = [other.judge(mutation) for other in others]
        killed = next((one for one in each if one.killed_by), None)
        certificates = [one.certificate for one in (found, *each)]
        yield killed or replace(found, certificate="; ".join(certificates) if all(certificates) else "")


def mutants(share: int, shares: int, number: int, seed: int = SEED) -> Evidence:
    """One share of a sample of the mutants of the engine world."""
    drawn = sample(list(mutations(MACHINES)), number, seed)
    return Evidence(spec_hash(), "", mutants=list(judged(drawn[share::shares])))


def follow(model: Model, names: Sequence[str]) -> vectors.Columns | None:
    """The state to which these actions lead; None where one of them cannot be taken."""
    state: vectors.Columns = np.array(model.initial, np.uint8)[:, None]
    for name in names:
        able = [action for action in model.actions if action.name == name and vectors.holds(action.guard, state)[0]]
        if not able:
            return None
        state = vectors.taken(able[0], state)
    return state
