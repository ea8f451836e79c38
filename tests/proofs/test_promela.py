"""SPIN as a second judge: the same trees, another printer and another search, the same states, edges, ends and verdicts."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from quiesce.proofs import explorer, moves, promela, properties
from quiesce.proofs.edits import edited
from quiesce.proofs.explorer import ToolMissing
from quiesce.proofs.model import Builder
from quiesce.proofs.rules import RULES, Without
from quiesce.proofs.world import World
from tests.proofs.judges import ALWAYS, LAST_WINS, MOVES, NOBODY_READS_IT, SMALL, SWAP, toy
from tests.statemachine.tools import require_tool


@pytest.fixture
def spin() -> None:
    require_tool("spin", "spin")
    require_tool("gcc", "gcc")


def both(builder: Builder, one_pass: bool, spoken_of: str = "") -> tuple[explorer.Verdict, promela.Search]:
    """What the two judges say of a world, side by side; of the promises on moves, those whose names begin so."""
    model, always = builder.build(), properties.always(builder)
    promises = [move for move in moves.on_moves(builder) if move.name.startswith(spoken_of)]
    theirs = promela.search(model, always, promises, one_pass, optimise=False, seconds=100)
    return explorer.explore(model, always, promises, one_pass), theirs


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize(
    ("world", "one_pass", "spoken_of"),
    [(World.engine(1, callers=()), True, "T4"), (SMALL, True, "T4"), (SMALL, False, "")],
    ids=["one pass", "small, one pass", "small, interleaved"],
)
def test_spin_and_our_explorer_agree_in_states_edges_and_ends(world: World, one_pass: bool, spoken_of: str) -> None:
    ours, theirs = both(Builder(world), one_pass, spoken_of)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges)
    assert theirs.violated == {promela.NO_WAY_ON}, "nothing is broken, and a stopped engine has no way on"
    assert theirs.num_errors == ours.num_dead > 0


JUDGED = [rule for rule in RULES if rule.rule in ("R5", "R9", "R15b", "R25", "R34")]


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize("rule", JUDGED, ids=lambda rule: rule.rule)
def test_both_judges_find_the_same_promises_broken_without_a_rule(rule: Without) -> None:
    ours, theirs = both(Builder(SMALL, edited(rule.edits)), rule.one_pass and rule.in_order, spoken_of=rule.breaks[:2])
    broken = set(ours.stories)
    assert theirs.violated - {promela.NO_WAY_ON} == broken
    assert rule.breaks in broken
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges)


@pytest.mark.usefixtures("spin")
def test_everything_is_read_before_anything_is_written() -> None:
    found = promela.search(toy(*SWAP), {}, optimise=False)
    assert (found.num_states, found.num_edges, found.violated) == (2, 2, frozenset())


@pytest.mark.usefixtures("spin")
def test_the_last_of_two_assignments_that_apply_counts_as_in_the_explorer() -> None:
    model = toy(*LAST_WINS)
    ours, theirs = explorer.explore(model, {}), promela.search(model, {}, optimise=False)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges) == (1, 1)


@pytest.mark.usefixtures("spin")
def test_a_variable_that_nobody_reads_still_tells_states_apart() -> None:
    assert promela.search(toy(*NOBODY_READS_IT), {}, optimise=False).num_states == 2


@pytest.mark.usefixtures("spin")
def test_every_broken_promise_is_named_wherever_it_is_broken() -> None:
    found = promela.search(toy(*SWAP), ALWAYS, MOVES, optimise=False)
    assert found.violated == {"a_is_no", "b_is_yes", "never"}
    assert (found.num_errors, found.num_states, found.num_edges) == (4, 2, 2), (
        "one state breaks two, both states can make the move"
    )


@pytest.mark.usefixtures("spin")
def test_a_search_that_is_not_complete_is_no_answer() -> None:
    model = Builder(World.engine(1)).build()
    small = replace(model, actions=[action for action in model.actions if action.machine == "engine"])
    with pytest.raises(MemoryError, match="not complete"):
        promela.search(small, {}, depth=5, optimise=False)
    with pytest.raises(MemoryError, match="not complete"):
        promela.search(small, {}, megabytes=1, optimise=False)
    with pytest.raises(TimeoutError, match="took more than"):
        promela.search(small, {}, seconds=0.001, optimise=False)


@pytest.mark.parametrize("missing", ["spin", "gcc"])
def test_without_its_programs_the_judge_names_the_package(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    with pytest.raises(ToolMissing, match=f"{missing} is not installed: install the Debian package {missing}"):
        promela.search(toy(*SWAP), {})
