"""Sampling parameters are checked whole before anything happens, and whatever is wrong is an `InvalidRequest` that names the field."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.engine.errors import InvalidRequest
from quiesce.engine.sampling_params import MAX_N, SamplingParams

FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))

FLAGS = {"ignore_eos", "skip_special_tokens", "include_stop_str_in_output"}

GOOD: dict[str, tuple[Any, ...]] = {
    "n": (1, MAX_N),
    "temperature": (0, 0.0, 0.7, 1, 2.5),
    "top_p": (1, 1.0, 0.5, 1e-6),
    "top_k": (-1, 0, 1, 50),
    "min_p": (0, 0.0, 0.5, 1, 1.0),
    "seed": (None, 0, -1, 2**63, 2**200),
    "max_tokens": (None, 1, 16, 2**40),
    "min_tokens": (0, 5),
    "stop": ((), [], "", "end", ["end", "stop"]),
    "stop_token_ids": ((), [], [0], (1, 2)),
    "ignore_eos": (True, False),
    "logprobs": (None, 0, 5, -1),
    "prompt_logprobs": (None, 0, 5, -1),
    "logit_bias": (None, {}, {5: -100}, {0: 0.5}),
    "repetition_penalty": (1, 1.3, 0.5),
    "presence_penalty": (0, -2.0, 2),
    "frequency_penalty": (0, -2.0, 2),
    "include_stop_str_in_output": (True, False),
    "skip_special_tokens": (True, False),
    "output_kind": ("cumulative", "delta", "final"),
}
BAD: dict[str, tuple[Any, ...]] = {
    "n": (0, -1, MAX_N + 1, 1.0, True, "1", None),
    "temperature": (-0.1, -1, math.nan, math.inf, -math.inf, "1", None, True, 1j, Decimal(1), [1.0]),
    "top_p": (0, 0.0, -0.5, 1.01, math.nan, "1", None, True),
    "top_k": (-2, 1.0, math.nan, "5", None, True),
    "min_p": (-0.1, 1.1, math.nan, None, False),
    "seed": (1.0, "1", True, [1]),
    "max_tokens": (0, -1, 1.0, math.nan, "16", True),
    "min_tokens": (-1, 17, 1.0, "0", None),
    "stop": ([""], 5, [5], b"end", {"end"}),
    "stop_token_ids": ([-1], [1.0], ["5"], [True], [None], "end", [[1]]),
    "logprobs": (-2, 1.0, True, "5"),
    "prompt_logprobs": (-2, 1.0, True),
    "logit_bias": ([5], {-1: 1.0}, {"5": 1.0}, {True: 1.0}, {5: math.nan}, {5: 101}, {5: None}),
    "repetition_penalty": (0, -1.0, math.nan, None, "1"),
    "presence_penalty": (-2.1, 2.1, math.nan, None),
    "frequency_penalty": (-2.1, 2.1, math.nan, None),
    "output_kind": ("all", None, 1, ["delta"]),
}


def cases(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r}"[:40]) for name, values in table.items() for value in values]


def test_every_field_is_tried_with_good_values() -> None:
    assert set(GOOD) == set(FIELDS)
    assert set(FIELDS) - set(BAD) == FLAGS


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_a_good_value_is_kept(name: str, value: Any) -> None:
    kept = getattr(SamplingParams.of(**{name: value}), name)
    assert kept == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: ") as refusal:
        SamplingParams.of(**{name: value})
    assert refusal.value.field == name


def test_the_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.seed, params.ignore_eos) == (16, 0, None, False)


def test_a_request_cannot_be_made_to_run_longer_than_it_may() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens: 9 is more than max_tokens 8"):
        SamplingParams(min_tokens=9, max_tokens=8)
    SamplingParams(min_tokens=9, max_tokens=None)


def test_an_unknown_parameter_is_refused_by_name_and_the_known_ones_are_told() -> None:
    with pytest.raises(InvalidRequest, match=r"^temprature: unknown parameter; known are .*temperature") as refusal:
        SamplingParams.of(temprature=0.5)
    assert refusal.value.field == "temprature"


def test_parameters_cannot_be_changed_after_they_were_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().temperature = -1.0  # type: ignore[misc]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.complex_numbers(),
    st.just(Decimal("NaN")), st.just(Fraction(1, 2)), st.builds(object),
)  # fmt: skip
JUNK = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.integers(), SCALARS, max_size=2))
LISTS = st.lists(SCALARS, max_size=4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([name for name in FIELDS if name != "stop_token_ids"]), JUNK, LISTS)
def test_any_junk_is_either_taken_or_an_invalid_request(name: str, junk: object, ids: list[object]) -> None:
    for field, value in ((name, junk), ("stop_token_ids", ids)):
        try:
            params = SamplingParams.of(**{field: value})
        except InvalidRequest as refusal:
            named = refusal.field
        else:
            named = field
            kept = getattr(params, field)
            assert kept is value or kept == value or kept == tuple(value)  # type: ignore[arg-type]
        assert named == field


NOT_REFUSED: dict[str, tuple[Any, ...]] = {
    "stop_token_ids": (5, None, iter([5])),
    "top_k": (2**31,),
    "temperature": (10**400, 1e39),
    "max_tokens": (-(10**5000),),
    "ignore_eos": ("no", None),
    "skip_special_tokens": (3,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NOT_REFUSED.items() for value in values],
                         ids=[f"{name}-{place}" for name, values in NOT_REFUSED.items() for place in range(len(values))])  # fmt: skip
def test_a_value_that_no_array_can_hold_is_refused_here_and_not_in_the_core(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: "):
        SamplingParams.of(**{name: value})


def test_a_list_that_is_changed_later_changes_nothing() -> None:
    ids = [5]
    params = SamplingParams(stop_token_ids=ids)
    ids.append(6)
    assert tuple(params.stop_token_ids) == (5,)
