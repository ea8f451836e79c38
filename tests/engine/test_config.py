"""Every size and limit is checked at construction, and the error names the field."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.engine.checkpoint import bytes_per_block
from quiesce.engine.config import OPTIONS, EngineConfig
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.model import open_model
from quiesce.stateful.driver import ledger_config

SIZES = ("max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes", "max_queue")
OPTIONAL_SIZES = ("num_kv_blocks", "max_model_len", "num_threads")
SECONDS = ("step_timeout_s", "control_timeout_s", "session_idle_timeout_s", "heartbeat_timeout_s")
FIELDS = tuple(field.name for field in dataclasses.fields(EngineConfig))
UNCHECKED = ("model", "max_sessions", "trace_path", "enable_prefix_caching", "enable_chunked_prefill", "overlap",
             "enforce_eager", "connect", "batch_invariant", "tokenizer_required", "poison_freed_blocks")  # fmt: skip


def refused(name: str, value: object) -> str:
    with pytest.raises(InvalidRequest, match=f"^{name}: ") as refusal:
        EngineConfig(**{name: value})  # type: ignore[arg-type]
    assert refusal.value.field == name
    return refusal.value.reason


def test_the_defaults_are_legal_and_every_field_is_covered_here() -> None:
    EngineConfig()
    assert {*SIZES, *OPTIONAL_SIZES, *SECONDS, *OPTIONS, "seed", "max_restarts", *UNCHECKED} == set(FIELDS)


@pytest.mark.parametrize("value", [0, -1, 1.0, math.nan, "16", True, [16], None])
@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_an_integer_above_zero(name: str, value: object) -> None:
    assert "integer of at least 1" in refused(name, value)


@pytest.mark.parametrize("value", [0, -1, 1.0, math.nan, "16", True])
@pytest.mark.parametrize("name", OPTIONAL_SIZES)
def test_a_size_that_may_be_left_out_is_none_or_an_integer_above_zero(name: str, value: object) -> None:
    assert getattr(EngineConfig(), name) is None
    assert "integer of at least" in refused(name, value)


def test_a_context_of_one_token_has_no_room_for_an_answer() -> None:
    assert "at least 2" in refused("max_model_len", 1)
    assert EngineConfig(max_model_len=2).max_model_len == 2


@pytest.mark.parametrize("value", [0, 0.0, -1, math.nan, math.inf, "5", None, True])
@pytest.mark.parametrize("name", SECONDS)
def test_a_timeout_is_seconds_above_zero(name: str, value: object) -> None:
    assert "seconds above 0" in refused(name, value)


@pytest.mark.parametrize("value", ["", "auto ", "AUTO", None, 16, ["auto"]])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_one_of_those_it_lists(name: str, value: object) -> None:
    reason = refused(name, value)
    for option in OPTIONS[name]:
        assert option in reason
        assert getattr(EngineConfig(**{name: option}), name) == option  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 1.0, "0", True])
def test_a_seed_is_an_integer(value: object) -> None:
    refused("seed", value)
    assert EngineConfig(seed=-(2**80)).seed == -(2**80)


def test_a_thread_cannot_be_restarted() -> None:
    assert "must be 0" in refused("max_restarts", 1)
    assert EngineConfig(backend="process", max_restarts=1).max_restarts == 1


def test_one_token_of_each_request_must_fit_a_step() -> None:
    with pytest.raises(InvalidRequest, match=r"^max_num_batched_tokens: 63 is less than max_num_seqs 64"):
        EngineConfig(max_num_batched_tokens=63)
    EngineConfig(max_num_batched_tokens=64)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TypeError, match="max_num_seq"):
        EngineConfig(max_num_seq=4)  # type: ignore[call-arg]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from([name for name in FIELDS if name not in UNCHECKED]),
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4), st.lists(st.none())),
)
def test_any_junk_is_either_taken_or_an_invalid_request_that_names_a_field(name: str, junk: object) -> None:
    try:
        config = EngineConfig(**{name: junk})  # type: ignore[arg-type]
    except InvalidRequest as refusal:
        named = refusal.field
    else:
        named = name
        assert getattr(config, name) == junk
    assert named in (name, "max_num_batched_tokens")


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", 5), ("model", None), ("max_sessions", -1), ("overlap", "no"), ("batch_invariant", 1), ("trace_path", 5),
     ("enable_prefix_caching", None), ("step_timeout_s", 10**400), ("step_timeout_s", 1e10)],
    ids=str,
)  # fmt: skip
def test_what_would_fail_later_is_refused_here(name: str, value: object) -> None:
    refused(name, value)


# ---- against the checkpoint ---------------------------------------------------------------------------------------------------


def test_a_pool_too_small_for_one_request_is_refused_by_the_field_that_sized_it(ledger_folder: Path) -> None:
    exact = ledger_config(ledger_folder, num_kv_blocks=16)
    assert open_model(exact).num_blocks == 16, "64 tokens in blocks of 4"
    with pytest.raises(InvalidRequest, match=r"^num_kv_blocks: gives 15 blocks; one request of max_model_len 64 needs 16"):
        open_model(ledger_config(ledger_folder, num_kv_blocks=15))
    bytes_ = 16 * bytes_per_block(open_model(exact).info, exact)
    assert open_model(ledger_config(ledger_folder, num_kv_blocks=None, kv_cache_memory_bytes=bytes_)).num_blocks == 16
    with pytest.raises(InvalidRequest, match=r"^kv_cache_memory_bytes: gives 15 blocks"):
        open_model(ledger_config(ledger_folder, num_kv_blocks=None, kv_cache_memory_bytes=bytes_ - 1))


def test_a_context_beyond_the_checkpoints_is_refused(ledger_folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"^max_model_len: 257 is beyond the checkpoint's context of 256"):
        open_model(ledger_config(ledger_folder, max_model_len=257, num_kv_blocks=100))
    assert open_model(ledger_config(ledger_folder, max_model_len=None, num_kv_blocks=100)).max_model_len == 256


def test_prompts_that_are_never_split_must_fit_a_step(ledger_folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"^max_num_batched_tokens: 16 cannot hold a prompt of max_model_len 64"):
        open_model(ledger_config(ledger_folder, enable_chunked_prefill=False))
    open_model(ledger_config(ledger_folder, enable_chunked_prefill=False, max_num_batched_tokens=64))


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InvalidRequest, match=str(folder)):
            open_model(EngineConfig(model=str(folder)))
