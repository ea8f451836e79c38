"""`quiesce prove`: checks every property of a world, and says what was found. The explorer in C does the work."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Final

from quiesce.proofs import explorer, properties, search
from quiesce.proofs.model import Builder
from quiesce.proofs.world import World

PROFILES: Final = {"quick": 1, "full": 2}
"""Requests in the engine world."""


@dataclass(frozen=True, slots=True)
class Result:
    """One property in one world."""

    name: str
    holds: bool
    story: tuple[str, ...] = ()


def safety(num_requests: int, one_pass: bool = False) -> tuple[explorer.Verdict, list[Result]]:
    """Every predicate on states and every promise on moves, in all states that can be reached."""
    builder = Builder(World.engine(num_requests))
    model = builder.build()
    always, moves = properties.always(builder), properties.on_moves(builder)
    verdict = explorer.explore(model, always, moves, one_pass)
    names = [*always, *(move.name for move in moves)]
    return verdict, [Result(name, name not in verdict.stories, verdict.stories.get(name, ())) for name in names]


def liveness(num_requests: int) -> tuple[search.Graph, list[Result]]:
    """Every leads-to, under the declared fairness and the one-pass rule."""
    builder = Builder(World.engine(num_requests))
    graph = search.explore(builder.build(), one_pass=True)
    found = []
    for name, begin, goal in properties.eventually(builder):
        part = search.unfair_lasso(graph, goal, begin)
        found.append(Result(name, part is None, () if part is None else tuple(graph.story(min(part)))))
    return graph, found


def _told(results: list[Result]) -> int:
    """Prints verdicts; how many properties do not hold."""
    for result in results:
        story = "" if result.holds else f": {', '.join(result.story)}"
        print(f"  {'holds' if result.holds else 'BROKEN'}  {result.name}{story}")
    return sum(not result.holds for result in results)


def run(profile: str) -> int:
    """Checks and prints. The exit status: 1 if a property does not hold.

    Raises:
        ToolMissing: there is no C compiler.
    """
    num_requests, wrong = PROFILES[profile], 0
    for one_pass in (False, True):
        semantics = "one pass" if one_pass else "interleaved"
        print(f"engine world, {num_requests} request(s), {semantics} ...", flush=True)
        verdict, results = safety(num_requests, one_pass)
        print(
            f"  {verdict.num_states:,} states, {verdict.num_edges:,} edges, depth {verdict.depth}, {verdict.num_dead} without a way on, "
            f"{verdict.seconds:.1f} s"
        )
        wrong += _told(results)
    print("engine world, 1 request(s), one pass, leads-to under the declared fairness ...", flush=True)
    graph, lively = liveness(1)
    print(f"  {len(graph.states):,} states, {graph.num_edges:,} edges")
    wrong += _told(lively)
    if importlib.util.find_spec("z3") is None:
        print("any number of requests: not judged, z3 is missing; pip install z3-solver (make setup does)")
        return 1 if wrong else 0
    from quiesce.proofs import induction

    return max(induction.main(), 1 if wrong else 0)
