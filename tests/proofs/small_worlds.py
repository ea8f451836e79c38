"""How the tests judge a world that the reading explorer can hold: what is broken, each with a shortest story."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from quiesce.proofs import properties, search
from quiesce.proofs.model import Action, Builder
from quiesce.proofs.world import World
from quiesce.spec.language import Fairness, Machine

Marked = Callable[[Action], Fairness]


def explored(world: World, machines: Mapping[str, Machine] | None = None) -> tuple[Builder, search.Graph]:
    """Any row fires at any time: nobody in these worlds waits for the pass of a core that is somewhere else."""
    builder = Builder(world, machines)
    return builder, search.explore(builder.build())


def first(graph: search.Graph, where: search.Guard) -> list[str] | None:
    """A shortest way to a state that is such."""
    found = next((number for number, state in enumerate(graph.states) if where(state)), None)
    return None if found is None else graph.story(found)


def broken(builder: Builder, graph: search.Graph) -> dict[str, list[str]]:
    """Predicates that do not hold everywhere."""
    found = {}
    for name, tree in properties.always(builder).items():
        holds = search.compile_guard(tree)
        story = first(graph, lambda state, holds=holds: not holds(state))  # type: ignore[misc]  # a default binds it now
        if story is not None:
            found[name] = story
    return found


def failing(builder: Builder, graph: search.Graph, mark: Marked = lambda action: action.event.fairness) -> set[str]:
    """Leads-to that do not hold when actions are as fair as `mark` says."""
    actions = [replace(action, event=replace(action.event, fairness=mark(action))) for action in graph.model.actions]
    marked = replace(graph, model=replace(graph.model, actions=actions))
    return {
        name for name, begin, goal in properties.eventually(builder) if search.unfair_lasso(marked, goal, begin) is not None
    }


def unmarked(machine: str, event: str) -> Marked:
    """Everything as declared, but this event is nobody's duty."""
    return lambda action: (
        Fairness.none if (action.machine, str(action.event.name)) == (machine, event) else action.event.fairness
    )


def witnessed(builder: Builder, graph: search.Graph) -> dict[str, list[str] | None]:
    """What must be possible, and how."""
    return {name: first(graph, search.compile_guard(tree)) for name, tree in properties.sometimes(builder).items()}


def never_taken(graph: search.Graph) -> set[str]:
    """Actions that no state allows."""
    taken = {action for out in graph.edges for action, _ in out}
    return {action.name for number, action in enumerate(graph.model.actions) if number not in taken}
