"""`quiesce prove`: every judge over every world of a profile. What they found is kept as `Evidence`, told, and made into the report.

A profile is a list of parts that need nothing of each other; two run at a time, each in a process of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from quiesce.proofs import explorer, moves, properties, search
from quiesce.proofs.evidence import By, Evidence, Judgement, Proof, Run, Semantics
from quiesce.proofs.expr import neg
from quiesce.proofs.model import Builder
from quiesce.proofs.world import World
from quiesce.statemachine.trace import spec_hash

PROFILES: Final = ("quick", "full")
JOBS: Final = 2


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the work: its name, and a function of a module, with its arguments, that finds something."""

    name: str
    work: Callable[..., Evidence]
    arguments: tuple[Any, ...] = ()


def _nothing() -> Evidence:
    return Evidence(spec_hash(), "")


def safety(world: World, semantics: Semantics) -> Evidence:
    """Every predicate on states, every promise on moves and every witness, in all states that can be reached."""
    builder = Builder(world)
    model = builder.build()
    always, promised, witnesses = properties.always(builder), moves.on_moves(builder), properties.sometimes(builder)
    judged = {**always, **{f"never {name}": neg(tree) for name, tree in witnesses.items()}}
    verdict = explorer.explore(model, judged, promised, semantics is Semantics.one_pass)
    where = (world.name, world.size, semantics, By.explorer)
    found = _nothing()
    found.runs.append(
        Run(*where, verdict.num_states, verdict.num_edges, verdict.seconds, depth=verdict.depth, num_dead=verdict.num_dead)
    )
    for name in [*always, *(move.name for move in promised)]:
        found.judgements.append(Judgement(name, *where, name not in verdict.stories, verdict.stories.get(name, ())))
    for name in witnesses:
        story = verdict.stories.get(f"never {name}", ())
        found.witnesses.append(Judgement(name, *where, bool(story), story))
    return found


def liveness(world: World, semantics: Semantics) -> Evidence:
    """Every leads-to, under the declared fairness."""
    builder = Builder(world)
    graph = search.explore(builder.build(), semantics is Semantics.one_pass)
    where = (world.name, world.size, semantics, By.search)
    found = _nothing()
    found.runs.append(Run(*where, len(graph.states), graph.num_edges, 0.0))
    for name, begin, goal in properties.eventually(builder):
        part = search.unfair_lasso(graph, goal, begin)
        story = () if part is None else tuple(graph.story(min(part)))
        found.judgements.append(Judgement(name, *where, part is None, story))
    return found


def any_number(callers: Sequence[str]) -> Evidence:
    """Every safety promise for any number of requests, by induction."""
    from quiesce.proofs import induction

    proof = induction.Prover(callers=callers).run()
    found = _nothing()
    for name in sorted({one.conjunct for one in proof.obligations}):
        mine = [one for one in proof.obligations if one.conjunct == name]
        unmet = sum(one in proof.unmet for one in mine)
        found.proofs.append(Proof(name, By.z3, len(mine), unmet))
    return found


def parts(profile: str) -> list[Part]:
    """What a profile is made of."""
    engine = [World.engine(number) for number in ((1,) if profile == "quick" else (1, 2))]
    found = [Part(f"{world.name} {world.size} {how}", safety, (world, how)) for world in engine for how in Semantics]
    found.append(Part("engine N=1 leads-to", liveness, (World.engine(1), Semantics.one_pass)))
    around = [World.link(number) for number in ((1, 2) if profile == "quick" else (1, 2, 3))] + [
        World.session(1),
        World.session(2),
    ]
    found += [Part(f"{world.name} {world.size}", safety, (world, Semantics.interleaved)) for world in around]
    found += [
        Part(f"{world.name} N=1 leads-to", liveness, (world, Semantics.interleaved))
        for world in (World.link(1), World.session(1))
    ]
    if importlib.util.find_spec("z3") is not None:
        found += [
            Part("any number of requests: z3", any_number, (callers,)) for callers in (("caller",), ("caller", "another"))
        ]
    return found


def gather(profile: str, jobs: int = JOBS) -> Iterator[tuple[Part, Evidence]]:
    """Runs the parts, and hands over each as it ends."""
    with ProcessPoolExecutor(jobs) as pool:
        running: dict[Future[Evidence], Part] = {pool.submit(part.work, *part.arguments): part for part in parts(profile)}
        for done in as_completed(running):
            yield running[done], done.result()


def told(part: Part, found: Evidence) -> Iterator[str]:
    """What a part found, in lines."""
    yield f"{part.name}:"
    for run in found.runs:
        yield (
            f"  {run.num_states:,} states, {run.num_edges:,} edges, depth {run.depth}, {run.num_dead} without a way on, "
            f"{run.seconds:.1f} s ({run.by})"
        )
    for one in found.judgements:
        yield f"  {'holds' if one.holds else 'BROKEN'}  {one.property}" + ("" if one.holds else f": {', '.join(one.story)}")
    for one in found.witnesses:
        yield f"  {'happens' if one.holds else 'NEVER'}  {one.property}" + (f": {', '.join(one.story)}" if one.holds else "")
    if found.proofs:
        unmet = sum(proof.num_unmet for proof in found.proofs)
        count = sum(proof.num_obligations for proof in found.proofs)
        yield f"  {count} obligations for {len(found.proofs)} sentences, {unmet} not met"
        yield from (f"  NOT MET  {proof.property}" for proof in found.proofs if proof.num_unmet)


def run(profile: str, out: Path) -> int:
    """Checks, prints, and writes `evidence.json` to the folder. The exit status: 1 if anything does not hold.

    Raises:
        ToolMissing: there is no C compiler.
    """
    evidence = Evidence(spec_hash(), profile)
    with tqdm(total=len(parts(profile)), unit="part", disable=not sys.stderr.isatty()) as bar:
        for part, found in gather(profile):
            bar.update()
            tqdm.write("\n".join(told(part, found)))
            evidence.absorb(found)
    evidence.write(out / "evidence.json")
    wrong = len(evidence.broken) + sum(proof.num_unmet for proof in evidence.proofs)
    print(f"{len(evidence.judgements)} judgements, {wrong} that do not hold: {out / 'evidence.json'}")
    return 1 if wrong else 0
