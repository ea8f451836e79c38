"""Who is in the next step, and how far each gets: budget, age, chunks, and the request's own limit."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from quiesce.engine.batch_state import BatchState
from quiesce.engine.scheduler import StepPlan, blocks_to_begin, blocks_wanted, plan_step


@dataclass
class Row:
    """One running row, as the host knows it."""

    key: int
    tokens: int
    scheduled: int = 0
    pending: int = 0
    limit: int = 100
    blocks: int = 25
    running: bool = True

    @property
    def known(self) -> int:
        return self.tokens + self.pending

    @property
    def todo(self) -> int:
        return max(min(self.known, self.limit - 1) - self.scheduled, 0) if self.running else 0


def decode(key: int, tokens: int = 10) -> Row:
    return Row(key, tokens, scheduled=tokens - 1)


def batch_of(*rows: Row) -> BatchState:
    batch = BatchState(max(len(rows), 1), 100, 4)
    for number, row in enumerate(rows):
        batch.key[number], batch.running[number] = row.key, row.running
        batch.num_tokens[number], batch.num_scheduled[number] = row.tokens, row.scheduled
        batch.num_pending[number], batch.limit[number], batch.num_blocks[number] = row.pending, row.limit, row.blocks
    return batch


def told(plan: StepPlan) -> list[tuple[int, int, int, bool]]:
    """(row, start, count, samples) of each."""
    return list(zip(plan.rows.tolist(), plan.starts.tolist(), plan.counts.tolist(), plan.samples.tolist(), strict=True))


def test_nobody_runs_nobody_is_planned() -> None:
    assert told(plan_step(batch_of(), 16, True)) == []
    assert told(plan_step(batch_of(Row(1, 5, running=False)), 16, True)) == []


def test_a_prompt_that_fits_is_computed_whole_and_samples() -> None:
    assert told(plan_step(batch_of(Row(1, 7)), 16, True)) == [(0, 0, 7, True)]


def test_a_prompt_that_does_not_fit_is_split_and_samples_only_at_its_end() -> None:
    batch = batch_of(Row(1, 20))
    assert told(plan_step(batch, 16, True)) == [(0, 0, 16, False)]
    batch.num_scheduled[0] = 16
    assert told(plan_step(batch, 16, True)) == [(0, 16, 4, True)]


def test_decode_tokens_go_first_by_age_then_prompts_by_age() -> None:
    batch = batch_of(Row(2, 9), decode(4), Row(1, 9), decode(3))
    assert told(plan_step(batch, 14, True)) == [(3, 9, 1, True), (1, 9, 1, True), (2, 0, 9, True), (0, 0, 3, False)]


def test_a_prompt_of_two_tokens_goes_behind_the_decodes_too() -> None:
    assert told(plan_step(batch_of(Row(1, 2), decode(2)), 16, True)) == [(1, 9, 1, True), (0, 0, 2, True)]


def test_a_token_still_on_the_device_is_planned_behind_the_known_ones() -> None:
    assert told(plan_step(batch_of(Row(1, 10, scheduled=10, pending=1)), 16, True)) == [(0, 10, 1, True)]


def test_who_waits_for_a_token_it_has_not_sampled_is_left_out() -> None:
    assert told(plan_step(batch_of(Row(1, 10, scheduled=10)), 16, True)) == []


def test_who_needs_every_token_before_the_next_waits_for_the_one_on_its_way() -> None:
    batch = batch_of(Row(1, 10, scheduled=10, pending=1), decode(2))
    batch.alone[0], batch.num_alone = True, 1
    assert told(plan_step(batch, 16, True)) == [(1, 9, 1, True)]
    batch.num_tokens[0], batch.num_pending[0] = 11, 0
    assert told(plan_step(batch, 16, True)) == [(0, 10, 1, True), (1, 9, 1, True)]


def test_the_last_token_a_request_may_have_is_sampled_and_never_computed() -> None:
    batch = batch_of(Row(1, 99, scheduled=98, limit=100))
    assert told(plan_step(batch, 16, True)) == [(0, 98, 1, True)]
    batch.num_scheduled[0], batch.num_pending[0] = 99, 1
    assert told(plan_step(batch, 16, True)) == [], "position 99 would be past limit - 1"


def test_unchunked_prompts_keep_the_order_of_age_even_before_decodes() -> None:
    batch = batch_of(decode(3), Row(1, 9), Row(2, 9))
    assert told(plan_step(batch, 20, False)) == [(1, 0, 9, True), (2, 0, 9, True), (0, 9, 1, True)]


def test_unchunked_a_prompt_that_does_not_fit_waits_and_nobody_younger_passes_it() -> None:
    batch = batch_of(Row(1, 9), Row(2, 9), Row(3, 2))
    assert told(plan_step(batch, 12, False)) == [(0, 0, 9, True)]


def test_unchunked_a_prompt_that_takes_the_whole_budget_is_computed() -> None:
    assert told(plan_step(batch_of(Row(1, 9), Row(2, 3)), 12, False)) == [(0, 0, 9, True), (1, 0, 3, True)]


def test_a_batch_is_steady_where_everybody_computes_one_token_and_samples_the_next() -> None:
    steady = plan_step(batch_of(decode(1), Row(2, 1)), 16, True)
    assert (told(steady), steady.steady) == ([(0, 9, 1, True), (1, 0, 1, True)], True)
    assert not steady.counts.flags.writeable, "all steady steps share it"
    assert not plan_step(batch_of(decode(1), Row(2, 5)), 16, True).steady
    at_its_limit = Row(2, 10, scheduled=8, limit=10)
    assert not plan_step(batch_of(decode(1), at_its_limit), 16, True).steady, "it samples nothing"
    pairs = plan_step(batch_of(Row(1, 2), Row(2, 2)), 16, True)
    assert (told(pairs), pairs.steady) == ([(0, 0, 2, True), (1, 0, 2, True)], False)


def test_a_plan_without_some_rows_keeps_the_others_as_they_were() -> None:
    plan = plan_step(batch_of(decode(1), Row(2, 5), decode(3)), 16, True)
    assert told(plan.without(np.array([2], np.int32))) == [(0, 9, 1, True), (1, 0, 5, True)]
    assert told(plan.without(np.array([], np.int32))) == told(plan)
    assert told(plan.without(plan.rows)) == []


@pytest.mark.parametrize(("known", "blocks", "wanted"), [(4, 1, 0), (5, 1, 1), (8, 2, 0), (9, 1, 2), (9, 3, 0)], ids=str)
def test_a_row_wants_the_blocks_its_last_position_needs_and_gives_none_back(known: int, blocks: int, wanted: int) -> None:
    batch = batch_of(Row(1, known, blocks=blocks))
    assert blocks_wanted(batch, plan_step(batch, 16, True)).tolist() == [wanted]


@pytest.mark.parametrize(("tokens", "cached", "blocks"), [(1, 0, 1), (3, 0, 1), (4, 0, 2), (7, 4, 1), (9, 8, 1)], ids=str)
def test_to_begin_takes_blocks_for_all_tokens_and_the_next_one_less_the_cached(tokens: int, cached: int, blocks: int) -> None:
    assert blocks_to_begin(tokens, cached, 4) == blocks


def random_rows(chance: random.Random) -> list[Row]:
    rows = []
    for key in chance.sample(range(1, 100), chance.randint(1, 12)):
        tokens = chance.randint(1, 98)
        limit = chance.randint(tokens + 1, 100)
        kind = chance.choice(("prompt", "decode", "in flight", "over"))
        scheduled = {"prompt": chance.randint(0, tokens - 1), "decode": tokens - 1, "in flight": tokens, "over": 0}[kind]
        rows.append(Row(key, tokens, scheduled, int(kind == "in flight"), limit, running=kind != "over"))
    return rows


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_any_batch_keeps_the_budget_includes_the_oldest_and_stays_below_every_limit(seed: int, chunked: bool) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        rows = random_rows(chance)
        budget = chance.randint(12, 40) if chunked else 100
        plan = told(plan_step(batch_of(*rows), budget, chunked))
        work = [number for number, row in enumerate(rows) if row.todo]
        assert sum(count for _, _, count, _ in plan) <= budget
        assert bool(plan) == bool(work)
        if work:
            assert min(work, key=lambda number: rows[number].key) in {number for number, *_ in plan}
        for number, start, count, samples in plan:
            row = rows[number]
            assert row.running
            assert start == row.scheduled
            assert 1 <= count <= row.todo
            assert start + count <= row.limit - 1
            assert samples == (start + count == row.known)
        if chunked:
            left = budget - sum(count for _, _, count, _ in plan)
            served = {number: count for number, _, count, _ in plan}
            assert left == 0 or all(served[number] == rows[number].todo for number in work), "no budget is left lying"
