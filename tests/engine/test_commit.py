"""What a landed step changes: only rows that still are whose they were, and only requests that are not answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quiesce.engine.batch_state import BatchState
from quiesce.engine.commit import Committed, cache_full_blocks, commit_step
from quiesce.engine.inbox import Submit
from quiesce.engine.messages import StepOutput
from quiesce.engine.prefix_cache import PrefixCache
from quiesce.engine.request import Request
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.scheduler import StepPlan
from quiesce.spec.vocabulary import FinishReason
from quiesce.statemachine.records import World

EOS = 2


class NoHome:
    def request_moved(self, request: Request, source: str, target: str) -> None:
        raise AssertionError("nothing here fires")


@dataclass
class Landed:
    """A step over some rows that has come back."""

    batch: BatchState
    plan: StepPlan
    keys: NDArray[np.int64]

    def commit(self, *token_ids: int, now_s: float = 5.0) -> Committed:
        output = StepOutput(1, 1, np.array(token_ids, np.int64))
        return commit_step(self.batch, self.plan, self.keys, output, now_s)

    def cache(self, cache: PrefixCache, version: int = 0) -> None:
        cache_full_blocks(self.batch, cache, self.plan, self.keys, version)


def request_of(key: int, prompt: list[int], blocks: list[int], **params: Any) -> Request:
    submit = Submit(100 + key, f"r{key}", np.array(prompt, np.int32), SamplingParams(**params), 0)
    request = Request(World(), NoHome(), key, submit, seed=0, arrival_s=0.0)
    request.blocks = blocks
    return request


def batch_of(*requests: Request, limit: int = 20) -> BatchState:
    batch = BatchState(4, 32, 4)
    for request in requests:
        batch.occupy(request, 0, 0, (EOS, *request.params.stop_token_ids), limit)
    return batch


def launched(batch: BatchState, *counts: int, starts: tuple[int, ...] | None = None, samples: bool = True) -> Landed:
    """A step in flight over the first rows."""
    rows = np.arange(len(counts), dtype=np.int32)
    plan = StepPlan(
        rows, np.array(starts or (0,) * len(counts), np.int32), np.array(counts, np.int32), np.full(len(counts), samples)
    )
    batch.num_scheduled[rows] += plan.counts
    batch.num_pending[rows] += plan.samples
    return Landed(batch, plan, batch.key[rows].copy())


def test_a_sampled_token_is_written_behind_the_others_and_told() -> None:
    one, two = request_of(1, [10, 11, 12], [0]), request_of(2, [20, 21], [1])
    batch = batch_of(one, two)
    committed = launched(batch, 3, 2).commit(13, 22)
    assert batch.tokens(0).tolist() == [10, 11, 12, 13]
    assert batch.tokens(1).tolist() == [20, 21, 22]
    assert committed.rows.tolist() == [0, 1]
    assert committed.token_ids.tolist() == [13, 22]
    assert committed.ended == ()
    assert batch.num_pending[:2].tolist() == [0, 0]


def test_a_chunk_that_samples_nothing_brings_nothing() -> None:
    batch = batch_of(request_of(1, [10, 11, 12], [0]))
    committed = launched(batch, 2, samples=False).commit(-1)
    assert batch.tokens(0).tolist() == [10, 11, 12]
    assert (len(committed.rows), committed.ended) == (0, ())
    assert batch.num_pending[0] == 0


def test_the_token_of_an_answered_request_is_dropped_and_its_counter_comes_back() -> None:
    batch = batch_of(request_of(1, [10], [0]), request_of(2, [20], [1]))
    step = launched(batch, 1, 1)
    batch.live[0] = False
    committed = step.commit(11, 21)
    assert committed.rows.tolist() == [1]
    assert batch.tokens(0).tolist() == [10]
    assert batch.num_pending[:2].tolist() == [0, 0]


def test_a_retracting_request_still_gets_the_token_that_was_on_its_way() -> None:
    request = request_of(1, [10], [0])
    batch = batch_of(request)
    step = launched(batch, 1)
    batch.stop_running(request)
    assert step.commit(11).token_ids.tolist() == [11]


def test_a_row_that_belongs_to_somebody_else_by_now_is_left_alone() -> None:
    first = request_of(1, [10, 11], [0])
    batch = batch_of(first)
    step = launched(batch, 2)
    batch.release(first)
    batch.occupy(request_of(2, [20, 21, 22], [1]), 0, 0, (EOS,), 20)
    assert batch.key[0] == 2, "the row is used again"
    committed = step.commit(EOS)
    assert (len(committed.rows), committed.ended) == (0, ())
    assert batch.tokens(0).tolist() == [20, 21, 22]
    assert batch.num_pending[0] == 0, "a counter below zero would plan a position twice"


def test_a_faulty_row_gets_no_token_and_is_waited_for_no_more() -> None:
    batch = batch_of(request_of(1, [10], [0]))
    committed = launched(batch, 1).commit(-1)
    assert (len(committed.rows), batch.num_pending[0], batch.num_tokens[0]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("token", "reason", "told"),
    [(EOS, FinishReason.stop, None), (7, FinishReason.stop, 7), (8, FinishReason.stop, 8)],
    ids=["end of sequence", "first stop id", "second stop id"],
)
def test_a_stop_token_ends_it_and_only_the_clients_own_are_told(token: int, reason: FinishReason, told: int | None) -> None:
    request = request_of(1, [10], [0], stop_token_ids=[7, 8])
    (ended,) = launched(batch_of(request), 1).commit(token).ended
    assert ended is request
    assert (request.finish_reason, request.stop_reason) == (reason, told)


def test_the_limit_ends_it_and_a_stop_token_at_the_limit_is_a_stop() -> None:
    at_limit, stopped, going = (request_of(key, [10], [key]) for key in (1, 2, 3))
    batch = batch_of(at_limit, stopped, going, limit=2)
    batch.limit[2] = 3
    committed = launched(batch, 1, 1, 1).commit(50, EOS, 50)
    assert committed.ended == (at_limit, stopped)
    assert (at_limit.finish_reason, stopped.finish_reason, going.finish_reason) == (
        FinishReason.length,
        FinishReason.stop,
        None,
    )
    assert committed.token_ids.tolist() == [50, EOS, 50], "the last token is delivered, too"


def test_more_stop_ids_than_there_was_room_for_widen_every_row() -> None:
    few, many = request_of(1, [10], [0], stop_token_ids=[7]), request_of(2, [10], [1], stop_token_ids=list(range(30, 60)))
    batch = batch_of(few, many)
    assert launched(batch, 1, 1).commit(7, 59).ended == (few, many)


def test_the_time_of_the_first_token_is_taken_once() -> None:
    request = request_of(1, [10, 11], [0])
    batch = batch_of(request)
    launched(batch, 2).commit(12, now_s=5.0)
    launched(batch, 1, starts=(2,)).commit(13, now_s=6.0)
    assert request.first_token_s == 5.0


def cached_blocks(cache: PrefixCache, token_ids: list[int], version: int = 0) -> list[int]:
    return cache.match(np.array([*token_ids, 0], np.int32), version)[0]


def test_blocks_become_findable_when_the_step_that_filled_them_lands_and_not_before() -> None:
    prompt = list(range(10, 20))
    request = request_of(1, prompt, [5, 6, 7])
    batch, cache = batch_of(request), PrefixCache(4)
    step = launched(batch, 7, samples=False)
    assert cached_blocks(cache, prompt) == []
    step.cache(cache)
    assert cached_blocks(cache, prompt) == [5], "seven positions fill one block of four"
    step = launched(batch, 3, starts=(7,))
    step.commit(20)
    step.cache(cache)
    assert cached_blocks(cache, prompt) == [5, 6]
    assert (len(request.hashes), batch.num_hashed[0]) == (2, 2)


def test_generated_tokens_make_findable_blocks_too() -> None:
    request = request_of(1, [10, 11, 12], [5, 6])
    batch, cache = batch_of(request), PrefixCache(4)
    launched(batch, 3).commit(13)
    step = launched(batch, 1, starts=(3,))
    step.commit(14)
    step.cache(cache)
    assert cached_blocks(cache, [10, 11, 12, 13]) == [5]


def test_blocks_are_findable_only_under_the_version_that_computed_them() -> None:
    batch, cache = batch_of(request_of(1, [10, 11, 12, 13], [5, 6])), PrefixCache(4)
    launched(batch, 4).cache(cache, version=3)
    assert cached_blocks(cache, [10, 11, 12, 13], version=3) == [5]
    assert cached_blocks(cache, [10, 11, 12, 13], version=4) == []


@pytest.mark.parametrize("why", ["answered", "another request", "stale", "cache off"])
def test_nothing_becomes_findable_of_a_row_that_is(why: str) -> None:
    request = request_of(1, [10, 11, 12, 13], [5, 6])
    batch, cache = batch_of(request), PrefixCache(4, enabled=why != "cache off")
    step = launched(batch, 4)
    if why == "answered":
        batch.live[0] = False
    elif why == "another request":
        batch.release(request)
        batch.occupy(request_of(2, [20, 21, 22, 23], [8, 9]), 0, 0, (EOS,), 20)
    elif why == "stale":
        request.stale = True
    step.cache(cache)
    assert cached_blocks(cache, [10, 11, 12, 13]) == []
    assert cached_blocks(cache, [20, 21, 22, 23]) == []
