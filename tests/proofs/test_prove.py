"""The declaration, model-checked: what holds, in how many states, and that each rule is needed: without it a short story breaks a promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.engine import cli
from quiesce.proofs import explorer, lasso, moves, properties, search
from quiesce.proofs.evidence import Evidence
from quiesce.proofs.model import Builder
from quiesce.proofs.parts import PROFILES
from quiesce.proofs.world import World
from quiesce.spec import PROPERTIES
from quiesce.spec.language import Judge, Modality
from quiesce.statemachine.trace import spec_hash

STATES, EDGES = 468_745, 8_553_346
ONE_PASS_STATES, ONE_PASS_EDGES = 179_568, 904_655


WORLD = World.engine(1, callers=())


def test_every_promise_about_states_and_moves_holds_in_every_state_of_the_world_of_one_request() -> None:
    builder = Builder(World.engine(1))
    verdict = explorer.explore(builder.build(), properties.always(builder), moves.on_moves(builder))
    assert verdict.stories == {}
    assert (verdict.num_states, verdict.num_edges) == (STATES, EDGES)
    actions = Builder(World.engine(1)).build().actions
    never = {action.name for action, times in zip(actions, verdict.fired, strict=True) if not times}
    assert all("weights=none, kv_cache=none" in name for name in never), "a level-0 sleep is a pause: earlier rows speak for it"


@pytest.fixture(scope="module")
def graph() -> search.Graph:
    """The world of one request whose callers hold no tokens of their own, under the one-pass rule, explored in Python."""
    return search.explore(Builder(WORLD).build(), one_pass=True)


def test_two_explorers_printed_from_the_same_trees_agree_in_states_and_edges(graph: search.Graph) -> None:
    verdict = explorer.explore(graph.model, {}, one_pass=True)
    assert (verdict.num_states, verdict.num_edges) == (len(graph.states), graph.num_edges)
    assert graph.num_edges > 100_000


def test_only_a_stopped_engine_has_no_way_on(graph: search.Graph) -> None:
    stopped = search.compile_guard(Builder(WORLD).guard("engine", "", "engine.state == stopped"))
    dead = [state for state, out in zip(graph.states, graph.edges, strict=True) if not out]
    assert dead
    assert all(map(stopped, dead))


CARRIES = {
    "land": "L2b_blocks_come_home[0]",
    "reap": "L2b_blocks_come_home[0]",
    "sweep": "L1c_answered_at_the_end[0]",
    "stop": "L8_shutdown_ends",
    "reopen": "L5_gate_reopens",
    "eos": "L1_answered[0]",
    "shutdown_deadline": "L8b_shutdown_waits_for_nobody",
}
"""Fair event -> a promise that does not hold without its mark."""


def test_every_leads_to_holds_as_declared_and_not_without_a_mark_that_it_needs() -> None:
    builder = Builder(World.engine(1))
    model = builder.build()
    declared = lasso.declared(model)
    fewer = [{name: mark for name, mark in declared.items() if not name.endswith(f".{event}")} for event in CARRIES]
    as_declared, *without = lasso.judge(model, list(properties.eventually(builder)), [declared, *fewer]).lassos
    assert not any(as_declared.values())
    for breaks, found in zip(CARRIES.values(), without, strict=True):
        assert found[breaks] is not None


def test_the_command_tells_and_keeps_a_verdict_for_every_property(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the quick profile what other tests do not judge as it is: one search of each world."""
    twice = ("z3", "interleaved")
    few = [part for part in PROFILES["quick"]() if not any(word in part.name for word in twice)]
    monkeypatch.setitem(PROFILES, "quick", lambda: few)
    assert cli.main(["prove", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{ONE_PASS_STATES:,} states, {ONE_PASS_EDGES:,} edges" in said
    assert not any(word in said for word in ("BROKEN", "NEVER", "NOT MET"))
    found = Evidence.read(tmp_path / "evidence.json")
    assert found.spec == spec_hash()
    assert found.broken == []
    judged_by_model = {
        prop.name for prop in PROPERTIES if Judge.model in prop.judges and prop.modality is not Modality.on_every_move
    }
    told = {one.property.split("[")[0] for one in (*found.judgements, *found.witnesses)}
    assert judged_by_model <= told
