"""The mutants of the small worlds, each judged by our explorer and by SPIN: the two must count the same states and edges and find the same
promises broken. In worlds this small that can be asked of every mutant.
"""

from __future__ import annotations

from typing import Final

from quiesce.proofs import explorer, lasso, promela, properties
from quiesce.proofs.campaign import OF_EVENTS
from quiesce.proofs.difference import difference
from quiesce.proofs.evidence import By, Evidence, Judgement, Semantics
from quiesce.proofs.expr import FALSE, neg
from quiesce.proofs.model import Builder
from quiesce.proofs.mutants import Mutation, mutations
from quiesce.proofs.world import World
from quiesce.spec import CATALOG
from quiesce.statemachine.trace import spec_hash

SEEN_FROM_HERE: Final = {"link": ("link", "stream"), "session": ("session",)}
"""The tables whose mutants a world is asked about; those of requests are the engine world's."""
SCOPES: Final = {"link": (World.link(1), World.link(2)), "session": (World.session(1), World.session(2))}


def agreement(name: str) -> Evidence:
    """One judgement: whether SPIN and our explorer say the same of every mutant of a small world's own tables. It also says how many of
    them break a promise and how many are alike; the rest moves otherwise and breaks nothing that is promised of these worlds."""
    world = SCOPES[name][0]
    asked = list(mutations(SEEN_FROM_HERE[name]))
    differ, num_broken, num_alike = [], 0, 0
    for mutation in asked:
        broken, agree = judged(mutation, world)
        num_broken += bool(broken)
        num_alike += not broken and is_alike(mutation, SCOPES[name])
        differ += [] if agree else [mutation.name]
    told = f"SPIN agrees on each of {len(asked)} mutants ({num_broken} break a promise, {num_alike} are alike)"
    where = (world.name, world.size, Semantics.interleaved, By.spin)
    return Evidence(spec_hash(), "", judgements=[Judgement(told, *where, not differ, tuple(differ))])


def judged(mutation: Mutation, world: World) -> tuple[tuple[str, ...], bool]:
    """Promises that the mutant breaks, and whether SPIN says the same of its states, edges and promises."""
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
            return tuple(sorted(ours.stories)), agree
    (found,) = lasso.judge(model, list(properties.eventually(builder)), progress=False).lassos
    return tuple(sorted(name for name, one in found.items() if one)), agree


def is_alike(mutation: Mutation, worlds: tuple[World, ...]) -> bool:
    """Whether the mutant has the tables' graph in all of these worlds, and marks nothing otherwise."""
    return mutation.kind not in OF_EVENTS and all(_same_graph(mutation, world) for world in worlds)


def _same_graph(mutation: Mutation, world: World) -> bool:
    model = Builder(world, CATALOG.machines).build()
    apart = difference(model, Builder(world, mutation.tables).build())
    return apart == FALSE or not explorer.explore(model, {"alike": neg(apart)}, progress=False).stories
