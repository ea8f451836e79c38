"""The parts of `quiesce prove`: each asks one judge about one world and brings what it said as `Evidence`. None needs another.

A profile is a list of parts. `quick` is what a change is checked with; `full` is what the committed report is made of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from quiesce.proofs import explorer, lasso, moves, murphi, promela, properties, search, small_mutants
from quiesce.proofs.aged import aged
from quiesce.proofs.campaign import mutants
from quiesce.proofs.evidence import By, Evidence, Judgement, Proof, Run, Semantics
from quiesce.proofs.explorer import MoveProperty
from quiesce.proofs.expr import Expr, neg
from quiesce.proofs.model import Builder, Model
from quiesce.proofs.world import World
from quiesce.statemachine.trace import spec_hash

MEGABYTES: Final = 9_000
"""Of one search; two run at a time."""
SECONDS: Final = 1_800.0
"""Of a foreign judge's search."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the work: its name, and a function of a module, with its arguments, that finds something."""

    name: str
    work: Callable[..., Evidence]
    arguments: tuple[Any, ...] = ()


def nothing() -> Evidence:
    return Evidence(spec_hash(), "")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A world and all that is promised of it."""

    model: Model
    always: dict[str, Expr]
    promised: list[MoveProperty]
    witnesses: dict[str, Expr]

    @staticmethod
    def of(world: World, semantics: Semantics) -> _Asked:
        builder = Builder(world)
        model, always = builder.build(), properties.always(builder)
        if world.name == "engine" and world.without:  # what is offered is not offered where its event has been left out
            always = {name: tree for name, tree in always.items() if not name.startswith("E")}
        promised = moves.on_moves(builder)
        if semantics is Semantics.one_pass and promised:
            promised.append(moves.calls_wait(builder))
        return _Asked(model, always, promised, properties.sometimes(builder))

    @property
    def names(self) -> list[str]:
        return [*self.always, *(move.name for move in self.promised)]


# ---- our own judges -------------------------------------------------------------------------------------------------------------


def safety(world: World, semantics: Semantics, symmetric: bool = False) -> Evidence:
    """Every predicate on states, every promise on moves and every witness, in all states that can be reached."""
    asked = _Asked.of(world, semantics)
    never = {} if symmetric else {f"never {name}": neg(tree) for name, tree in asked.witnesses.items()}
    one_pass = semantics is Semantics.one_pass
    verdict = explorer.explore(
        asked.model, {**asked.always, **never}, asked.promised, one_pass, MEGABYTES, symmetric=symmetric, progress=False
    )
    where = (world.name, world.size, semantics, By.explorer)
    found = nothing()
    found.runs.append(
        Run(
            *where,
            verdict.num_states,
            verdict.num_edges,
            verdict.seconds,
            round(verdict.peak_bytes / 2**20, 1),
            verdict.depth,
            verdict.num_dead,
            symmetric,
        )
    )
    for name in asked.names:
        found.judgements.append(Judgement(name, *where, name not in verdict.stories, verdict.stories.get(name, ())))
    for name in () if symmetric else asked.witnesses:
        story = verdict.stories.get(f"never {name}", ())
        found.witnesses.append(Judgement(name, *where, bool(story), story))
    return found


def liveness(world: World) -> Evidence:
    """Every leads-to, under the declared fairness and the one-pass rule; by the search that is there to be read."""
    builder = Builder(world)
    graph = search.explore(builder.build(), one_pass=True)
    where = (world.name, world.size, Semantics.one_pass, By.search)
    found = nothing()
    found.runs.append(Run(*where, len(graph.states), graph.num_edges, 0.0))
    for name, begin, goal in properties.eventually(builder):
        part = search.unfair_lasso(graph, goal, begin)
        story = () if part is None else tuple(graph.story(min(part)))
        found.judgements.append(Judgement(name, *where, part is None, story))
    return found


# ---- judges that share nothing with us but the trees ------------------------------------------------------------------------------


def foreign(world: World, semantics: Semantics, by: By) -> Evidence:
    """SPIN or Rumur over the same world: states, edges, and which promises they find broken."""
    asked = _Asked.of(world, semantics)
    look = promela.search if by is By.spin else murphi.search
    said = look(asked.model, asked.always, asked.promised, semantics is Semantics.one_pass, MEGABYTES, SECONDS)
    where = (world.name, world.size, semantics, by)
    found = nothing()
    found.runs.append(Run(*where, said.num_states, said.num_edges, said.seconds))
    found.judgements += [Judgement(name, *where, name not in said.violated) for name in asked.names]
    return found


def any_number(callers: Sequence[str]) -> Evidence:
    """Every safety promise for any number of requests, by induction; z3 answers."""
    from quiesce.proofs import induction  # z3: only who asks it pays for it

    proof = induction.Prover(callers=callers).run()
    found = nothing()
    for name in sorted({one.conjunct for one in proof.obligations}):
        mine = [one for one in proof.obligations if one.conjunct == name]
        unmet = sum(one in proof.unmet for one in mine)
        found.proofs.append(Proof(name, By.z3, len(mine), unmet))
    return found


def leads_to(world: World, removals: bool) -> Evidence:
    """Every leads-to as the declared fairness has it, in C; with `removals` also what fails when each event loses its mark.

    Several requests of an engine have ages: the oldest never yields its blocks (R23), or two could preempt each other for ever.
    """
    builder = Builder(world)
    model = builder.build()
    several = world.name == "engine" and len(world.instances["request"]) > 1
    model = aged(model) if several else model
    promises = list(properties.eventually(builder))
    declared = lasso.declared(model)
    event_of = {action.fair_name: f"{action.machine}.{action.event.name}" for action in model.actions}
    events = sorted({event_of[name] for name in declared}) if removals else []
    marks = [declared, *({name: mark for name, mark in declared.items() if event_of[name] != event} for event in events)]
    said = lasso.judge(model, promises, marks, megabytes=MEGABYTES, progress=False)
    where = (world.name, f"{world.size}, with ages" if several else world.size, Semantics.one_pass, By.explorer)
    found = nothing()
    found.runs.append(Run(*where, said.num_states, said.num_edges, said.seconds, round(said.peak_bytes / 2**20, 1)))
    for name, _, _ in promises:
        way = said.lassos[0][name]
        found.judgements.append(
            Judgement(name, *where, way is None, () if way is None else (*way.story, "then for ever", *way.around))
        )
    for event, lassos in zip(events, said.lassos[1:], strict=True):
        found.fairness[event] = tuple(name for name, way in lassos.items() if way is not None)
    return found


def second_solver(callers: Sequence[str]) -> Evidence:
    """Every question that z3 was asked, put to cvc5; an answer that differs is one that was not met."""
    from quiesce.proofs import smt

    asked = smt.questions(callers=callers)
    found = nothing()
    found.proofs.append(Proof("", By.cvc5, len(asked), len(smt.disagreements(asked))))
    return found


def rules() -> Evidence:
    """Every rule taken away: what breaks in the model, and what the real engine then does along the story."""
    from quiesce.proofs import without
    from quiesce.stateful.without_rule import told  # the engine, and with it torch

    logging.disable(logging.CRITICAL)  # an engine without a rule fails, and says so at length
    found = nothing()
    found.rules += without.table(told)
    return found


# ---- profiles -------------------------------------------------------------------------------------------------------------------

CALLERS: Final = (("caller",), ("caller", "another"))
PAUSES_ONLY: Final = ("engine.sleep", "engine.clear", "engine.begin_update", "engine.wake_up", "weights.begin_in_place")
"""Left out where many requests are to fit: the engine pauses, drains and ends, and its memory stays."""
THREE: Final = World.engine(3)
THREE_AT_ANY_TIME: Final = World.engine(3, callers=(), without=("engine.clear", "request.device_fault"))
THREE_LIVELY: Final = World.engine(3, without=(*PAUSES_ONLY, "request.device_fault"))
FOUR: Final = World.engine(4, without=PAUSES_ONLY)
OF_MESSAGES: Final = (World.link(1), World.session(1), World.link(2))


def quick() -> list[Part]:
    """What a change is checked with: the small worlds, by our own judges."""
    both = [(world, how) for world in (World.engine(1), *OF_MESSAGES) for how in Semantics]
    return [
        *_explored([*both, (World.operation(1), Semantics.one_pass)]),
        _lively(World.engine(1)),
        *(
            Part(f"{world.name} {world.size} leads-to: our search", liveness, (world,))
            for world in (World.link(1), World.session(1))
        ),
        _lively(World.operation(1)),
        *(Part(f"any number of requests, {len(callers)} callers: z3", any_number, (callers,)) for callers in CALLERS),
    ]


def full() -> list[Part]:
    """What the committed report is made of. The long parts come first, so that the two processes end together."""
    engine = World.engine(2)
    large = [(engine, how) for how in Semantics]
    large += [(World.session(2), Semantics.interleaved), (World.link(3), Semantics.interleaved)]
    large += [(World.operation(number), Semantics.one_pass) for number in (2, 3)]
    small = [(world, how) for world in (World.engine(1), *OF_MESSAGES) for how in Semantics]
    several = ((THREE, Semantics.one_pass), (THREE_AT_ANY_TIME, Semantics.interleaved), (FOUR, Semantics.one_pass))
    return [
        *(
            Part(f"{world.name} {world.size} {how}, up to order: our explorer", safety, (world, how, True))
            for world, how in several
        ),
        *_explored(large),
        *_heard([(engine, Semantics.one_pass)])[:1],  # SPIN alone: Rumur would take as long as all the rest
        Part("every rule taken away, on the model and on the real engine", rules),
        *(Part(f"mutants of the tables, share {share + 1} of 2", mutants, (share, 2, 400)) for share in range(2)),
        *(
            Part(f"mutants of the {name} world: our explorer and SPIN", small_mutants.agreement, (name,))
            for name in small_mutants.SCOPES
        ),
        _lively(engine),
        _lively(THREE_LIVELY),
        *(_lively(world) for world in (World.link(2), World.session(2), World.operation(2))),
        *quick(),
        *_heard(small),
        *(_lively(world, removals=True) for world in (World.engine(1), World.link(1), World.session(1), World.operation(1))),
        *(Part(f"any number of requests, {len(callers)} callers: cvc5", second_solver, (callers,)) for callers in CALLERS),
    ]


def _explored(asked: Sequence[tuple[World, Semantics]]) -> list[Part]:
    return [Part(f"{world.name} {world.size} {how}: our explorer", safety, (world, how)) for world, how in asked]


def _heard(asked: Sequence[tuple[World, Semantics]]) -> list[Part]:
    return [
        Part(f"{world.name} {world.size} {how}: {by}", foreign, (world, how, by))
        for world, how in asked
        for by in (By.spin, By.rumur)
    ]


def _lively(world: World, removals: bool = False) -> Part:
    words = ", and without each mark of fairness" if removals else ""
    return Part(f"{world.name} {world.size} leads-to{words}: our explorer", leads_to, (world, removals))


PROFILES: Final[dict[str, Callable[[], list[Part]]]] = {"quick": quick, "full": full}
