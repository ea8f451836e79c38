"""The declaration, model-checked: what holds, in how many states, and that each rule is needed: without it a short story breaks a promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quiesce.engine import cli
from quiesce.proofs import explorer, moves, properties, search
from quiesce.proofs.evidence import Evidence
from quiesce.proofs.model import Builder
from quiesce.proofs.world import World
from quiesce.spec import PROPERTIES
from quiesce.spec.language import Fairness, Judge, Modality
from quiesce.statemachine.trace import spec_hash

STATES, EDGES = 468_745, 8_553_346
ONE_PASS_STATES, ONE_PASS_EDGES = 179_568, 904_655


def judged(one_pass: bool = False) -> explorer.Verdict:
    """The world of one request, explored."""
    builder = Builder(World.engine(1))
    return explorer.explore(builder.build(), properties.always(builder), moves.on_moves(builder), one_pass)


def test_every_promise_about_states_and_moves_holds_in_every_state_of_the_world_of_one_request() -> None:
    verdict = judged()
    assert verdict.stories == {}
    assert (verdict.num_states, verdict.num_edges) == (STATES, EDGES)
    actions = Builder(World.engine(1)).build().actions
    never = {action.name for action, times in zip(actions, verdict.fired, strict=True) if not times}
    assert all("weights=none, kv_cache=none" in name for name in never), "a level-0 sleep is a pause: earlier rows speak for it"


@pytest.fixture(scope="module")
def graph() -> search.Graph:
    """The world of one request under the one-pass rule, explored in Python."""
    return search.explore(Builder(World.engine(1)).build(), one_pass=True)


def failing(graph: search.Graph) -> set[str]:
    """Leads-to that do not hold in a graph."""
    promises = properties.eventually(Builder(World.engine(1)))
    return {name for name, begin, goal in promises if search.unfair_lasso(graph, goal, begin) is not None}


def test_two_explorers_printed_from_the_same_trees_agree_in_states_and_edges(graph: search.Graph) -> None:
    verdict = judged(one_pass=True)
    assert (verdict.num_states, verdict.num_edges) == (len(graph.states), graph.num_edges) == (ONE_PASS_STATES, ONE_PASS_EDGES)


def test_only_a_stopped_engine_has_no_way_on(graph: search.Graph) -> None:
    stopped = search.compile_guard(Builder(World.engine(1)).guard("engine", "", "engine.state == stopped"))
    dead = [state for state, out in zip(graph.states, graph.edges, strict=True) if not out]
    assert dead
    assert all(map(stopped, dead))


def test_every_leads_to_holds_under_the_declared_fairness(graph: search.Graph) -> None:
    assert failing(graph) == set()


@pytest.mark.parametrize(
    ("event", "breaks"),
    [
        ("land", "L2b_blocks_come_home[0]"),
        ("reap", "L2b_blocks_come_home[0]"),
        ("sweep", "L1c_answered_at_the_end[0]"),
        ("stop", "L8_shutdown_ends"),
        ("reopen", "L5_gate_reopens"),
        ("eos", "L1_answered[0]"),
    ],
)
def test_without_its_fairness_mark_a_promise_does_not_hold(graph: search.Graph, event: str, breaks: str) -> None:
    actions = [
        replace(action, event=replace(action.event, fairness=Fairness.none)) if action.event.name == event else action
        for action in graph.model.actions
    ]
    unfair = replace(graph, model=replace(graph.model, actions=actions))
    assert breaks in failing(unfair)


def test_the_command_tells_and_keeps_a_verdict_for_every_property(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prove", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{STATES:,} states, {EDGES:,} edges" in said
    assert not any(word in said for word in ("BROKEN", "NEVER", "NOT MET"))
    found = Evidence.read(tmp_path / "evidence.json")
    assert found.spec == spec_hash()
    assert found.broken == []
    judged_by_model = {
        prop.name for prop in PROPERTIES if Judge.model in prop.judges and prop.modality is not Modality.on_every_move
    }
    told = {one.property.split("[")[0] for one in (*found.judgements, *found.witnesses)}
    assert judged_by_model <= told
