"""Checks every property of a world, and says what was found. `python -m quiesce.proofs.prove [N]`; the explorer in C does the work."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from quiesce.proofs import explorer, properties, search
from quiesce.proofs.model import Builder, World


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


def main(arguments: list[str]) -> int:
    """Prints the verdicts. Exit status 1 if a property does not hold."""
    num_requests = int(arguments[0]) if arguments else 1
    wrong = 0
    for one_pass in (False, True):
        verdict, results = safety(num_requests, one_pass)
        print(
            f"engine world, N = {num_requests}, {'one pass' if one_pass else 'interleaved'}: {verdict.num_states:,} states, "
            f"{verdict.num_edges:,} edges, depth {verdict.depth}, {verdict.seconds:.1f} s"
        )
        for result in results:
            wrong += not result.holds
            print(
                f"  {'holds' if result.holds else 'BROKEN'}  {result.name}"
                + ("" if result.holds else f": {', '.join(result.story)}")
            )
    graph, lively = liveness(1)
    print(f"liveness, N = 1, one pass: {len(graph.states):,} states")
    for result in lively:
        wrong += not result.holds
        print(
            f"  {'holds' if result.holds else 'BROKEN'}  {result.name}"
            + ("" if result.holds else f": {', '.join(result.story)}")
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
