"""What goes wrong without a rule: the tables are edited, the world is searched, and a shortest story ends in a broken property."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

from quiesce.proofs import moves, properties, search
from quiesce.proofs.edits import edited
from quiesce.proofs.evidence import Rule
from quiesce.proofs.explorer import MoveProperty
from quiesce.proofs.expr import Expr, conj, disj, neg
from quiesce.proofs.lemmas import LEMMAS
from quiesce.proofs.model import Builder, Model, is_patient
from quiesce.proofs.rules import RULES, UNSEEN, Without
from quiesce.proofs.search import Graph, compile_guard
from quiesce.spec import CATALOG, PASS_ORDER

FOR_EVER = "for ever:"
"""Stands in a story between what happens once and what can then go on for ever; nothing after it: nothing need happen any more."""


def in_pass_order(model: Model) -> Model:
    """The model as the engine goes about it: whatever waits, boundary work is done first, in the order of the pass."""
    place = {(machine, str(event)): number for number, (machine, event) in enumerate(PASS_ORDER)}
    boundary = [action for action in model.actions if action.event.boundary]
    boundary.sort(key=lambda action: place[(action.machine, str(action.event.name))])
    earlier = {(action.name, action.row): boundary[:number] for number, action in enumerate(boundary)}
    return replace(model, actions=[
        replace(action, guard=conj([action.guard, *(neg(other.guard) for other in earlier.get((action.name, action.row), boundary))]))
        for action in model.actions])  # fmt: skip


def found(without: Without) -> Rule:
    """The story of a rule. Of a rule whose lack breaks nothing it is empty.

    Raises:
        LookupError: the world has no property of this name.
    """
    story = breaks(without) if without.breaks else ()
    return Rule(without.rule, without.sentence, without.removed, (without.breaks,) if story else (), story)


def breaks(without: Without, as_engine: bool = False) -> tuple[str, ...]:
    """The shortest way to break the named property without the rule; empty if it cannot be broken.

    `as_engine`: only as the engine goes about it.
    """
    builder = Builder(without.world, edited(without.edits))
    model = (without.change or without.base)(builder.build())
    if as_engine:
        model = in_pass_order(model)
    return _story(without, builder, model, without.one_pass and without.in_order)


def holds_with_it(without: Without) -> bool:
    """Whether the named property holds in the same world with the rule: only then its story says something."""
    builder = Builder(without.world, CATALOG.machines)
    return not _story(without, builder, without.base(builder.build()), without.one_pass)


def _story(without: Without, builder: Builder, model: Model, one_pass: bool) -> tuple[str, ...]:
    for name, begin, goal in properties.eventually(builder):
        if name == without.breaks:
            return _for_ever(search.explore(model, one_pass), begin, goal)
    return _shortest(model, _property(builder, without.breaks), one_pass)


def _property(builder: Builder, name: str) -> Expr | MoveProperty:
    states = properties.always(builder)
    if name in states:
        return states[name]
    for lemma in LEMMAS:
        if lemma.name == name:
            return builder.guard("engine", "", lemma.when)
    for move in moves.on_moves(builder):
        if move.name == name:
            return move
    raise LookupError(f"the world {builder.world.name} has no property {name}")


def _shortest(model: Model, prop: Expr | MoveProperty, one_pass: bool) -> tuple[str, ...]:
    """The shortest way into a state that breaks the property, or in which a move that breaks it can be made, and that move."""
    if not isinstance(prop, MoveProperty):
        graph = search.explore(model, one_pass, until=neg(prop))
        return () if graph.found is None else tuple(graph.story(graph.found))
    urgent = disj([action.guard for action in model.actions if action.event.boundary]) if one_pass else disj([])
    wrong = {}
    for number, before in prop.before.items():
        action = model.actions[number]
        wrong[number] = conj([action.guard, neg(before), *([neg(urgent)] if is_patient(action) else [])])
    graph = search.explore(model, one_pass, until=disj(list(wrong.values())))
    if graph.found is None:
        return ()
    last = next(number for number, tree in wrong.items() if compile_guard(tree)(graph.states[graph.found]))
    return (*graph.story(graph.found), model.actions[last].name)


def _for_ever(graph: Graph, begin: Expr, goal: Expr) -> tuple[str, ...]:
    """How the world can go on for ever, fairly, and never come to the goal."""
    part = search.unfair_lasso(graph, goal, begin)
    if part is None:
        return ()
    names = [action.name for action in graph.model.actions]
    stem, state = _stem(graph, begin, goal, set(part))
    return (*(names[action] for action in stem), FOR_EVER, *(names[action] for action in _cycle(graph, state, set(part))))


def _stem(graph: Graph, begin: Expr, goal: Expr, part: set[int]) -> tuple[list[int], int]:
    """The shortest way through `begin` into the part without reaching the goal, and where it enters."""
    is_begin, is_goal = compile_guard(begin), compile_guard(goal)

    def waiting(state: int, before: bool) -> bool:
        return not is_goal(graph.states[state]) and (before or is_begin(graph.states[state]))

    start = (0, waiting(0, False))
    parents: dict[tuple[int, bool], tuple[tuple[int, bool], int]] = {}
    queue, seen = deque([start]), {start}
    while queue:
        here = queue.popleft()
        state, since = here
        if since and state in part:
            return _actions_to(here, start, parents), state
        for action, after in graph.edges[state]:
            there = (after, waiting(after, since))
            if there not in seen:
                seen.add(there)
                parents[there] = (here, action)
                queue.append(there)
    raise LookupError("the part cannot be reached")


def _actions_to(place: Hashable, start: Hashable, parents: Mapping[Any, tuple[Any, int]]) -> list[int]:
    actions = []
    while place != start:
        place, action = parents[place]
        actions.append(action)
    return actions[::-1]


def _cycle(graph: Graph, start: int, part: set[int]) -> list[int]:
    """A way round within the part on which every event that is owed a turn has it, or meets a state in which it cannot happen."""
    owed = sorted({event for state in part for event in _fair(graph, state)})
    done: list[int] = []
    visited = [start]
    for event in owed if _fair(graph, start) else ():
        if event not in {graph.model.actions[action].fair_name for action in done} and all(
            event in _fair(graph, state) for state in visited
        ):
            _walk(graph, part, visited, done, event)
    if visited[-1] != start:
        _walk(graph, part, visited, done, "", start)
    return done


def _fair(graph: Graph, state: int) -> set[str]:
    """Events that are owed a turn and can happen here."""
    actions = (graph.model.actions[action] for action, _ in graph.edges[state])
    return {action.fair_name for action in actions if action.event.fairness != "none"}


def _walk(graph: Graph, part: set[int], visited: list[int], done: list[int], event: str, goal: int = -1) -> None:
    """Goes on within the part, the shortest way, until the event has happened or cannot happen, or to `goal`."""
    parents: dict[int, tuple[int, int]] = {}
    start = visited[-1]
    queue, seen = deque([start]), {start}
    while queue:
        here = queue.popleft()
        for action, after in graph.edges[here]:
            if after not in part:
                continue
            is_taken = bool(event) and graph.model.actions[action].fair_name == event
            if is_taken or after == goal or (event and event not in _fair(graph, after)):
                leg = [*_actions_to(here, start, parents), action]
                done += leg
                visited += [*_states_to(here, start, parents), after]
                return
            if after not in seen:
                seen.add(after)
                parents[after] = (here, action)
                queue.append(after)
    raise LookupError(f"{event} is owed a turn in the part and never has it")


def _states_to(place: int, start: int, parents: dict[int, tuple[int, int]]) -> list[int]:
    states = []
    while place != start:
        states.append(place)
        place, _ = parents[place]
    return states[::-1]


def table(on_the_engine: Callable[[Without], str] = lambda without: "") -> list[Rule]:
    """All of them; `on_the_engine` says what an outsider sees of a real engine without the rule."""
    return [replace(found(without), on_the_engine=UNSEEN.get(without.rule, "") or on_the_engine(without)) for without in RULES]
