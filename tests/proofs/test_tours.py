"""Planned tours are paths of the model, and together they take every edge there is, as a second walker of the same turns finds them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest

from quiesce.proofs.path import Call, Path, Tables
from quiesce.proofs.search import State
from quiesce.proofs.tours import ENDS, Abstraction, Edge, Toured, find_tours, kind_of
from quiesce.proofs.world import World
from quiesce.spec import PASS_ORDER

SMALL = World.engine(
    1,
    without=[
        "engine.sleep",
        "engine.clear",
        "engine.begin_update",
        "engine.ready_empty",
        "request.device_fault",
        "engine.shutdown",
    ],
)
"""Pauses, a request and its steps, failure: small enough to be walked in Python."""


@pytest.fixture(scope="module")
def seen() -> Abstraction:
    return Abstraction(SMALL)


@pytest.fixture(scope="module")
def toured(seen: Abstraction) -> Toured:
    return find_tours(seen)


class Walker:
    """Takes causes and settles, in the tables' own words: what pace.c does with bits."""

    def __init__(self, seen: Abstraction) -> None:
        self.seen, self.path = seen, Path(Tables(seen.builder.world))
        instances = seen.builder.world.instances
        self._looks = [
            Call(machine, instance, str(event), data)
            for machine, event in PASS_ORDER
            if machine in instances and f"{machine}.{event}" in seen.kinds
            for instance in instances[machine]
            for data in ([{"requests": request} for request in instances["request"]] if event == "strip_members" else [{}])
        ]

    def turn(self, causes: tuple[str, ...]) -> None:
        for name in causes:
            self.path.take(Call.parse(name))
        moved = True
        while moved:
            moved = False
            for call in self._looks:
                if self.path.tables.enabled(call, self.path.at):
                    self.path.take(call)
                    moved = True

    def edges(self, before: State) -> Iterator[Edge]:
        last = self.seen.number(before)
        for action, state in self.path.taken:
            after = self.seen.number(state)
            yield (last, self.seen.kinds[kind_of(action)], after)
            last = after
        self.path.taken.clear()


def test_tours_take_every_edge_there_is(seen: Abstraction, toured: Toured) -> None:
    taken: set[Edge] = set()
    for tour in toured.tours:
        walker = Walker(seen)
        for turn in tour:
            before = walker.path.at
            walker.turn(turn)
            taken |= set(walker.edges(before))
    assert taken == toured.edges


def test_a_walker_in_python_finds_the_same_settled_states_and_edges(seen: Abstraction, toured: Toured) -> None:
    walker, found, edges = Walker(seen), {seen.model.initial}, set()
    alone = {
        action.name for action in seen.model.actions if not action.event.boundary and action.event.name not in (*ENDS, "void")
    }
    causes = [*((name,) for name in sorted(alone) if "preempt" not in name), ("step[0].land", "request[0].eos")]
    queue = deque(found)
    while queue:
        state = queue.popleft()
        for turn in causes:
            walker.path.at = state
            if turn[0].startswith("step[1].land") or not walker.path.tables.enabled(Call.parse(turn[0]), state):
                continue
            if turn[0].startswith("step") and ".plan" in turn[0] and not is_empty(walker, turn[0]):
                continue
            if len(turn) > 1 and "eos" in turn[1] and not ends(walker):
                continue
            walker.turn(turn)
            edges |= set(walker.edges(state))
            if walker.path.at not in found:
                found.add(walker.path.at)
                queue.append(walker.path.at)
    assert len(found) == toured.num_states
    assert edges == toured.edges


def is_empty(walker: Walker, name: str) -> bool:
    return walker.path.value(f"{name.partition('.')[0]}.state") == "empty"


def ends(walker: Walker) -> bool:
    """Whether a request that the older step names can reach its end with it."""
    value = walker.path.value
    holds = value("request[0].state") in ("running", "retracting")
    return holds and value("request[0].member[0]") == "yes" and value("request[0].eos_mark") == "no"


def test_what_is_avoided_begins_no_turn_and_what_is_taken_is_not_sought(seen: Abstraction, toured: Toured) -> None:
    running = next(
        before for before, kind, _ in toured.edges if seen.words(before)[0] == "running" and kind == seen.kinds["engine.pause"]
    )
    fails = seen.causes["engine.fail"]
    fewer = find_tours(seen, avoided=[(running, fails)])
    assert not [edge for edge in fewer.edges if edge[:2] == (running, seen.kinds["engine.fail"])]
    assert len(fewer.edges) < len(toured.edges)
    assert find_tours(seen, taken=toured.edges).tours == ()


def test_an_edge_is_told_in_words(seen: Abstraction, toured: Toured) -> None:
    told = {seen.told(edge) for edge in toured.edges}
    assert "starting resident resident stable absent --engine.ready--> running resident resident stable absent" in told
