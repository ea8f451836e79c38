"""A malformed declaration is refused with its file, its row and the reason. Each case spoils one thing of the real tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from quiesce.spec import FACTS, MACHINES, PROPERTIES, engine, memory, pause_token, request, step
from quiesce.spec.check import check, decided
from quiesce.spec.language import (
    ELSEWHERE,
    Error,
    Event,
    Fact,
    Fairness,
    Ignored,
    Machine,
    Modality,
    Owner,
    Property,
    Refused,
    Row,
    SpecError,
)


def complaints(machine: Machine, facts: Iterable[Fact] = FACTS, properties: Iterable[Property] = PROPERTIES) -> str:
    """What `check` says when this machine takes the place of the one of its name."""
    with pytest.raises(SpecError) as refusal:
        check([machine if other.name == machine.name else other for other in MACHINES], facts, properties)
    return str(refusal.value)


def with_row(machine: Machine, number: int, **changes: Any) -> Machine:
    """The machine with its row spoilt; rows are counted from 0, as complaints, traces and diagrams count them."""
    rows = list(machine.rows)
    rows[number] = replace(rows[number], **changes)
    return replace(machine, rows=tuple(rows))


def with_event(machine: Machine, name: str, **changes: Any) -> Machine:
    return replace(
        machine, events=tuple(replace(event, **changes) if event.name == name else event for event in machine.events)
    )


def without(machine: Machine, kind: type[Ignored] | type[Refused], event: str) -> Machine:
    if kind is Ignored:
        return replace(machine, ignored=tuple(entry for entry in machine.ignored if entry.event != event))
    return replace(machine, refused=tuple(entry for entry in machine.refused if entry.event != event))


def test_the_declaration_as_it_stands_is_accepted() -> None:
    check(MACHINES, FACTS, PROPERTIES)


BAD_ROWS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"target": "flying"}, "'flying' is not a state"),
    ({"why": ""}, "why is missing"),
    ({"when": "engine.state = running"}, "is not a guard"),
    ({"when": "weather == fine"}, "'weather' is not a variable of request"),
    ({"when": "engine.weather == fine"}, "'weather' is not a variable of engine"),
    ({"when": "clouds.state == running"}, "'state' is not a variable of clouds"),
    ({"when": "engine.state == flying"}, "'flying' is not one of starting, running"),
    ({"when": "state in (running, flying)"}, "'flying' is not one of absent, received"),
    ({"when": "sunny"}, "'sunny' is neither a fact nor a bit of request"),
    ({"when": "engine.goal"}, "'goal' is neither a fact nor a bit of engine"),
    ({"when": "memory[kv_cache].in_flight"}, "the fact 'in_flight' is about a request"),
    ({"when": "any_step(each.live)"}, "the fact 'live' is about a request"),
    ({"when": "each.begun"}, "'begun' is neither a fact nor a bit of anything"),
    ({"when": "any_request(each.policy == none)"}, "'policy' is not a variable of request"),
    ({"when": "member[2]"}, "'member' is neither a fact nor a bit of request"),
    ({"when": "blocks > 0"}, "'blocks' is not a counter"),
    ({"when": "event.mode == keep"}, "the event does not carry 'mode'"),
    ({"when": "pause_token[nobody].state == free"}, "'nobody' is not an instance of pause_token"),
    ({"when": "memory.state == resident"}, "'' is not an instance of memory"),
    ({"when": "engine[first].state == running"}, "'first' is not an instance of engine"),
    ({"sets": ("begun = yes",)}, "is not an update"),
    ({"sets": ("weather := fine",)}, "no such variable"),
    ({"sets": ("begun := perhaps",)}, "'perhaps' is not one of no, yes"),
    ({"sets": ("state := running",)}, "a state is changed by a row of its own machine"),
    ({"sets": ("engine.state := running",)}, "a state is changed by a row of its own machine"),
    ({"sets": ("begun := event.begun",)}, "the event does not carry it"),
    ({"sets": ("request[*].stale := each.state == flying",)}, "'flying' is not one of absent"),
    ({"sets": ("memory[nobody].policy := none",)}, "'nobody' is not an instance of memory"),
    ({"also": ("weights",)}, "is not a joint move"),
    ({"also": ("clouds.rain",)}, "no such machine or event"),
    ({"also": ("weights.rain",)}, "no such machine or event"),
    ({"also": ("memory[sky].lose",)}, "'sky' is not an instance"),
    ({"also": ("memory.lose",)}, "'' is not an instance"),
    ({"also": ("pause_token[user].hold",)}, "must give mode"),
    ({"also": ("weights.lose(mode=keep)",)}, "must give no data"),
    ({"also": ("pause_token[clear].hold(mode=event.mode)",)}, "the event does not carry 'event.mode'"),
    ({"effects": ("free blocks",)}, "is not an effect"),
)


@pytest.mark.parametrize(("spoilt", "reason"), BAD_ROWS)
def test_a_bad_row_is_refused_with_file_row_event_and_reason(spoilt: dict[str, Any], reason: str) -> None:
    told = complaints(with_row(request.MACHINE, 1, **spoilt))
    line = next(line for line in told.splitlines() if reason in line)
    assert line.startswith("spec/request.py, row 1 (admit): ")


def test_unknown_states_and_events_are_refused_wherever_they_are_named() -> None:
    assert "spec/request.py, Row admit: 'flying' is not a state" in complaints(with_row(request.MACHINE, 1, source=("flying",)))
    assert "spec/request.py, Row take_off: no such event" in complaints(with_row(request.MACHINE, 1, event="take_off"))
    assert "Row admit: '*' is not a state" in complaints(with_row(request.MACHINE, 1, source=ELSEWHERE))
    extra = Ignored("abort", ("flying",), "it flies")
    assert "Ignored abort: 'flying' is not a state" in complaints(
        replace(request.MACHINE, ignored=(*request.MACHINE.ignored, extra))
    )
    answer = Refused("take_off", ELSEWHERE, Error.Unavailable, "land first")
    assert "Refused take_off: no such event" in complaints(replace(request.MACHINE, refused=(*request.MACHINE.refused, answer)))
    assert "'flying' is not a state" in complaints(replace(request.MACHINE, initial="flying"))
    assert "'flying' is not a state" in complaints(replace(request.MACHINE, terminal=("flying",)))


def test_every_state_has_a_meaning_and_nothing_else_has() -> None:
    short = dict(list(request.MACHINE.meanings.items())[1:])
    reason = "meanings must be given for exactly the states"
    assert reason in complaints(replace(request.MACHINE, meanings=short))
    assert reason in complaints(replace(request.MACHINE, meanings={**request.MACHINE.meanings, "flying": "it flies"}))


def test_promises_about_an_event_must_be_backed() -> None:
    told = complaints(with_event(request.MACHINE, "start", mechanism=""))
    assert "spec/request.py, event start: strong fairness must name its mechanism" in told
    assert "event abort: boundary work is the core's" in complaints(with_event(request.MACHINE, "abort", boundary=True))
    idle = replace(request.MACHINE, events=(*request.MACHINE.events, Event("rest", Owner.core, Fairness.none)))
    assert "event rest: no row" in complaints(idle)


def test_an_undecided_cell_is_refused_by_name() -> None:
    told = complaints(without(request.MACHINE, Refused, "reap"))
    assert "spec/request.py: cell (running, reap): not decided; write a row, Ignored or Refused" in told
    assert "cell (draining, reap)" not in told


def test_a_caller_always_gets_an_answer() -> None:
    reason = "a caller gets no answer when no guard holds"
    assert f"spec/request.py: cell (running, abort): {reason}" in complaints(without(request.MACHINE, Ignored, "abort"))


def test_a_core_event_may_wait_for_its_guard() -> None:
    assert [type(entry) for entry in decided(request.MACHINE, "admit")["received"]] == [Row]


def test_a_row_behind_one_without_guard_is_refused() -> None:
    behind = replace(
        request.MACHINE,
        rows=(*request.MACHINE.rows[:1], Row("admit", ("received",), "admitted", "always"), *request.MACHINE.rows[1:]),
    )
    assert "cell (received, admit): a row behind one without guard is never taken" in complaints(behind)


def test_a_cell_is_ignored_for_one_reason() -> None:
    twice = replace(request.MACHINE, ignored=(*request.MACHINE.ignored, Ignored("eos", ("draining",), "again")))
    assert "cell (draining, eos): ignored for two reasons" in complaints(twice)


def test_ignoring_and_refusing_say_why_and_what_to_do() -> None:
    mute = replace(request.MACHINE, ignored=(replace(request.MACHINE.ignored[0], reason=""), *request.MACHINE.ignored[1:]))
    assert "the reason is missing" in complaints(mute)
    dumb = replace(request.MACHINE, refused=(replace(request.MACHINE.refused[0], how_to=""), *request.MACHINE.refused[1:]))
    assert "say what the caller should do first" in complaints(dumb)


def test_a_refusal_is_guarded_in_the_same_grammar() -> None:
    bad = replace(
        request.MACHINE, refused=(replace(request.MACHINE.refused[0], when="weather == fine"), *request.MACHINE.refused[1:])
    )
    assert "cell (absent, submit): 'weather == fine': 'weather' is not a variable of request" in complaints(bad)


def test_facts_and_properties_are_held_to_the_same_grammar() -> None:
    fact = Fact("odd", "", "weather == fine", "the weather is fine")
    assert "spec/coupling.py, fact odd: 'weather == fine'" in complaints(request.MACHINE, facts=(*FACTS, fact))
    about = Property("odd", Modality.always, "It is odd.", PROPERTIES[0].judges, when="weather == fine")
    assert "spec/properties.py, odd: 'weather == fine'" in complaints(request.MACHINE, properties=(*PROPERTIES, about))
    unjudged = Property("free_floating", Modality.always, "Nobody looks.", ())
    assert "spec/properties.py, free_floating: nobody judges it" in complaints(
        request.MACHINE, properties=(*PROPERTIES, unjudged)
    )
    despite = Property("odd", Modality.eventually, "It is odd.", PROPERTIES[0].judges, despite=("request.rain",))
    assert "spec/properties.py, odd: there is no event 'request.rain'" in complaints(
        request.MACHINE, properties=(*PROPERTIES, despite)
    )
    missing = tuple(fact for fact in FACTS if fact.name != "gate_open")
    assert "'gate_open' is neither a fact nor a bit" in complaints(request.MACHINE, facts=missing)


def test_all_complaints_come_at_once() -> None:
    told = complaints(with_row(with_row(request.MACHINE, 1, why=""), 2, why=""))
    assert told.splitlines() == [
        "spec/request.py, row 1 (admit): why is missing",
        "spec/request.py, row 2 (start): why is missing",
    ]


@pytest.mark.parametrize(
    "machine", [engine.MACHINE, memory.MACHINE, pause_token.MACHINE, step.MACHINE], ids=lambda machine: machine.name
)
@pytest.mark.parametrize("spoilt", [{"when": "weather == fine"}, {"why": ""}, {"target": "flying"}])
def test_the_complaint_names_the_file_of_the_machine(machine: Machine, spoilt: dict[str, Any]) -> None:
    assert f"{machine.file}, row 0 ({machine.rows[0].event}): " in complaints(with_row(machine, 0, **spoilt))


def test_elsewhere_is_every_state_not_otherwise_decided() -> None:
    cells = decided(request.MACHINE, "abort")
    assert [type(entry) for entry in cells["running"]] == [Row, Ignored]
    assert [entry.reason for entry in cells["ended"] if isinstance(entry, Ignored)] == [
        "late: it is answered already, or unknown; reported in not_found"
    ]
