"""A batch that is gathered once gives what a batch gathered in every step gives: same tokens, ends, blocks, steps and status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import cohort
from quiesce.engine.api import AsyncEngine
from quiesce.engine.cohort import Cohort
from quiesce.engine.messages import StepInput, StepOutput
from quiesce.engine.noise import noise_key
from quiesce.engine.pipeline import Pipeline
from quiesce.stateful.driver import VOCAB_SIZE
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.scenario import prompt_of
from tests.engine.cohort_paths import Teller, both_ways, play, truth

EACH_DEPTH = pytest.mark.parametrize("overlap", [True, False], ids=["two steps in flight", "one step in flight"])
ROOM = 64
"""Blocks that four rows of the longest request need."""


async def ask_four(teller: Teller, lengths: tuple[int, ...] = (3, 4, 5, 6), max_tokens: int = 24, **params: Any) -> None:
    tasks = [
        teller.begin(f"r{number}", prompt_of(number, length), max_tokens, **params) for number, length in enumerate(lengths)
    ]
    await asyncio.gather(*tasks)


@EACH_DEPTH
@pytest.mark.parametrize("block_size", [1, 2, 4, 16])
def test_rows_that_start_a_block_in_different_steps(ledger_folder: Path, overlap: bool, block_size: int) -> None:
    played = both_ways(ledger_folder, ask_four, overlap=overlap, block_size=block_size, num_kv_blocks=4 * 64 // block_size)
    for number, length in enumerate((3, 4, 5, 6)):
        assert played.tokens(f"r{number}") == truth(prompt_of(number, length), 24)
    assert played.landed > 15, "nearly all steps are those of a cohort"


@EACH_DEPTH
def test_blocks_run_short_inside_a_cohort(ledger_folder: Path, overlap: bool) -> None:
    async def story(teller: Teller) -> None:
        await ask_four(teller, (14, 14, 14, 14), 30)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=20, enable_prefix_caching=False)
    assert played.preempted
    if overlap:
        assert any(inside for _, inside in played.preempted)
    for number in range(4):
        assert played.tokens(f"r{number}") == truth(prompt_of(number, 14), 30)


@pytest.mark.parametrize("refused", range(8, 24))
def test_a_cohort_that_no_room_can_be_made_for_is_given_up_with_its_counts(
    ledger_folder: Path, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while blocks are on their way home already: nobody is preempted, the batch's version stands, the rows that lack wait."""

    async def story(teller: Teller) -> None:
        pool = teller.core.pool
        tasks = [teller.begin(f"r{number}", prompt_of(number, 3 + number), 30) for number in range(4)]
        await teller.until_step(refused)
        hostages = pool.allocate(pool.num_available)
        teller.go_on(refused)
        await teller.until_step(refused + 2)
        await teller.until_step(refused + 3)
        teller.go_on(refused + 2)
        await teller.loop.wait_settled()
        pool._holders[hostages] = pool._running_holders[hostages] = 0
        pool._num_used -= len(hostages)
        pool._free = sorted([*pool._free, *hostages])
        teller.go_on(refused + 3)
        await asyncio.gather(*tasks)

    monkeypatch.setattr(Pipeline, "_make_room", lambda pipeline: False)
    plain = play(ledger_folder, story, False, num_kv_blocks=ROOM, enable_prefix_caching=False)
    quick = play(ledger_folder, story, True, num_kv_blocks=ROOM, enable_prefix_caching=False)
    assert quick.landed
    for number in range(4):
        wanted = truth(prompt_of(number, 3 + number), 30)
        assert quick.tokens(f"r{number}") == plain.tokens(f"r{number}") == wanted


@EACH_DEPTH
@pytest.mark.parametrize("few", [64, 0], ids=["by set", "by array"])
@pytest.mark.parametrize("shared", [True, False], ids=["one stop for all", "a stop of one"])
def test_a_stop_id_is_sampled_inside_a_cohort(
    ledger_folder: Path, overlap: bool, few: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "FEW", few)
    prompts = [prompt_of(number, 3 + number) for number in range(4)]
    stop = truth(prompts[2], 24)[11]

    async def story(teller: Teller) -> None:
        tasks = [
            teller.begin(f"r{number}", prompt, 24, stop_token_ids=[stop, 1] if number == 2 else [stop] if shared else [number])
            for number, prompt in enumerate(prompts)
        ]
        await asyncio.gather(*tasks)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    last = played.outputs["r2"][-1].outputs[0]
    assert (last.finish_reason, last.stop_reason, len(last.token_ids)) == ("stop", stop, 12)
    for number in (0, 1, 3):
        whole = truth(prompts[number], 24)
        assert stop not in whole
        assert played.tokens(f"r{number}") == whole


@EACH_DEPTH
def test_one_set_of_stops_for_all_is_looked_for(ledger_folder: Path, overlap: bool) -> None:
    stop = truth(prompt_of(1, 4), 24)[9]

    async def story(teller: Teller) -> None:
        await ask_four(teller, stop_token_ids=[stop])

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert played.outputs["r1"][-1].finish_reason == "stop"
    assert len(played.tokens("r1")) == 10


@EACH_DEPTH
@pytest.mark.parametrize("max_tokens", range(4, 12))
def test_one_row_reaches_its_limit(ledger_folder: Path, overlap: bool, max_tokens: int) -> None:
    async def story(teller: Teller) -> None:
        await asyncio.gather(
            teller.begin("short", prompt_of(0, 5), max_tokens),
            teller.begin("long", prompt_of(1, 3), 24),
            teller.begin("to the context's end", prompt_of(2, 30), 1000),
        )

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert played.tokens("short") == truth(prompt_of(0, 5), max_tokens)
    assert played.tokens("long") == truth(prompt_of(1, 3), 24)
    assert played.tokens("to the context's end") == truth(prompt_of(2, 30), 34)


@EACH_DEPTH
@pytest.mark.parametrize("number", [9, 10, 11, 12])
def test_an_abort_inside_a_cohort(ledger_folder: Path, overlap: bool, number: int) -> None:
    async def story(teller: Teller) -> None:
        asked = asyncio.create_task(ask_four(teller))
        await teller.until_step(number)
        assert (await teller.engine.abort("r1")).aborted == ("r1",)
        await teller.loop.wait_settled()
        teller.go_on(number)
        await asked

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert number in played.launched
    assert played.outputs["r1"][-1].finish_reason == "abort"
    assert played.tokens("r1") == truth(prompt_of(1, 4), 24)[: len(played.tokens("r1"))]
    assert played.tokens("r3") == truth(prompt_of(3, 6), 24)


@EACH_DEPTH
@pytest.mark.parametrize("number", [8, 9, 10])
def test_somebody_joins_a_cohort(ledger_folder: Path, overlap: bool, number: int) -> None:
    async def story(teller: Teller) -> None:
        asked = asyncio.create_task(ask_four(teller, (3, 4, 5)))
        await teller.until_step(number)
        late = teller.begin("late", prompt_of(7, 9), 12)
        await teller.loop.wait_settled()
        teller.go_on(number)
        await asyncio.gather(asked, late)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert {number, max(played.launched)} <= set(played.launched), "there was a cohort before, and one after"
    assert max(played.launched) > number + 4
    assert played.tokens("late") == truth(prompt_of(7, 9), 12)
    assert played.tokens("r0") == truth(prompt_of(0, 3), 24)


@EACH_DEPTH
@pytest.mark.parametrize("row", range(4))
def test_a_device_fault_of_one_row(ledger_folder: Path, overlap: bool, row: int) -> None:
    async def story(teller: Teller) -> None:
        teller.device.fault_at.add((11, row))
        await ask_four(teller)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert 11 in played.launched
    ends = [played.outputs[f"r{number}"][-1].finish_reason for number in range(4)]
    assert ends == ["error" if number == row else "length" for number in range(4)]


@EACH_DEPTH
@pytest.mark.parametrize("few", [64, 0], ids=["by set", "by array"])
def test_a_row_that_is_given_no_token(ledger_folder: Path, overlap: bool, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "FEW", few)

    async def story(teller: Teller) -> None:
        run_step = teller.device._run

        def forgets(step: StepInput) -> StepOutput:
            output = run_step(step)
            if step.step == 11:
                output.token_ids[1] = -1
            return output

        teller.device._run = forgets  # type: ignore[method-assign]
        await ask_four(teller)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert 11 in played.launched
    assert "no token" in (played.outputs["r1"][-1].error or "")
    assert played.tokens("r0") == truth(prompt_of(0, 3), 24)


@EACH_DEPTH
def test_children_of_one_request(ledger_folder: Path, overlap: bool) -> None:
    async def story(teller: Teller) -> None:
        await teller.ask("r", prompt_of(5, 9), 14, n=3, seed=4, temperature=1.0)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    for child in range(3):
        assert played.tokens("r", child) == true_tokens(prompt_of(5, 9), 14, VOCAB_SIZE, noise_key(4, child))


@EACH_DEPTH
@pytest.mark.parametrize("length", [4, 5, 6, 7])
def test_blocks_that_a_cohort_filled_are_found_by_a_later_request(ledger_folder: Path, overlap: bool, length: int) -> None:
    async def story(teller: Teller) -> None:
        await asyncio.gather(teller.begin("r", prompt_of(1, length), 20), teller.begin("other", prompt_of(2, 6), 18))
        again = prompt_of(1, length) + teller.played.tokens("r")
        await teller.ask("again", again, 4)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    computed = length + 20 - 1  # the last token is never computed
    assert played.outputs["again"][-1].num_cached_tokens == computed // 4 * 4
    again = prompt_of(1, length) + truth(prompt_of(1, length), 20)
    assert played.tokens("again") == truth(again, 4)


@EACH_DEPTH
def test_a_block_is_findable_while_the_cohort_that_filled_it_goes_on(ledger_folder: Path, overlap: bool) -> None:
    async def story(teller: Teller) -> None:
        first = teller.begin("first", prompt_of(1, 4), 30)
        await teller.until_step(16)
        known = prompt_of(1, 4) + truth(prompt_of(1, 4), 30)[:12]
        second = teller.begin("second", known, 3)
        await teller.loop.wait_settled()
        teller.go_on(16)
        await asyncio.gather(first, second)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert played.outputs["second"][-1].num_cached_tokens == 12


@EACH_DEPTH
@pytest.mark.parametrize("number", range(9, 14))
def test_a_shutdown_inside_a_cohort_brings_every_block_home(ledger_folder: Path, overlap: bool, number: int) -> None:
    """Also the block that a row was given ahead of its next step. (`run` looks for what is left.)"""

    async def story(teller: Teller) -> None:
        asked = asyncio.create_task(ask_four(teller, max_tokens=40))
        await teller.until_step(number)
        ending = asyncio.create_task(teller.engine.shutdown(timeout=0))
        await teller.loop.wait_settled()
        teller.go_on(number)
        await asyncio.gather(asked, ending)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert number in played.launched
    assert {outputs[-1].finish_reason for outputs in played.outputs.values()} == {"abort"}


async def keep_frozen(engine: AsyncEngine) -> None:
    await engine.pause(mode="keep")
    await engine.resume()


async def sleep_frozen(engine: AsyncEngine) -> None:
    await engine.sleep(mode="keep")
    await engine.wake_up()


async def clear(engine: AsyncEngine) -> None:
    await engine.reset_prefix_cache(reset_running_requests=True)


@EACH_DEPTH
@pytest.mark.parametrize("number", [9, 11])
@pytest.mark.parametrize("control", [keep_frozen, sleep_frozen, clear])
def test_an_operator_inside_a_cohort(
    ledger_folder: Path, control: Callable[[AsyncEngine], Coroutine[Any, Any, None]], overlap: bool, number: int
) -> None:
    async def story(teller: Teller) -> None:
        asked = asyncio.create_task(ask_four(teller))
        await teller.until_step(number)
        ruled = asyncio.create_task(control(teller.engine))
        await teller.loop.wait_settled()
        teller.go_on(number)
        await asyncio.gather(asked, ruled)

    played = both_ways(ledger_folder, story, overlap=overlap, num_kv_blocks=ROOM)
    assert number in played.launched
    assert max(played.launched) > number + 2, "there is a cohort afterwards, too"
    for row in range(4):
        assert played.tokens(f"r{row}") == truth(prompt_of(row, 3 + row), 24)


@pytest.mark.parametrize("changes", [{"min_tokens": 20}, {"logit_bias": {9: 0.0}}, {"presence_penalty": 0.5}], ids=str)
def test_rows_whose_steps_carry_more_than_arrays_are_no_cohort(ledger_folder: Path, changes: dict[str, Any]) -> None:
    async def story(teller: Teller) -> None:
        await asyncio.gather(teller.begin("r", prompt_of(0, 4), 24), teller.begin("adjusted", prompt_of(1, 5), 20, **changes))

    played = play(ledger_folder, story, True, num_kv_blocks=ROOM)
    assert all(number > 18 for number in played.launched), "only once the other has gone"
    assert played.tokens("r") == truth(prompt_of(0, 4), 24)


def test_a_batch_as_wide_as_the_set_is_worth_and_one_wider(ledger_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: set[bool] = set()
    ends_any = Cohort.ends_any

    def noted(self: Cohort, token_ids: Any) -> bool:
        kinds.add(len(token_ids) <= 3)
        return ends_any(self, token_ids)

    monkeypatch.setattr(Cohort, "ends_any", noted)
    monkeypatch.setattr(cohort, "FEW", 3)

    async def story(teller: Teller) -> None:
        await asyncio.gather(*(teller.begin(f"r{number}", prompt_of(number, 3), 10 + 5 * number) for number in range(4)))

    both_ways(ledger_folder, story, num_kv_blocks=ROOM)
    assert kinds == {True, False}


def test_what_a_landed_step_brought_is_written_before_anybody_comes_goes_or_is_answered(ledger_folder: Path) -> None:
    owed: list[str] = []

    async def story(teller: Teller) -> None:
        batch = teller.core.batch
        change = batch._change

        def noted() -> None:
            owed.append("owed" if batch._owed else "paid")
            change()
            assert not batch._owed

        batch._change = noted  # type: ignore[method-assign]
        tasks = [teller.begin(f"r{number}", prompt_of(number, 3), 40) for number in range(4)]
        await teller.until_step(12)
        aborted = asyncio.create_task(teller.engine.abort("r1"))
        teller.go_on(12)
        await asyncio.gather(aborted, *tasks)

    both_ways(ledger_folder, story, num_kv_blocks=ROOM)
    assert "owed" in owed
