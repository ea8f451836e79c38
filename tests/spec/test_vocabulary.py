"""The words: those of the blueprint are there, each is spelled as it is named, and each is used."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Any

import pytest

from quiesce.spec import MACHINES, vocabulary
from quiesce.spec.language import Machine

BY_NAME = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)

STATES = {
    "engine": "starting running draining paused partially_awake sleeping stopping stopped failed",
    "pause_token": "free keep wait abort",
    "operation": "queued draining acting done failed superseded",
    "memory": "resident releasing released restoring undefined",
    "weights": "stable updating committing undefined",
    "request": "absent received admitted running draining ended retracting",
    "step": "empty planned launched landed retired dropped",
    "stream": "opening open closing closed",
    "session": "absent idle active closing closed",
    "link": "connecting up lost restarting down",
}
"""The vocabulary of the blueprint. A session that is closed is `absent` again: the one word the tables say otherwise."""

EVENTS = {
    "engine": "pause resume sleep wake_up begin_update shutdown reopen fail",
    "pause_token": "hold release",
    "operation": "take act deliver complete give_up supersede expire detach",
    "memory": "select release released restore restored lose",
    "weights": "begin load commit rollback lose",
    "request": "submit admit start preempt retract retracted abort sweep finish fail reap",
    "step": "plan launch land retire drop",
    "stream": "call gone abort terminal",
    "session": "open turn close",
    "link": "connect lose restart give_up",
}

VOCABULARIES = [
    kind for _, kind in inspect.getmembers(vocabulary, inspect.isclass) if issubclass(kind, StrEnum) and kind is not StrEnum
]


def test_the_machines_are_those_of_the_blueprint() -> None:
    assert sorted(machine.name for machine in MACHINES) == sorted(STATES)


@BY_NAME
def test_states_and_events_of_the_blueprint_are_there(machine: Machine) -> None:
    assert set(STATES[machine.name].split()) - set(machine.states) == ({"closed"} if machine.name == "session" else set())
    assert set(machine.states) <= set(STATES[machine.name].split())
    assert set(EVENTS[machine.name].split()) <= {event.name for event in machine.events}


@pytest.mark.parametrize("words", VOCABULARIES, ids=lambda words: words.__name__)
def test_a_word_is_spelled_as_it_is_named_once(words: type[StrEnum]) -> None:
    assert len(words) >= 2
    assert [word.name for word in words] == [word.value for word in words]
    assert len(words.__members__) == len(words), "an alias spells one value twice"
    assert all(word.isidentifier() and word == word.lower() for word in words)


@BY_NAME
def test_every_event_of_the_vocabulary_is_declared_once(machine: Machine) -> None:
    names = [event.name for event in machine.events]
    kinds: set[Any] = {type(name) for name in names}
    assert len(names) == len(set(names))
    assert len(kinds) == 1
    assert set(names) == set(kinds.pop())


@BY_NAME
def test_states_and_events_are_written_as_words_of_the_vocabulary_not_as_loose_strings(machine: Machine) -> None:
    assert isinstance(machine.initial, machine.states)
    assert all(isinstance(state, machine.states) for state in (*machine.terminal, *machine.meanings))
    for row in machine.rows:
        assert all(isinstance(state, machine.states) for state in row.source)
        assert row.target is None or isinstance(row.target, machine.states)


def test_every_machine_has_its_own_file_and_its_own_words() -> None:
    assert len({machine.file for machine in MACHINES}) == len(MACHINES)
    assert len({machine.states for machine in MACHINES}) == len(MACHINES)
    assert all(machine.file == f"spec/{machine.name}.py" for machine in MACHINES)


@BY_NAME
def test_every_variable_starts_with_its_first_value_and_has_at_least_two(machine: Machine) -> None:
    for values in machine.variables.values():
        assert len(set(values)) == len(values) >= 2
