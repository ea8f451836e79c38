"""Rumur as a third judge: the same trees, another printer and another search, the same states, edges, ends and verdicts."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from quiesce.proofs import explorer, moves, murphi, properties
from quiesce.proofs.edits import edited
from quiesce.proofs.explorer import ToolMissing
from quiesce.proofs.expr import FALSE, TRUE, Expr, Free, In, Neg
from quiesce.proofs.model import Assign, Builder
from quiesce.proofs.promela import NO_WAY_ON, Search
from quiesce.proofs.rules import RULES, Without
from quiesce.proofs.world import World
from tests.proofs.judges import ALWAYS, LAST_WINS, MOVES, NOBODY_READS_IT, SMALL, SWAP, toy
from tests.statemachine.tools import require_tool


@pytest.fixture
def rumur() -> None:
    require_tool("rumur", "rumur")
    require_tool("gcc", "gcc")


def both(builder: Builder, one_pass: bool = False, spoken_of: str = "") -> tuple[explorer.Verdict, Search]:
    """What the two judges say of a world, side by side; of the promises on moves, those whose names begin so."""
    model, always = builder.build(), properties.always(builder)
    promises = [move for move in moves.on_moves(builder) if move.name.startswith(spoken_of)]
    theirs = murphi.search(model, always, promises, one_pass, optimise=False, seconds=100)
    return explorer.explore(model, always, promises, one_pass), theirs


@pytest.mark.usefixtures("rumur")
@pytest.mark.parametrize(
    ("world", "one_pass", "spoken_of"),
    [(SMALL, False, ""), (SMALL, True, "T"), (World.link(1), False, ""), (World.session(1), False, "")],
    ids=["engine, interleaved", "engine, one pass", "link", "session"],
)
def test_rumur_and_our_explorer_agree_in_states_edges_and_ends(world: World, one_pass: bool, spoken_of: str) -> None:
    ours, theirs = both(Builder(world), one_pass, spoken_of)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges)
    assert theirs.num_errors == ours.num_dead
    ends = {NO_WAY_ON} if world is SMALL else set()
    assert theirs.violated == ends, "nothing is broken; a stopped engine has no way on, a link always has one"


SERVES = World.engine(1, callers=(), without=(*SMALL.without, "engine.begin_update", "engine.clear"))
JUDGED = [rule for rule in RULES if rule.rule in ("R15b", "R25", "R35", "R36")]


@pytest.mark.usefixtures("rumur")
@pytest.mark.parametrize("rule", JUDGED, ids=lambda rule: rule.rule)
def test_rumur_finds_the_same_promises_broken_without_a_rule(rule: Without) -> None:
    world = SERVES if rule.world.name == "engine" else rule.world
    ours, theirs = both(Builder(world, edited(rule.edits)), one_pass=world is SERVES, spoken_of=rule.breaks[:2])
    assert rule.breaks in theirs.violated - {NO_WAY_ON} == set(ours.stories)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges)


@pytest.mark.usefixtures("rumur")
@pytest.mark.parametrize(("assigns", "states", "edges"), [(SWAP, 2, 2), (LAST_WINS, 1, 1), (NOBODY_READS_IT, 2, 2)])
def test_states_are_told_apart_and_moves_counted_as_we_do(assigns: tuple[Assign, ...], states: int, edges: int) -> None:
    model = toy(*assigns)
    ours, theirs = explorer.explore(model, {}), murphi.search(model, {}, optimise=False)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges) == (states, edges)


@pytest.mark.usefixtures("rumur")
def test_a_move_that_changes_nothing_and_a_second_move_to_the_same_state_are_edges() -> None:
    model = toy(*SWAP)
    (swap,) = model.actions
    model.actions = [swap, replace(swap, name="swap again"), replace(swap, name="nothing", assigns=())]
    ours, theirs = explorer.explore(model, {}), murphi.search(model, {}, optimise=False)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges) == (2, 6)


@pytest.mark.usefixtures("rumur")
def test_every_broken_promise_is_named_and_counted_wherever_it_is_broken() -> None:
    found = murphi.search(toy(*SWAP), ALWAYS, MOVES, optimise=False)
    assert found.violated == {"a_is_no", "b_is_yes", "never"}
    assert (found.num_errors, found.num_states, found.num_edges) == (4, 2, 2), (
        "one state breaks two, both states can make the move"
    )


@pytest.mark.usefixtures("rumur")
def test_a_state_without_a_way_on_that_breaks_something_is_counted_once() -> None:
    stuck = toy(*SWAP)
    stuck.actions = [replace(stuck.actions[0], guard=In(0, frozenset({0})))]
    assert murphi.search(stuck, {}, optimise=False).violated == {NO_WAY_ON}
    assert murphi.search(stuck, {"b": In(1, frozenset({1}))}, optimise=False).violated == {"b"}


THREE = Free((0, 1), frozenset({1}), 1)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (TRUE, "true"), (FALSE, "false"), (In(0, frozenset({1})), "(a = 1)"), (In(0, frozenset({0, 1})), "(true)"),
        (In(2, frozenset({0, 1, 3, 4})), "(c <= 1) || (c >= 3)"), (In(2, frozenset({1, 2})), "(c >= 1 && c <= 2)"),
        (In(2, frozenset({0, 2, 4})), "(c = 0) || (c = 2) || (c = 4)"), (In(0, frozenset()), "false"),
        (Neg(THREE), "!(((a = 1) ? 1 : 0) + ((b = 1) ? 1 : 0) < 1)"),
    ],
)  # fmt: skip
def test_a_set_of_values_is_printed_as_the_ranges_it_makes(tree: Expr, text: str) -> None:
    model = toy()
    model.variables[:] = [replace(model.variables[0], name=name, values=tuple("01234"[:count])) for name, count in
                          (("a", 2), ("b", 2), ("c", 5))]  # fmt: skip
    assert murphi.Printer(model).tree(tree) == text


@pytest.mark.usefixtures("rumur")
def test_a_search_that_is_not_complete_is_no_answer() -> None:
    with pytest.raises(MemoryError, match="not complete"):
        murphi.search(toy(*SWAP), {}, megabytes=4, optimise=False)
    with pytest.raises(TimeoutError, match="took more than"):
        murphi.search(toy(*SWAP), {}, seconds=0.001, optimise=False)
    with pytest.raises(RuntimeError, match="rumur ended with 1"):
        murphi.judge("rule nothing", [], 100, 100.0, optimise=False)
    with pytest.raises(RuntimeError, match="gave no verdict"):
        murphi.judge(
            'var a: 0..1; startstate begin a := 0; end; rule "0" true ==> begin a := a + 1; end;', [], 100, 100.0, False
        )


@pytest.mark.parametrize("missing", ["rumur", "gcc"])
def test_without_its_programs_the_judge_names_the_package(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    with pytest.raises(ToolMissing, match=f"{missing} is not installed: install the Debian package {missing}"):
        murphi.search(toy(*SWAP), {})
