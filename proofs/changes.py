"""Promises about what an action may change, for any number of requests: they speak of the states before and after it.

No single state shows that they were broken, and no guard of the language can say them: they are said here, over z3's terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import z3

from quiesce.proofs.claims_engine import ENDS, FREES_A_TOKEN
from quiesce.proofs.model import Action
from quiesce.proofs.unbounded import EACH, State, Unbounded, all_of

HOLDING = "state in (running, retracting, draining)"
"""States in which a request has blocks of its own."""

RUNS_ON_STALE = "stale and state == running and not fault_mark"


@dataclass(frozen=True, slots=True)
class Change:
    """A promise about every action."""

    name: str
    sentence: str
    claim: Callable[[Unbounded, Action, State], z3.BoolRef]
    reads: Callable[[str], bool]
    """Whether it speaks of this variable; an action that writes none of them, and has no effect of these names, keeps it."""
    effects: tuple[str, ...] = ()

    def concerns(self, world: Unbounded, action: Action, writes: set[str]) -> bool:
        names = {variable.name for place, variable in enumerate(world.model.variables) if world.key(place) in writes}
        return any(map(self.reads, names)) or any(effect in text for effect in self.effects for text in action.effects)


def _of_each(world: Unbounded, when: str, state: State, request: z3.ExprRef) -> z3.BoolRef:
    return world.formula(world.builder.guard("request", EACH, when), state, request)


def _blocks(world: Unbounded, action: Action, after: State) -> z3.BoolRef:
    """Who takes blocks begins to hold them, who gives them back ends holding them, and of nobody else does that change."""
    takes = any("allocate_blocks" in text for text in action.effects)
    gives = any("free_blocks" in text for text in action.effects)
    held, holds = (_of_each(world, HOLDING, state, world.this) for state in (world.before, after))
    mine = z3.And(z3.Not(held), holds) if takes else z3.And(held, z3.Not(holds)) if gives else held == holds
    other = z3.Const("other", world.sort)
    same = _of_each(world, HOLDING, world.before, other) == _of_each(world, HOLDING, after, other)
    return z3.And(mine, z3.ForAll([other], z3.Or(other == world.this, same)))


def _versions(world: Unbounded, action: Action, after: State) -> z3.BoolRef:
    """A new version makes stale whatever has blocks; nothing but a commit that keeps it lets a request run on with stale KV."""
    request = z3.Const("other", world.sort)
    holds, stale = (_of_each(world, when, after, request) for when in (HOLDING, "stale"))
    parts = []
    if any(text.endswith("new_version") for text in action.effects):
        parts.append(z3.Implies(holds, stale))
    if action.event.name != "commit_keep":
        old, may_run = (_of_each(world, RUNS_ON_STALE, state, request) for state in (world.before, after))
        parts.append(z3.Implies(may_run, old))
    return z3.ForAll([request], all_of(parts))


def _tokens(world: Unbounded, action: Action, after: State) -> z3.BoolRef:
    """A token never weakens (its states are declared from weak to strong); it is freed by its own release, by stop or by failure."""
    parts = []
    for owner in world.builder.world.instances["pause_token"]:
        place = world.builder.place[f"pause_token[{owner}].state"]
        may_free = action.event.name in FREES_A_TOKEN.get(owner, {"resume"}) | ENDS
        old, new = world.before.globals[place], after.globals[place]
        parts.append(z3.Or(z3.ULE(old, new), z3.And(new == 0, may_free)))
    return all_of(parts)


CHANGES = (
    Change("S6_conservation", "Blocks are taken and given back exactly where a request begins and ends to hold them.", _blocks,
           lambda name: name == "request[each].state", ("allocate_blocks", "free_blocks")),
    Change("S9_version_coherence", "A request that may run has no KV of an older version unless it was kept.", _versions,
           lambda name: name.startswith("request[each]."), ("new_version",)),
    Change("S11_ownership", "A token is freed only by its own release, by stop or by failure, and never weakens.", _tokens,
           lambda name: name.startswith("pause_token[")),
)  # fmt: skip
