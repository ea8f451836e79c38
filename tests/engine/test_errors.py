"""The tree of errors: what a caller can catch, what a server answers, and that the page says the truth about both."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

import quiesce
from quiesce.engine import errors
from quiesce.engine.operations import error_for
from quiesce.spec.language import Error, Refused
from quiesce.statemachine.gate import IllegalTransition, RefusedTransition
from quiesce.statemachine.monitor import ConformanceError
from quiesce.statemachine.records import World

EXCEPTIONS = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
CLASSES = {name: kind for name, kind in EXCEPTIONS.items() if issubclass(kind, errors.EngineError)}
STATUS = {
    "EngineError": 500, "InvalidRequest": 400, "DuplicateRequest": 409, "TransitionConflict": 409, "QueueFull": 429,
    "DeadlineExceeded": 504, "Unavailable": 503, "EngineDead": 503,
}  # fmt: skip
EXAMPLES: dict[str, errors.EngineError] = {
    "EngineError": errors.EngineError("all went wrong"),
    "InvalidRequest": errors.InvalidRequest("top_p", "must be a number"),
    "DuplicateRequest": errors.DuplicateRequest("r1"),
    "TransitionConflict": errors.TransitionConflict("paused", "sleep", ("resume",), "resume first", "op-7"),
    "QueueFull": errors.QueueFull("8 wait"),
    "DeadlineExceeded": errors.DeadlineExceeded("5 s"),
    "Unavailable": errors.Unavailable("draining", "retry", retry_after=1.5),
    "EngineDead": errors.EngineDead("failed", "start a new engine"),
}


def test_there_are_exactly_the_declared_classes() -> None:
    assert set(EXCEPTIONS) == set(CLASSES) == set(STATUS) == set(EXAMPLES)


@pytest.mark.parametrize("name", STATUS)
def test_each_has_its_status_and_says_what_it_is(name: str) -> None:
    assert CLASSES[name].http_status == STATUS[name]
    assert CLASSES[name].__doc__


def test_the_drawn_tree_lists_every_class_with_its_status_under_its_base() -> None:
    drawn = re.findall(r"^([ │]*)[├└]── (\w+)\s+(\d+)", errors.__doc__ or "", re.MULTILINE)
    assert {name: int(status) for _, name, status in drawn} == {k: v for k, v in STATUS.items() if k != "EngineError"}
    parents: list[tuple[int, str]] = [(-1, "EngineError")]
    for indent, name, _ in drawn:
        while parents[-1][0] >= len(indent):
            parents.pop()
        assert CLASSES[name].__mro__[1].__name__ == parents[-1][1]
        parents.append((len(indent), name))


def test_a_bad_value_is_a_value_error_and_a_dead_engine_is_unavailable() -> None:
    assert isinstance(EXAMPLES["InvalidRequest"], ValueError)
    assert isinstance(EXAMPLES["EngineDead"], errors.Unavailable)
    assert not isinstance(EXAMPLES["QueueFull"], errors.Unavailable)


def test_a_bad_value_names_its_field_and_a_duplicate_its_id() -> None:
    bad, duplicate = errors.InvalidRequest("top_p", "must be a number"), errors.DuplicateRequest("r1")
    assert (bad.field, bad.reason, str(bad)) == ("top_p", "must be a number", "top_p: must be a number")
    assert duplicate.request_id == "r1"
    assert "'r1'" in str(duplicate)


def test_a_conflict_says_the_state_the_event_what_is_allowed_and_what_to_call_first() -> None:
    conflict = errors.TransitionConflict("paused", "sleep", ["resume", "wake_up"], "resume first")
    assert (conflict.state, conflict.event, conflict.allowed) == ("paused", "sleep", ("resume", "wake_up"))
    assert str(conflict) == "sleep is not legal while paused; legal here: resume, wake_up; resume first"
    assert str(errors.TransitionConflict("paused", "sleep", superseded_by="op-7")) == "sleep was superseded by op-7"


def test_unavailable_says_the_state_and_when_to_retry() -> None:
    unavailable = errors.Unavailable("draining", "resume it", retry_after=2.0)
    assert (unavailable.state, unavailable.retry_after) == ("draining", 2.0)
    assert str(unavailable) == "the engine is draining; resume it"


@pytest.mark.parametrize("kind", [IllegalTransition, RefusedTransition, ConformanceError])
def test_a_broken_promise_of_our_own_is_never_mistaken_for_a_callers_fault(kind: type[Exception]) -> None:
    assert not issubclass(kind, errors.EngineError)


def test_the_package_hands_the_tree_out() -> None:
    assert quiesce.errors is errors


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_error_crosses_a_process_boundary_whole(name: str, copied: object) -> None:
    error = EXAMPLES[name]
    again = copied(error)  # type: ignore[operator]
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("error", [error for error in Error if error is not Error.defect])
def test_what_the_tables_refuse_reaches_the_caller_as_the_error_that_they_name(error: Error) -> None:
    entry = Refused("hold", ("paused",), error, "resume first")
    told = error_for(RefusedTransition(World().engine, "hold", entry, ("select", "resume")), "paused")
    assert type(told) is CLASSES[error]
    assert "resume first" in str(told) or error is Error.DuplicateRequest
    if isinstance(told, errors.TransitionConflict):
        assert (told.event, told.allowed) == ("hold", ("sleep", "resume"))
