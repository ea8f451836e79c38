"""Promises on moves and on what must be possible: each is a sentence, each is judged, and each can be broken."""

from __future__ import annotations

import pytest

from quiesce.proofs import moves, offers, properties, vectors
from quiesce.proofs.after import after, either, same
from quiesce.proofs.expr import FALSE, TRUE, In, neg
from quiesce.proofs.model import Action, Assign, Builder
from quiesce.proofs.world import World
from quiesce.spec import CATALOG, PROPERTIES
from quiesce.spec.language import Judge, Modality
from tests.proofs.mutants import mutated


@pytest.fixture(scope="module")
def builder() -> Builder:
    """The world of one request."""
    builder = Builder(World.engine(1))
    builder.build()
    return builder


def writing(*assigns: Assign) -> Action:
    return Action("writes", CATALOG.machines["engine"].events[0], "engine", "", 0, TRUE, assigns)


def is_(variable: int, value: int) -> In:
    return In(variable, frozenset({value}))


def test_what_holds_after_a_constant_is_written_is_known_before() -> None:
    action = writing(Assign(TRUE, 0, 1))
    assert after(action, is_(0, 1)) == TRUE
    assert after(action, is_(0, 0)) == FALSE
    assert after(action, is_(1, 0)) == is_(1, 0), "what is not written stays"


def test_after_a_copy_the_source_is_asked_and_the_last_assignment_that_applies_counts() -> None:
    assert after(writing(Assign(TRUE, 0, source=1)), is_(0, 2)) == is_(1, 2)
    twice = writing(Assign(TRUE, 0, 0), Assign(is_(1, 1), 0, 1))
    assert after(twice, is_(0, 1)) == is_(1, 1)
    assert after(twice, is_(0, 0)) == neg(is_(1, 1))


def test_either_and_same_say_nothing_that_need_not_be_said() -> None:
    assert either(is_(0, 1), TRUE, TRUE) == TRUE
    assert either(FALSE, FALSE, is_(1, 1)) == is_(1, 1)
    assert same(is_(0, 1), is_(0, 1)) == TRUE


def test_the_number_of_blocks_is_not_said_of_the_state_after(builder: Builder) -> None:
    with pytest.raises(ValueError, match="number of blocks"):
        after(writing(), builder.guard("engine", "", "free > 0"))


def test_every_property_that_a_model_judges_is_judged_by_some_world() -> None:
    worlds = [World.engine(1), World.link(1), World.session(1), World.operation(1)]
    judged: set[str] = set()
    for world in worlds:
        builder = Builder(world)
        builder.build()
        names = {
            *properties.always(builder),
            *properties.sometimes(builder),
            *(name for name, _, _ in properties.eventually(builder)),
        }
        if "step" in world.instances:
            judged.add(moves.calls_wait(builder).name)
        judged |= {name.partition("[")[0] for name in (*names, *(move.name for move in moves.on_moves(builder)))}
    claimed = {prop.name for prop in PROPERTIES if Judge.model in prop.judges}
    assert claimed - judged == set()


def test_every_promise_on_moves_has_its_sentence_in_the_declaration(builder: Builder) -> None:
    declared = {prop.name: prop for prop in PROPERTIES}
    for promise in moves.PROMISES:
        assert Judge.model in declared[promise.name].judges
        assert declared[promise.name].machine in ("", promise.machine), promise.name
    assert {promise.name for promise in moves.PROMISES} >= {
        prop.name
        for prop in PROPERTIES
        if prop.modality is Modality.on_every_move and Judge.model in prop.judges and prop.name[0] == "T"
    }
    assert all(move.sentence.endswith(".") for move in moves.on_moves(builder))


def test_promises_about_some_actions_say_of_them_what_all_of_them_say(builder: Builder) -> None:
    every = {move.name: move.before for move in moves.on_moves(builder)}
    for move in moves.on_moves(builder, of=(3, 100)):
        assert move.before == {number: every[move.name][number] for number in (3, 100) if number in every[move.name]}


def test_what_is_possible_is_said_of_a_world_that_has_been_built() -> None:
    with pytest.raises(ValueError, match="build the world first"):
        offers.offers(Builder(World.engine(1)))


def test_nothing_is_asked_of_events_that_a_world_leaves_out() -> None:
    smaller = Builder(World.engine(1, callers=(), without={"engine.clear", "engine.sleep", "engine.begin_update"}))
    table = vectors.explore(smaller.build())
    for name, where in properties.always(smaller).items():
        assert not len(table.where(neg(where))), name


def test_without_the_row_of_a_call_it_is_not_possible_any_more() -> None:
    world = World.engine(1, callers=(), without={"engine.sleep", "engine.begin_update"})
    lacking = Builder(world, mutated("engine", lambda row: None if row.event == "clear" else row))
    table = vectors.explore(lacking.build())
    broken = {name for name, where in properties.always(lacking).items() if len(table.where(neg(where)))}
    assert broken == {"E1_calls_are_taken"}
