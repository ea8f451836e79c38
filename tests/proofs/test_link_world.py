"""The link world: front end and core, and the messages between them. What holds in every order of events, and that each rule is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.proofs import environment, explorer, lasso, promela, properties, search
from quiesce.proofs.guards import OutsideWorld
from quiesce.proofs.model import Builder
from quiesce.proofs.world import World
from quiesce.spec import FACTS, MACHINES, PROPERTIES
from quiesce.spec.check import check
from quiesce.spec.language import Fairness, Row
from tests.proofs.mutants import Mutate, mutated
from tests.proofs.small_worlds import broken, explored, failing, never_taken, unmarked, witnessed
from tests.statemachine.tools import require_tool

SIZES = {1: (4_216, 34_184), 2: (205_664, 2_172_488)}
"""States and edges; 3 streams have 11 029 168 and 142 501 944 (24 s in C)."""
Explored = tuple[Builder, search.Graph]


@pytest.fixture(scope="module")
def link() -> Explored:
    return explored(World.link(1))


def test_every_predicate_holds_in_every_state_of_one_and_two_streams() -> None:
    for number, size in SIZES.items():
        builder = Builder(World.link(number))
        verdict = explorer.explore(builder.build(), properties.always(builder))
        assert dict(verdict.stories) == {}
        assert (verdict.num_states, verdict.num_edges, verdict.num_dead) == (*size, 0)


def test_the_reading_explorer_finds_the_same_states_and_edges_and_every_leads_to_holds(link: Explored) -> None:
    _, graph = link
    assert (len(graph.states), graph.num_edges) == SIZES[1]
    assert failing(*link) == set()
    assert len(list(properties.eventually(link[0]))) == 10


def test_every_leads_to_holds_for_two_streams_too() -> None:
    builder = Builder(World.link(2))
    model = builder.build()
    (found,) = lasso.judge(model, list(properties.eventually(builder)), one_pass=False).lassos
    assert len(found) == 16
    assert not any(found.values())


@pytest.mark.parametrize("number", SIZES)
def test_spin_finds_the_same_states_and_edges(number: int) -> None:
    require_tool("spin", "spin")
    require_tool("gcc", "gcc")
    builder = Builder(World.link(number))
    found = promela.search(builder.build(), properties.always(builder), optimise=False, seconds=100)
    assert (found.num_states, found.num_edges, found.violated) == (*SIZES[number], frozenset())


def test_a_closed_stream_has_no_message_on_its_way_so_none_is_thrown_away(link: Explored) -> None:
    assert never_taken(link[1]) == {f"stream[0].{event} thrown away" for event in ("ack", "nak", "terminal")}


def test_every_witness_is_reached(link: Explored) -> None:
    stories = witnessed(*link)
    assert stories["W5_taken_for_dead"] == ["link.connect", "stream[0].call", "to_core[0].deliver", "link.lose"]
    assert set(stories) == {"W4_answered_before_it_is_aborted", "W5_taken_for_dead"}
    assert all(stories.values())


# ---- rules that `proofs/rules.py` does not take away ---------------------------------------------------------------------------


def retarget(event: str, source: str, **change: object) -> Mutate:
    """Changes the rows of an event that begin in a state."""
    return lambda row: replace(row, **change) if row.event == event and source in row.source else row  # type: ignore[arg-type]


def drop(event: str, source: str, when: str = "") -> Mutate:
    def change(row: Row) -> Row | None:
        return None if row.event == event and source in row.source and when in row.when else row

    return change


WITHOUT_A_RULE = [
    ("R35: the messages of a dead core are dropped, too", "link", retarget("detect", "up", effects=()), "a_new_core_hears_nothing_old[0]"),
    ("R37: an opening that is refused closes", "stream", drop("nak", "opening"), "S4b_answers_are_expected[0]"),
    ("R37: a terminal finds its stream open", "stream", drop("terminal", "open"), "S4b_answers_are_expected[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "machine", "change", "breaks"), WITHOUT_A_RULE, ids=[rule for rule, *_ in WITHOUT_A_RULE])
def test_without_the_rule_a_short_story_breaks_a_promise(rule: str, machine: str, change: Mutate, breaks: str) -> None:
    stories = broken(*explored(World.link(1), mutated(machine, change)))
    assert breaks in stories, stories
    assert len(stories[breaks]) <= 8, stories[breaks]


# ---- fairness -----------------------------------------------------------------------------------------------------------------

NEEDED_BY = {
    ("link", "connect"): {"L4h_starts_end"},
    ("link", "detect"): {
        "L2c_cancels_are_answered[0]", "L4_openings_are_answered[0]", "L4b_streams_are_answered[0]", "L4c_a_dead_core_is_noticed",
        "L4e_control_is_answered", "L4h_starts_end",
    },
    ("link", "kill"): {"L4d_a_loss_ends"},
    ("link", "restart"): {"L4d_a_loss_ends"},
    ("link", "give_up"): {"L4d_a_loss_ends"},
    ("call", "take"): {"L4e_control_is_answered"},
    ("call", "reply"): {"L4e_control_is_answered"},
    ("call", "deliver"): {"L4e_control_is_answered"},
    ("call", "fail"): {"L4d_a_loss_ends", "L4e_control_is_answered"},
    ("stream", "ack"): {"L4_openings_are_answered[0]"},
    ("stream", "nak"): {"L4_openings_are_answered[0]"},
    ("stream", "terminal"): {"L2c_cancels_are_answered[0]", "L4b_streams_are_answered[0]"},
    ("stream", "fail"): {
        "L2c_cancels_are_answered[0]", "L4_openings_are_answered[0]", "L4b_streams_are_answered[0]", "L4d_a_loss_ends",
    },
    ("to_core", "deliver"): {"L2c_cancels_are_answered[0]", "L4_openings_are_answered[0]"},
    ("request", "admit"): {"L1_answered[0]", "L4b_streams_are_answered[0]"},
    ("request", "start"): {"L1_answered[0]", "L4b_streams_are_answered[0]"},
    ("request", "aborted"): {"L1_answered[0]", "L2_abort_takes_effect[0]", "L2c_cancels_are_answered[0]"},
    ("request", "finish"): {"L1_answered[0]", "L4b_streams_are_answered[0]"},
    ("request", "reap"): {"L2b_blocks_come_home[0]"},
    ("request", "sweep"): set(),
}  # fmt: skip
"""What a mark carries here. That a sweep happens is needed where the engine stops for good: in its own world (L1c)."""


def test_every_fair_event_carries_the_promises_it_is_there_for(link: Explored) -> None:
    fair = {
        (action.machine, str(action.event.name))
        for action in link[1].model.actions
        if action.event.fairness is not Fairness.none
    }
    assert {event: failing(*link, unmarked(*event)) for event in fair} == NEEDED_BY


def test_without_any_fairness_no_promise_that_something_happens_holds(link: Explored) -> None:
    assert failing(*link, lambda action: Fairness.none) == {name for name, *_ in properties.eventually(link[0])}


# ---- the world itself -----------------------------------------------------------------------------------------------------------


def test_what_surrounds_the_tables_is_as_well_formed_as_they_are() -> None:
    around = environment.SESSION.around({machine.name: machine for machine in MACHINES})
    check(around.values(), FACTS, (*PROPERTIES, *environment.SESSION.properties))
    assert all(reason for _, reason in (*environment.SESSION.abstractions.values(), *environment.SESSION.conditions.values()))


def test_what_a_world_leaves_out_is_never_guessed() -> None:
    builder = Builder(World.link(1))
    with pytest.raises(OutsideWorld, match=r"engine\.goal is not in the link world"):
        builder.guard("engine", "", "engine.goal == sleep")
    with pytest.raises(OutsideWorld, match="the link world has no memory"):
        builder.guard("engine", "", "all_tags(each.state == resident)")
    few = replace(environment.LINK, abstractions={})
    with pytest.raises(OutsideWorld):
        Builder(replace(World.link(1), surroundings=few)).build()
