"""SPIN as a second judge: the same trees, another printer and another search, the same states, edges, ends and verdicts."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from quiesce.proofs import explorer, moves, promela, properties
from quiesce.proofs.explorer import MoveProperty, ToolMissing
from quiesce.proofs.expr import FALSE, TRUE, Expr, In
from quiesce.proofs.model import Action, Assign, Builder, Model, Variable
from quiesce.proofs.world import World
from quiesce.spec import CATALOG
from quiesce.spec.language import Owner
from tests.proofs.mutants import RULES, Mutate, mutated
from tests.statemachine.tools import require_tool


@pytest.fixture
def spin() -> None:
    require_tool("spin", "spin")
    require_tool("gcc", "gcc")


def both(builder: Builder, one_pass: bool, optimise: bool) -> tuple[explorer.Verdict, promela.Search]:
    """What the two judges say of a world, side by side."""
    model, always, promises = builder.build(), properties.always(builder), moves.on_moves(builder)
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(explorer.explore, model, always, promises, one_pass)
        theirs = promela.search(model, always, promises, one_pass, optimise=optimise, seconds=100)
        return ours.result(), theirs


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize("one_pass", [False, True], ids=["interleaved", "one pass"])
def test_spin_and_our_explorer_agree_in_states_edges_and_ends(one_pass: bool) -> None:
    ours, theirs = both(Builder(World.engine(1)), one_pass, optimise=not one_pass)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges)
    assert theirs.violated == {promela.NO_WAY_ON}, "nothing is broken, and a stopped engine has no way on"
    assert theirs.num_errors == ours.num_dead > 0


JUDGED = [case for case in RULES if case[0].split(":")[0] in ("R3", "R6", "R9", "R15", "R25", "R34")]


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize(("rule", "machine", "change", "breaks"), JUDGED, ids=[rule for rule, *_ in JUDGED])
def test_both_judges_find_the_same_promises_broken_without_a_rule(
    rule: str, machine: str, change: Mutate, breaks: str | None
) -> None:
    world = World.engine(1, callers=())  # a quarter of the states; who else holds tokens is enough for these rules
    ours, theirs = both(Builder(world, mutated(machine, change)), one_pass=True, optimise=False)
    assert theirs.violated - {promela.NO_WAY_ON} == set(ours.stories) == ({breaks} if breaks else set())
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges)


def toy(*assigns: Assign) -> Model:
    """Two bits and one action, from (0, 1)."""
    event = next(event for event in CATALOG.machines["engine"].events if event.owner is Owner.core)
    variables = [Variable("a.state", ("no", "yes")), Variable("b[0].state", ("no", "yes"))]
    return Model("toy", variables, (0, 1), [Action("swap", event, "a", "", 0, TRUE, assigns)])


SWAP = (Assign(TRUE, 0, source=1), Assign(TRUE, 1, source=0))


@pytest.mark.usefixtures("spin")
def test_everything_is_read_before_anything_is_written() -> None:
    found = promela.search(toy(*SWAP), {}, optimise=False)
    assert (found.num_states, found.num_edges, found.violated) == (2, 2, frozenset())


@pytest.mark.usefixtures("spin")
def test_the_last_of_two_assignments_that_apply_counts_as_in_the_explorer() -> None:
    model = toy(
        Assign(TRUE, 0, 1), Assign(In(1, frozenset({1})), 0, 0), Assign(FALSE, 1, 0), Assign(In(0, frozenset({1})), 1, 0)
    )
    ours, theirs = explorer.explore(model, {}), promela.search(model, {}, optimise=False)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges) == (1, 1)


@pytest.mark.usefixtures("spin")
def test_a_variable_that_nobody_reads_still_tells_states_apart() -> None:
    assert promela.search(toy(Assign(TRUE, 1, 0)), {}, optimise=False).num_states == 2


@pytest.mark.usefixtures("spin")
def test_every_broken_promise_is_named_wherever_it_is_broken() -> None:
    always: dict[str, Expr] = {"a_is_no": In(0, frozenset({0})), "b_is_yes": In(1, frozenset({1})), "true": TRUE}
    promises = [MoveProperty("never", "", {0: FALSE}), MoveProperty("about nothing", "", {})]
    found = promela.search(toy(*SWAP), always, promises, optimise=False)
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
