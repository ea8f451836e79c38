"""The session world: a conversation around each stream. One turn at a time, and whoever is told to close is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.proofs import explorer, lasso, promela, properties, search
from quiesce.proofs.model import Builder
from quiesce.proofs.world import World
from quiesce.spec.language import Row
from tests.proofs.mutants import Mutate, mutated, without
from tests.proofs.small_worlds import broken, explored, failing, unmarked, witnessed
from tests.statemachine.tools import require_tool

SIZES = {1: (8_592, 74_020), 2: (795_888, 9_310_552)}
"""States and edges."""
Explored = tuple[Builder, search.Graph]


@pytest.fixture(scope="module")
def session() -> Explored:
    return explored(World.session(1))


def test_every_predicate_holds_in_every_state_of_one_and_two_sessions() -> None:
    for number, size in SIZES.items():
        builder = Builder(World.session(number))
        verdict = explorer.explore(builder.build(), properties.always(builder))
        assert dict(verdict.stories) == {}
        assert (verdict.num_states, verdict.num_edges, verdict.num_dead) == (*size, 0)


def test_the_reading_explorer_finds_the_same_states_and_edges_and_every_leads_to_holds(session: Explored) -> None:
    _, graph = session
    assert (len(graph.states), graph.num_edges) == SIZES[1]
    assert failing(*session) == set()


def test_every_leads_to_holds_for_two_sessions_too() -> None:
    builder = Builder(World.session(2))
    model = builder.build()
    (found,) = lasso.judge(model, list(properties.eventually(builder)), one_pass=False).lassos
    assert len(found) == 20
    assert not any(found.values())


def test_spin_finds_the_same_states_and_edges() -> None:
    require_tool("spin", "spin")
    require_tool("gcc", "gcc")
    builder = Builder(World.session(1))
    found = promela.search(builder.build(), properties.always(builder), optimise=False, seconds=100)
    assert (found.num_states, found.num_edges, found.violated) == (*SIZES[1], frozenset())


def test_a_turn_can_be_answered_and_still_wait_for_its_fence(session: Explored) -> None:
    story = witnessed(*session)["W6_turn_waits_for_its_fence[0]"]
    assert story is not None
    assert "session[0].turn" in story


def rewritten(event: str, source: str, **change: object) -> Mutate:
    """Changes the rows of an event that begin in a state."""
    return lambda row: replace(row, **change) if row.event == event and source in row.source else row  # type: ignore[arg-type]


ENDED = "turn_request_ended"
WITHOUT_A_RULE = [
    ("R38: a session is gone when its last request has ended", "session", without(ENDED, "closed"), "S18_nothing_between_turns[0]"),
    ("a turn begins with both its ends open", "session", rewritten("turn", "idle", sets=()), "S18_nothing_between_turns[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "machine", "change", "breaks"), WITHOUT_A_RULE, ids=[rule for rule, *_ in WITHOUT_A_RULE])
def test_without_the_rule_a_short_story_breaks_a_promise(rule: str, machine: str, change: Mutate, breaks: str) -> None:
    stories = broken(*explored(World.session(1), mutated(machine, change)))
    assert breaks in stories, stories
    assert len(stories[breaks]) <= 10, stories[breaks]


def drop(event: str, source: str) -> Mutate:
    def change(row: Row) -> Row | None:
        return None if row.event == event and source in row.source else row

    return change


def test_r36_a_cancel_in_opening_that_is_forgotten_keeps_a_session_closing_for_ever() -> None:
    assert "L4g_sessions_close[0]" in failing(*explored(World.session(1), mutated("stream", drop("abort", "opening"))))


def test_r38_a_session_that_closes_without_telling_its_turn_closes_when_the_turn_is_over_or_never() -> None:
    hole = mutated("session", rewritten("close", "active", effects=()))
    assert failing(*explored(World.session(1), hole)) == {"L4g_sessions_close[0]"}


@pytest.mark.parametrize(
    ("machine", "event", "carries"),
    [
        ("session", "turn_over", {"L4f_turns_end[0]"}),
        ("session", "closed", {"L4g_sessions_close[0]"}),
        ("session", "request_ended", {"L4f_turns_end[0]", "L4g_sessions_close[0]"}),
        ("stream", "terminal", {"L2c_cancels_are_answered[0]", "L4b_streams_are_answered[0]", "L4f_turns_end[0]", "L4g_sessions_close[0]"}),
        ("request", "reap", {"L2b_blocks_come_home[0]", "L4f_turns_end[0]", "L4g_sessions_close[0]"}),
    ],
)  # fmt: skip
def test_a_fair_event_carries_the_promises_it_is_there_for(
    session: Explored, machine: str, event: str, carries: set[str]
) -> None:
    assert failing(*session, unmarked(machine, event)) == carries
