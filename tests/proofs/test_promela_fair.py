"""SPIN's nested depth-first search and our strongly connected parts agree on who is answered, with and without weak fairness."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.proofs import promela_fair, properties, search
from quiesce.proofs.model import Builder, Model
from quiesce.proofs.world import World
from quiesce.spec.language import Fairness
from tests.statemachine.tools import require_tool

WORLD = World.engine(1, callers=())
"""Sleep, update, clear and shutdown hold tokens; nobody else does."""
NEED_STRONG = {"L1_answered[0]", "L3_drains_end", "L8b_shutdown_waits_for_nobody"}
"""What no weak fairness carries."""


@pytest.fixture(scope="module")
def model() -> Model:
    require_tool("spin", "spin")
    require_tool("gcc", "gcc")
    return Builder(WORLD).build()


def test_both_judges_say_the_same_of_every_leads_to(model: Model) -> None:
    promises = list(properties.eventually(Builder(WORLD)))
    graph = search.explore(model, one_pass=True)
    ours = {
        name: tuple(search.unfair_lasso(graph, goal, trigger, kinds) is None for kinds in ((), ("weak",)))
        for name, trigger, goal in promises
    }
    theirs = {
        found.name: (found.holds_without_fairness, found.holds_under_weak_fairness)
        for found in promela_fair.judge(model, promises, seconds=100)
    }
    assert theirs == ours
    assert {name for name, verdicts in ours.items() if verdicts == (False, False)} == NEED_STRONG
    assert all(verdicts == (False, True) for name, verdicts in ours.items() if name not in NEED_STRONG)


def test_an_event_that_loses_its_mark_is_nobodys_duty(model: Model) -> None:
    actions = [
        replace(action, event=replace(action.event, fairness=Fairness.none)) if action.event.name == "reopen" else action
        for action in model.actions
    ]
    gate = [promise for promise in properties.eventually(Builder(WORLD)) if promise[0] == "L5_gate_reopens"]
    (found,) = promela_fair.judge(replace(model, actions=actions), gate, seconds=100, optimise=False)
    assert not found.holds_under_weak_fairness
