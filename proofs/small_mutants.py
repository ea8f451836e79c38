"""The mutants of the small worlds, each judged by our explorer and by SPIN: the two must count the same states and edges and find the same
promises broken. In worlds this small that can be asked of every mutant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from quiesce.proofs import explorer, lasso, promela, properties
from quiesce.proofs.campaign import OF_EVENTS
from quiesce.proofs.difference import difference
from quiesce.proofs.evidence import By, Evidence, Judgement, Mutant, Semantics
from quiesce.proofs.expr import FALSE, neg
from quiesce.proofs.model import Builder, Model
from quiesce.proofs.mutants import Mutation, mutations
from quiesce.proofs.world import World
from quiesce.spec import CATALOG
from quiesce.statemachine.trace import spec_hash

SEEN_FROM_HERE: Final = {"link": ("link", "stream"), "session": ("session",)}
"""The tables whose mutants a world is asked about; those of requests are the engine world's."""
SCOPES: Final = {"link": (World.link(1), World.link(2)), "session": (World.session(1), World.session(2))}


def mutants(name: str) -> Evidence:
    """Every mutant of a small world's own tables. A disagreement of the judges is a property that does not hold."""
    found = Evidence(spec_hash(), "")
    world = SCOPES[name][0]
    for mutation in mutations(SEEN_FROM_HERE[name]):
        broken, story, agree = judged(mutation, world)
        certificate = "" if broken else _alike(mutation, SCOPES[name])
        found.mutants.append(Mutant(mutation.name, mutation.machine, mutation.kind, broken, story, world.size, certificate))
        if not agree:
            where = (world.name, world.size, Semantics.interleaved, By.spin)
            found.judgements.append(Judgement(f"SPIN agrees on the mutant {mutation.name}", *where, holds=False))
    return found


def judged(mutation: Mutation, world: World) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Promises that the mutant breaks, a shortest story, and whether SPIN says the same of its states, edges and promises."""
    builder = Builder(world, mutation.tables)
    model = builder.build()
    agree = True
    if mutation.kind not in OF_EVENTS:  # those move as the tables do
        always = properties.always(builder)
        ours = explorer.explore(model, always, progress=False)
        theirs = promela.search(model, always, optimise=False)
        counted = (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges)
        agree = counted and theirs.violated - {promela.NO_WAY_ON} == set(ours.stories)
        if ours.stories:
            return tuple(sorted(ours.stories)), min(ours.stories.values(), key=len), agree
    return *_lively(builder, model), agree


def _lively(builder: Builder, model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (found,) = lasso.judge(model, list(properties.eventually(builder)), progress=False).lassos
    stories: Mapping[str, tuple[str, ...]] = {name: one.story for name, one in found.items() if one}
    return tuple(sorted(stories)), min(stories.values(), key=len, default=())


def _alike(mutation: Mutation, worlds: tuple[World, ...]) -> str:
    """Whether the mutant has the tables' graph in all of these worlds, and marks nothing otherwise."""
    if mutation.kind in OF_EVENTS:
        return ""
    sizes = list(_same_in(mutation, worlds))
    return f"same graph at {' and '.join(sizes)}" if len(sizes) == len(worlds) else ""


def _same_in(mutation: Mutation, worlds: tuple[World, ...]) -> Iterator[str]:
    for world in worlds:
        model = Builder(world, CATALOG.machines).build()
        apart = difference(model, Builder(world, mutation.tables).build())
        if apart == FALSE or not explorer.explore(model, {"alike": neg(apart)}, progress=False).stories:
            yield world.size
