"""What the real tables promise as tables: every cell decided, every state of use, and the rows that touch blocks and terminals."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from quiesce.spec import (
    CATALOG,
    FACTS,
    HELD_MODE_POLICIES,
    MACHINES,
    PASS_ORDER,
    PROPERTIES,
    engine,
    pause_token,
    request,
    step,
    weights,
)
from quiesce.spec.check import decided
from quiesce.spec.guards import parse_effect, parse_joint
from quiesce.spec.language import Error, Fairness, Ignored, Judge, Machine, Modality, Owner, Refused, Row

BY_NAME = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
LIVE = {"received", "admitted", "running", "retracting"}
FINAL = {("request", "ended"), ("step", "retired"), ("step", "dropped"), ("engine", "stopped"), ("link", "down")}
STRENGTH = {"free": 0, "keep": 1, "wait": 2, "abort": 3}


def moves(machine: Machine) -> set[tuple[str, str]]:
    return {
        (str(source), str(row.target))
        for row in machine.rows
        if row.target is not None
        for source in row.source
        if source != row.target
    }


def effects(row: Row, word: str) -> list[str]:
    """The details of the row's effects of this name."""
    return [effect.detail for effect in map(parse_effect, row.effects) if effect.name == word]


def rows_into(machine: Machine, target: str) -> Iterable[Row]:
    return (row for row in machine.rows if row.target == target)


@BY_NAME
def test_every_cell_is_decided(machine: Machine) -> None:
    cells = {
        (state, event.name): entries for event in machine.events for state, entries in decided(machine, event.name).items()
    }
    assert len(cells) == len(machine.states) * len(machine.events)
    assert all(cells.values())


@BY_NAME
def test_a_cell_without_rows_is_either_ignored_or_refused_never_both(machine: Machine) -> None:
    for event in machine.events:
        for state, entries in decided(machine, event.name).items():
            kinds = {type(entry) for entry in entries if not isinstance(entry, Row)}
            guarded = all(entry.when != "true" for entry in entries if isinstance(entry, Refused))
            assert not (kinds == {Ignored, Refused} and not guarded), (state, event.name)


@BY_NAME
def test_nothing_is_written_that_is_never_spoken(machine: Machine) -> None:
    spoken = [entry for event in machine.events for entries in decided(machine, event.name).values() for entry in entries]
    written = [*machine.rows, *machine.ignored, *machine.refused]
    assert [entry for entry in written if not any(entry is other for other in spoken)] == []
    for event in machine.events:
        for state, entries in decided(machine, event.name).items():
            answers = [entry.when for entry in entries if isinstance(entry, Refused)]
            assert "true" not in answers[:-1], f"({state}, {event.name}): a refusal stands behind one without guard"


@BY_NAME
def test_an_internal_event_with_rows_waits_and_is_not_refused_in_the_same_cell(machine: Machine) -> None:
    internal = [event for event in machine.events if event.owner not in (Owner.client, Owner.operator)]
    for event in internal:
        for state, entries in decided(machine, event.name).items():
            kinds = {type(entry) for entry in entries}
            assert not kinds >= {Row, Refused}, (state, event.name)


@BY_NAME
def test_every_state_can_be_reached(machine: Machine) -> None:
    reached, grown = {machine.initial}, True
    while grown:
        more = {target for source, target in moves(machine) if source in reached} - reached
        reached |= more
        grown = bool(more)
    assert reached == set(machine.states)


@BY_NAME
def test_every_state_that_is_not_terminal_can_be_left_and_a_final_one_never(machine: Machine) -> None:
    left = {source for source, _ in moves(machine)}
    for state in machine.states:
        if (machine.name, state) in FINAL:
            assert state not in left
            assert not [row for row in machine.rows if state in row.source]
        elif state not in machine.terminal:
            assert state in left


@BY_NAME
def test_a_terminal_state_is_final_unless_it_is_also_the_initial_one(machine: Machine) -> None:
    for state in machine.terminal:
        if state != machine.initial and machine.name != "operation":
            assert (machine.name, state) in FINAL


@BY_NAME
def test_a_defect_is_never_a_callers_answer_to_a_mere_guess(machine: Machine) -> None:
    """Clients and operators meet a typed error; `defect` is for cells that our own front end cannot send."""
    known = {("session", "open"), ("engine", "shutdown"), ("weights", "begin")}
    for entry in machine.refused:
        owner = machine.event(entry.event).owner
        if entry.error is Error.defect and owner in (Owner.client, Owner.operator):
            assert (machine.name, entry.event) in known


# ---- request: terminals and blocks ------------------------------------------------------------------------------------------


def test_a_request_leaves_its_live_states_by_exactly_one_terminal() -> None:
    answering = [row for row in request.MACHINE.rows if set(row.source) <= LIVE and row.target in ("draining", "ended")]
    assert len(answering) == 10
    assert all(len(effects(row, "terminal")) == 1 for row in answering)


def test_no_terminal_is_minted_anywhere_else() -> None:
    for row in request.MACHINE.rows:
        if not (set(row.source) <= LIVE and row.target in ("draining", "ended")):
            assert effects(row, "terminal") == []


def test_draining_is_entered_only_by_what_holds_blocks_and_left_only_to_ended() -> None:
    assert {source for row in rows_into(request.MACHINE, "draining") for source in row.source} == {"running", "retracting"}
    assert {row.target for row in request.MACHINE.rows if "draining" in row.source} == {"ended"}


def test_blocks_are_allocated_on_the_way_into_running_and_nowhere_else() -> None:
    allocating = [(row.source, row.target) for row in request.MACHINE.rows if effects(row, "allocate_blocks")]
    assert allocating == [(("admitted",), "running")]
    assert all(effects(row, "allocate_blocks") == [""] for row in rows_into(request.MACHINE, "running"))


def test_blocks_come_back_on_leaving_retracting_for_the_queue_or_draining_for_good_and_nowhere_else() -> None:
    freeing = {(row.source, row.target) for row in request.MACHINE.rows if effects(row, "free_blocks")}
    assert freeing == {(("retracting",), "admitted"), (("draining",), "ended")}
    for row in request.MACHINE.rows:
        if (row.source, row.target) in freeing:
            assert len(effects(row, "free_blocks")) == 1


def test_blocks_are_freed_only_when_no_step_names_the_request_and_no_copy_runs() -> None:
    for row in request.MACHINE.rows:
        if effects(row, "free_blocks"):
            assert row.when.startswith("not in_flight and ")
            assert " and not kv_copy and " in row.when


def test_every_way_to_end_forgets_the_marks() -> None:
    ways = list(rows_into(request.MACHINE, "ended"))
    assert len(ways) == 7
    assert all(set(row.sets) == set(request.FORGET) for row in ways)


def test_only_request_rows_touch_blocks_and_terminals() -> None:
    for machine in MACHINES:
        if machine.name != "request":
            assert not [
                row for row in machine.rows for word in ("terminal", "free_blocks", "allocate_blocks") if effects(row, word)
            ]


# ---- step, engine, tokens, weights ------------------------------------------------------------------------------------------


def test_a_step_is_launched_once_through_the_gate_and_a_launched_one_is_never_dropped() -> None:
    launching = [row for row in step.MACHINE.rows if effects(row, "launch_step")]
    assert [(row.source, row.target) for row in launching] == [(("planned",), "launched")]
    assert all("gate_open" in row.when.split(" and ") for row in launching)
    assert {source for row in step.MACHINE.rows if row.event == "drop" for source in row.source} == {"planned"}


def test_a_token_never_weakens_until_it_is_released() -> None:
    for row in pause_token.MACHINE.rows:
        assert row.target is not None
        for source in row.source:
            if row.event == "release":
                assert row.target == "free"
            else:
                assert STRENGTH[row.target] > STRENGTH[source]


def test_a_token_can_be_taken_and_strengthened_to_every_stronger_mode() -> None:
    holding = {
        (str(source), str(row.target)) for row in pause_token.MACHINE.rows if row.event == "hold" for source in row.source
    }
    assert holding == {(weak, strong) for weak in STRENGTH for strong in STRENGTH if STRENGTH[weak] < STRENGTH[strong]}


def test_tokens_are_released_only_by_name_but_for_the_ends_of_the_engine() -> None:
    everybody = [row.event for row in engine.MACHINE.rows if "pause_token[*].release" in row.also]
    assert everybody == ["stop", "fail"]


def test_a_grant_ends_with_reopen_or_failure_only() -> None:
    assert {row.event for row in engine.MACHINE.rows if "granted := no" in row.sets} == {"reopen", "fail"}
    for row in rows_into(engine.MACHINE, "running"):
        assert row.event == "reopen" or "no_token" in row.when.split(" and "), row
        assert row.event != "undrain" or "not granted" in row.when


def test_a_goal_is_set_on_entering_draining_and_forgotten_on_leaving_it() -> None:
    for row in engine.MACHINE.rows:
        goals = [text.removeprefix("goal := ") for text in row.sets if text.startswith("goal := ")]
        if row.target == "draining":
            assert len(goals) == 1
            assert goals != ["none"]
        elif row.target is not None and "draining" in row.source:
            assert goals == ["none"]
        elif row.target is None and goals:
            assert row.source == ("draining",)


def test_a_new_version_comes_with_an_empty_prefix_index_and_a_released_token() -> None:
    committing = [row for row in weights.MACHINE.rows if effects(row, "new_version")]
    assert [row.event for row in committing] == ["commit_keep", "committed"]
    for row in committing:
        assert effects(row, "drop_prefix_index")
        assert "pause_token[update].release" in row.also


def test_a_row_moves_no_record_of_its_own_machine_jointly() -> None:
    for machine in MACHINES:
        assert not [row for row in machine.rows for joint in row.also if parse_joint(joint).machine == machine.name]


# ---- what they share --------------------------------------------------------------------------------------------------------


def test_the_pass_fires_every_boundary_event_of_the_core_once() -> None:
    boundary = {
        (machine.name, event.name)
        for machine in MACHINES
        if machine.name not in ("session", "link", "stream")
        for event in machine.events
        if event.boundary
    }
    assert len(set(PASS_ORDER)) == len(PASS_ORDER)
    assert set(PASS_ORDER) == boundary


def test_boundary_events_are_fair() -> None:
    unfair = [
        (machine.name, event.name)
        for machine in MACHINES
        for event in machine.events
        if event.boundary and event.fairness is Fairness.none
    ]
    assert unfair == []


def test_facts_and_properties_have_one_name_each_and_a_sentence() -> None:
    for named in (FACTS, PROPERTIES):
        names = [entry.name for entry in named]
        assert len(set(names)) == len(names)
        assert all(entry.sentence for entry in named)
    assert not {fact.name for fact in FACTS} & {name for machine in MACHINES for name in machine.variables}


def test_no_fact_leads_back_to_itself() -> None:
    for fact in FACTS:
        seen: set[str] = set()
        waiting = [fact.name]
        while waiting:
            name = waiting.pop()
            used = {other for other in CATALOG.facts if other in _words(CATALOG.facts[name].when)} - seen
            assert fact.name not in used
            seen |= used
            waiting += used


def _words(text: str) -> set[str]:
    return set("".join(letter if letter.isalnum() or letter == "_" else " " for letter in text).split())


def test_every_judge_has_something_to_judge_and_every_property_a_check_or_a_sentence_for_tests() -> None:
    assert {judge for prop in PROPERTIES for judge in prop.judges} == set(Judge)
    for prop in PROPERTIES:
        if prop.modality is Modality.eventually:
            assert prop.when
            assert prop.then
        if prop.modality is Modality.sometimes:
            assert prop.when


def test_every_mode_and_the_shutdown_have_a_policy() -> None:
    assert [policy.mode for policy in HELD_MODE_POLICIES] == ["abort", "wait", "keep", "shutdown"]
