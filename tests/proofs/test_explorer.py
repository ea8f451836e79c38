"""The C explorer: what it counts is what the reading search counts, for narrow and wide states; its stories are real and shortest."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from quiesce.proofs import explorer, moves, properties, search
from quiesce.proofs.explorer import MoveProperty, explore
from quiesce.proofs.explorer_source import Layout, attainable, simplified
from quiesce.proofs.expr import FALSE, TRUE, All, Any, Expr, Free, In, Neg, neg
from quiesce.proofs.model import Action, Assign, Builder, Model, Variable
from quiesce.proofs.world import World
from quiesce.spec.language import Event, Owner

QUIET = ("engine.sleep", "engine.clear", "engine.begin_update", "engine.wake_up", "weights.begin_in_place")
"""Left out: what makes the engine world large."""


def action(number: int, guard: Expr, *assigns: Assign, owner: Owner = Owner.client) -> Action:
    event = Event(f"e{number}", owner, boundary=owner is Owner.core)
    return Action(f"e{number}", event, "toy", "", 0, guard, assigns)


def toy(sizes: Sequence[int], actions: list[Action]) -> Model:
    variables = [Variable(f"v{number}", tuple(map(str, range(size)))) for number, size in enumerate(sizes)]
    return Model("toy", variables, tuple(0 for _ in sizes), actions)


def at(variable: int, *values: int) -> Expr:
    return In(variable, frozenset(values))


def chain(length: int) -> Model:
    """Each variable may rise to 2 after the one before it; the last lets all fall at once."""
    risen = [
        action(n, All((at(n - 1, 2), at(n, 0, 1))) if n else at(0, 0, 1), Assign(at(n, 0), n, 1), Assign(at(n, 1), n, 2))
        for n in range(length)
    ]
    falls = action(length, at(length - 1, 2), *(Assign(TRUE, n, 0) for n in range(length)))
    return toy([3] * length, [*risen, falls])  # fmt: skip


def drawn(seed: int) -> Model:
    """A small model of random guards and assignments."""
    draw = random.Random(seed)
    sizes = [draw.randint(2, 4) for _ in range(6)]

    def tree(depth: int) -> Expr:
        kind = draw.choice(["in", "in", "not", "all", "any", "free"] if depth else ["in"])
        if kind == "in":
            variable = draw.randrange(6)
            return at(variable, *draw.sample(range(sizes[variable]), draw.randint(1, sizes[variable] - 1)))
        if kind == "free":
            return Free((0, 1, 2), frozenset({1}), draw.randint(1, 2))
        parts = (tree(depth - 1), tree(depth - 1))
        return Neg(parts[0]) if kind == "not" else All(parts) if kind == "all" else Any(parts)

    def assign() -> Assign:
        variable = draw.randrange(6)
        like = [other for other in range(6) if sizes[other] == sizes[variable]]
        when = tree(1) if draw.random() < 0.5 else TRUE
        if draw.random() < 0.2:
            return Assign(when, variable, source=draw.choice(like))
        return Assign(when, variable, draw.randrange(sizes[variable]))

    owners = (Owner.client, Owner.core)
    return toy(sizes, [action(n, tree(2), *(assign() for _ in range(3)), owner=draw.choice(owners)) for n in range(8)])


def agree(model: Model, one_pass: bool = False) -> explorer.Verdict:
    """Explores with both; they count the same."""
    graph, verdict = search.explore(model, one_pass), explore(model, {}, one_pass=one_pass)
    fired = [0] * len(model.actions)
    for out in graph.edges:
        for number, _ in out:
            fired[number] += 1
    assert (verdict.num_states, verdict.num_edges) == (len(graph.states), graph.num_edges)
    assert verdict.fired == tuple(fired)
    assert verdict.num_dead == sum(not out for out in graph.edges)
    return verdict


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_on_drawn_models_both_explorers_count_the_same_states_edges_and_dead_ends(seed: int, one_pass: bool) -> None:
    agree(drawn(seed), one_pass)


@pytest.mark.parametrize("one_pass", [False, True])
def test_on_a_small_engine_world_both_explorers_count_the_same(one_pass: bool) -> None:
    world = World.engine(1, without=QUIET)
    assert agree(Builder(world).build(), one_pass).num_states > 1000


@pytest.mark.parametrize(("length", "bits"), [(40, 64), (60, 96), (80, 128)])
def test_states_of_more_than_64_bits_are_wide_numbers(length: int, bits: int) -> None:
    verdict = agree(chain(length))
    assert (verdict.num_bits, verdict.num_states, verdict.depth) == (bits, 2 * length + 1, 2 * length)


def test_a_state_of_more_than_128_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="128 is the most"):
        Layout.of(chain(90))


def test_what_is_never_written_costs_no_bits() -> None:
    model = toy([4, 4, 4], [action(0, at(0, 0), Assign(TRUE, 0, 1)), action(1, at(1, 2), Assign(TRUE, 2, 3))])
    assert attainable(model) == [{0, 1}, {0}, {0}]
    assert agree(model).num_bits == 1
    smaller = World.engine(1, without=QUIET)
    assert Layout.of(Builder(smaller).build()).num_bits < Layout.of(Builder(World.engine(1)).build()).num_bits


def test_negations_move_inward_and_what_cannot_be_is_gone() -> None:
    values = [frozenset({0, 1}), frozenset({0, 1, 2}), frozenset({0})]
    assert simplified(Neg(All((at(0, 1), at(1, 0, 3)))), values) == Any((at(0, 0), at(1, 1, 2)))
    assert simplified(at(0, 2, 3), values) == FALSE
    assert simplified(Any((at(1, 1), at(2, 0))), values) == TRUE


def test_the_last_of_two_assignments_that_apply_counts() -> None:
    model = toy([4, 2], [action(0, at(0, 0), Assign(TRUE, 0, 1), Assign(at(1, 0), 0, 2), Assign(at(1, 1), 0, 3))])
    assert explore(model, {"never 2": neg(at(0, 2))}).stories == {"never 2": ("e0",)}
    assert agree(model).num_states == 2


def test_stories_are_shortest_for_states_and_for_moves_and_nothing_is_told_of_what_holds() -> None:
    model = chain(5)
    graph = search.explore(model)
    always: dict[str, Expr] = {f"v{n} below 2": neg(at(n, 2)) for n in range(5)}
    falls = MoveProperty("falls early", "", {5: neg(at(0, 2)), 2: TRUE})
    verdict = explore(model, {**always, "fine": TRUE}, [falls, MoveProperty("fine too", "", {0: TRUE})])
    for n in range(5):
        first = next(number for number, state in enumerate(graph.states) if state[n] == 2)
        assert list(verdict.stories[f"v{n} below 2"]) == graph.story(first)
    assert verdict.stories["falls early"] == (*verdict.stories["v4 below 2"], "e5")
    assert set(verdict.stories) == {*always, "falls early"}


def test_more_than_64_promises_of_a_kind_are_judged() -> None:
    model = chain(3)
    always: dict[str, Expr] = {f"p{n}": TRUE if n % 2 else neg(at(2, 2)) for n in range(130)}
    promises = [MoveProperty(f"m{n}", "", {0: TRUE if n % 2 else FALSE}) for n in range(130)]
    stories = explore(model, always, promises).stories
    assert set(stories) == {name for n in range(0, 130, 2) for name in (f"p{n}", f"m{n}")}


def test_a_world_that_needs_more_memory_than_it_may_take_is_refused_in_words() -> None:
    builder = Builder(World.engine(2, without=QUIET))
    with pytest.raises(MemoryError, match="the states of engine need more than 2 MB"):
        explore(builder.build(), {}, megabytes=2)


def test_memory_and_progress_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    builder = Builder(World.engine(1, callers=(), without=QUIET))
    judged = (builder.build(), properties.always(builder), moves.on_moves(builder))
    quiet = explore(*judged)
    assert capfd.readouterr().err == ""
    assert 100 << 10 < quiet.peak_bytes < 64 << 20
    assert explore(*judged, progress=True).num_states == quiet.num_states
    shown = capfd.readouterr().err
    assert "engine" in shown
    assert "states" in shown
    assert "MB=" in shown


def test_without_a_compiler_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(explorer.ToolMissing, match="install the package gcc"):
        explore(chain(2), {})
