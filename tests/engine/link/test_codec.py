"""Letters between processes: what is written is read as it was, and nothing else is a letter."""

from __future__ import annotations

import contextlib
import os
import pickle
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.engine import errors
from quiesce.engine.answers import Ack, Answer, Ended, Nak, PromptLogprobs, Reply, Terminal, Tokens
from quiesce.engine.inbox import Abort, AwaitReady, Control, Detach, Event, Submit
from quiesce.engine.link import codec
from quiesce.engine.link.codec import WireError
from quiesce.engine.link.letters import Beat, Bye, Envelope, Feed, Files, Hello, News, Over, Post, Welcome
from quiesce.engine.measures import Measures
from quiesce.engine.messages import TokenLogprobs
from quiesce.engine.outputs import AbortResult, Blocks, RequestMetrics, Status, Transition
from quiesce.engine.sampling_params import SamplingParams
from quiesce.spec.vocabulary import Mode, OperationKind, Policy

STATUS = Status(
    engine="running", admission="accept", memory=MappingProxyType({"weights": "resident", "kv_cache": "resident"}),
    weights=(2**70, "stable"), pause_owners=MappingProxyType({"ü": "keep"}), operation="sleep", requests=MappingProxyType({"running": 2}),
    sessions=0, streams=0, steps_in_flight=1, blocks=Blocks(9, 3, 2, 3, 1), epoch=1, accepted=4, rejected=1,
    finished=MappingProxyType({"stop": 2}),
)  # fmt: skip
TOKENS = Tokens(
    np.array([1, 2, 2**40], np.int64), np.array([0, 0, 1], np.int32), np.array([5, 6, 7], np.int64), "v2",
    {1: TokenLogprobs((6, 9), (-0.5, float("-inf")), (1, 2))},
)  # fmt: skip
ENTRY = {"t": 0.5, "pass": None, "machine": "engine", "row": 3, "data": {"owner": "user", "requests": [1, 2]}}


def sent_to_core(event: Event) -> Event:
    letter = codec.for_core(codec.encode(3, 7, Post(event))).letter
    assert isinstance(letter, Post)
    return letter.event


def sent_to_front(answer: Answer) -> Answer:
    letter = codec.for_front(codec.encode(3, 7, News(None, None, [answer]))).letter
    assert isinstance(letter, News)
    return letter.answers[0]


def same(one: object, other: object) -> bool:
    """Equality that looks into arrays and errors."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(one.dtype == other.dtype and one.tolist() == other.tolist())
    if isinstance(one, Exception):
        return type(one) is type(other) and str(one) == str(other) and vars(one) == vars(other)
    if hasattr(one, "__dataclass_fields__"):
        names = type(one).__dataclass_fields__
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


@pytest.mark.parametrize(
    "letter", [Hello(2.5), Beat(), Bye(), Post(Abort(1, 2)), Post(Abort(1)), Post(Detach(3)), Post(AwaitReady(4))]
)
def test_letters_to_the_core_arrive_as_they_were(letter: Any) -> None:
    assert codec.for_core(codec.encode(2**40, 3, letter)) == Envelope(2**40, 3, letter)


@pytest.mark.parametrize(
    "letter", [Welcome(1, 99), Beat(), Over(), News(None), News(STATUS, Measures().snapshot(), [], [ENTRY])]
)
def test_letters_to_a_front_end_arrive_as_they_were(letter: Any) -> None:
    assert codec.for_front(codec.encode(1, 0, letter)) == Envelope(1, 0, letter)


@pytest.mark.parametrize("params", [
    SamplingParams(), SamplingParams(seed=-(2**90), max_tokens=2**80, min_tokens=2**70), SamplingParams(seed=2**64 - 1, max_tokens=None),
    SamplingParams(stop="§", stop_token_ids=[3, 1], logit_bias={7: -1}, logprobs=-1, prompt_logprobs=2, n=3, output_kind="delta"),
    SamplingParams(temperature=np.float64(0.5), top_p=1, stop=["a", "b"]),
])  # fmt: skip
def test_a_call_arrives_as_it_was(params: SamplingParams) -> None:
    submit = Submit(5, "naïve", np.array([1, 2, 3], np.int32), params, -(2**80), True)
    assert same(sent_to_core(submit), submit)


@pytest.mark.parametrize("source", [None, Feed("weights-1"), Files({"a.safetensors": ["x", "y"]})])
@pytest.mark.parametrize("version", [None, 3, 2**99, "v"])
def test_a_control_call_arrives_as_it_was(source: Any, version: int | str | None) -> None:
    control = Control(
        9,
        OperationKind.sleep,
        "id",
        2,
        "me",
        Mode.wait,
        Policy.offload,
        Policy.discard,
        "weights",
        True,
        1.5,
        True,
        version,
        source,
    )
    assert same(sent_to_core(control), control)


@pytest.mark.parametrize("answer", [
    Ack(1, 2**100), Nak(2, errors.QueueFull("full")), TOKENS, PromptLogprobs(1, 4, TokenLogprobs((3,), (-1.0,), (9,))), Ended(6),
    Terminal(1, 0, "stop", "§", 3, 2, RequestMetrics(1.0, None, 2.0), None, 4), Terminal(1, 0, "error", 7, 3, 2, RequestMetrics(1.0), "why"),
    Reply(1), Reply(1, True), Reply(1, "digest"), Reply(1, Transition("paused", True, 3, 0.5, 2**50, ("a",), ("b", "c"))),
])  # fmt: skip
def test_an_answer_arrives_as_it_was(answer: Answer) -> None:
    assert same(sent_to_front(answer), answer)


@pytest.mark.parametrize("error", [
    errors.InvalidRequest("n", "no"), errors.DuplicateRequest("r"), errors.TransitionConflict("paused", "sleep", ("resume",), "wake_up", "x"),
    errors.QueueFull("full"), errors.DeadlineExceeded("late"), errors.Unavailable("paused", "resume", 1.5), errors.EngineDead("failed"),
    RuntimeError("odd"), FileNotFoundError(2, "none"), TimeoutError("slow"), MemoryError(), KeyError("k"),
])  # fmt: skip
def test_an_error_arrives_with_its_class_its_words_and_its_attributes(error: Exception) -> None:
    answer = sent_to_front(Reply(1, None, error))
    assert isinstance(answer, Reply)
    assert same(answer.error, error)


def test_an_error_of_a_class_that_the_other_end_cannot_know_names_it() -> None:
    class Strange(Exception):
        pass

    answer = sent_to_front(Nak(1, Strange("what")))
    assert isinstance(answer, Nak)
    assert type(answer.error) is RuntimeError
    assert str(answer.error) == "Strange: what"
    hard = sent_to_front(Nak(1, UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")))
    assert isinstance(hard, Nak)
    assert "bad" in str(hard.error)


def test_a_string_that_is_no_text_is_refused_by_name() -> None:
    submit = Submit(1, "\ud800", np.array([1], np.int32), SamplingParams(), 0)
    with pytest.raises(errors.InvalidRequest, match="text"):
        codec.encode(1, 1, Post(submit))


def test_what_a_core_says_of_such_a_string_arrives_escaped() -> None:
    error = OSError(2, "none", "model-\udcff")
    news = News(
        STATUS,
        None,
        [Nak(1, error), Terminal(1, 0, "error", None, 0, 0, RequestMetrics(0.0), "\ud800?")],
        [{"t": 0.5, "id": "\udcff"}],
    )
    letter = codec.for_front(codec.encode(1, 1, news)).letter
    assert isinstance(letter, News)
    nak, terminal = letter.answers
    assert isinstance(nak, Nak)
    assert "none" in str(nak.error)
    assert isinstance(terminal, Terminal)
    assert terminal.error == "\\ud800?"
    assert letter.entries[0]["id"] == "\\udcff"


@pytest.mark.parametrize("value", [object(), 3.5, {"a": 1}, AbortResult((), ()), b"bytes"])
def test_a_value_that_no_call_answers_is_not_read(value: object) -> None:
    with pytest.raises(WireError):
        codec.for_front(codec.encode(1, 1, News(None, None, [Reply(1, value)])))


def test_arrays_of_another_type_or_shape_are_not_written() -> None:
    for array in (np.array([0.5]), np.zeros((2, 2), np.int32), np.array([2**40])):
        with pytest.raises(WireError):
            codec.encode(1, 1, Post(Submit(1, "r", array, SamplingParams(), 0)))


def test_tokens_streams_and_children_of_different_numbers_are_no_letter() -> None:
    short = Tokens(TOKENS.streams, TOKENS.children, TOKENS.token_ids[:2], 1, {})
    beyond = Tokens(TOKENS.streams, TOKENS.children, TOKENS.token_ids, 1, {3: TokenLogprobs((), (), ())})
    for tokens in (short, beyond):
        with pytest.raises(WireError):
            codec.for_front(codec.encode(1, 1, News(None, None, [tokens])))


@pytest.mark.parametrize("parts", [
    (1, 1, ["Nobody"]), (1, 1, ["Hello", 1.0, "more"]), (1, 1, ["Hello"]), (1, 1, ["Hello", "x"]), (1, ["Hello", 1.0]), (1, 1, ["Post", ["Hello", 1.0]]),
    (1, 1, ["Post", ["Detach", None]]), (1, 1, ["Post", ["Submit", 1, "r", b"abc", [], 0, False]]), (1, 1, ["Welcome", 1, 2]), "text", 7, None,
])  # fmt: skip
def test_what_the_schema_does_not_name_is_no_letter(parts: Any) -> None:
    with pytest.raises(WireError):
        codec.for_core(msgspec.msgpack.encode(parts))


def test_a_letter_for_the_other_direction_is_none() -> None:
    with pytest.raises(WireError):
        codec.for_core(codec.encode(1, 1, Welcome(1, 1)))
    with pytest.raises(WireError):
        codec.for_front(codec.encode(1, 1, Hello(1.0)))


def test_parameters_that_cannot_be_are_no_letter() -> None:
    good = codec.encode(1, 1, Post(Submit(1, "r", np.array([1], np.int32), SamplingParams(top_p=0.75), 0)))
    assert codec.for_core(good)
    with pytest.raises(WireError, match="top_p"):
        codec.for_core(good.replace(msgspec.msgpack.encode(0.75), msgspec.msgpack.encode(7.75)))


def test_a_pickle_is_no_letter_and_is_never_opened() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.abort, ()

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(WireError):
            codec.for_core(pickle.dumps(Bomb(), protocol))


LETTERS = [
    codec.encode(3, 7, Post(Submit(5, "r", np.array([1, 2], np.int32), SamplingParams(seed=2**70, stop=["x"], logit_bias={1: 2.0}), 0))),
    codec.encode(3, 7, Post(Control(9, OperationKind.pause, "id", 2.0, "me", Mode.wait, source=Files({"a": ["b"]})))),  # type: ignore[arg-type]  # in its place
    codec.encode(3, 7, News(STATUS, Measures().snapshot(), [TOKENS, Ack(1, 2**90), Nak(1, errors.EngineDead("failed"))], [ENTRY])),
]  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(letter=st.sampled_from(LETTERS), place=st.integers(0, 10_000), bits=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_letter_is_a_letter_or_a_wire_error(letter: bytes, place: int, bits: int, cut: bool) -> None:
    place %= len(letter)
    damaged = letter[:place] if cut else letter[:place] + bytes([letter[place] ^ bits]) + letter[place + 1 :]
    for decode in (codec.for_core, codec.for_front):
        with contextlib.suppress(WireError):
            assert isinstance(decode(damaged), Envelope)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_letter_or_a_wire_error(data: bytes) -> None:
    for decode in (codec.for_core, codec.for_front):
        with contextlib.suppress(WireError):
            assert isinstance(decode(data), Envelope)
