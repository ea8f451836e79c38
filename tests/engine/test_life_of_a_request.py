"""The declared life of a request on the real core, block pool and streams, over the ledger device."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.choices import POS, RandomWalk, Strategy
from quiesce.stateful.driver import VOCAB_SIZE
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.scenario import Client, World, prompt_of, run


def clients(count: int) -> list[Client]:
    return [Client(f"r{number}", prompt_of(number, 3 + 4 * number), 5 + 2 * number) for number in range(count)]


async def everybody_gets_the_truth(world: World, count: int = 8) -> None:
    asked = clients(count)
    await world.ask_all(asked)
    for client in asked:
        client.assert_history_is_legal()
        assert client.tokens == client.truth
        assert client.finish_reason == "length"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"overlap": False},
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 4},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 64},
        {"num_kv_blocks": 16},
        {"num_kv_blocks": 16, "overlap": False},
        {"max_num_seqs": 1, "max_num_batched_tokens": 7},
        {"block_size": 1, "num_kv_blocks": 70},
        {"block_size": 64, "num_kv_blocks": 3},
    ],
    ids=str,
)
def test_tokens_are_the_truth_whatever_the_engine_does_around_a_request(ledger_folder: Path, config: dict[str, Any]) -> None:
    run(ledger_folder, everybody_gets_the_truth, **config)


@pytest.mark.parametrize(
    "strategy", [RandomWalk(1), RandomWalk(2), POS(3), POS(4)], ids=["random-1", "random-2", "pos-3", "pos-4"]
)
def test_tokens_are_the_truth_under_any_schedule(ledger_folder: Path, strategy: Strategy) -> None:
    run(ledger_folder, everybody_gets_the_truth, strategy, num_kv_blocks=16)


def test_short_memory_preempts_the_youngest_and_nobody_notices(ledger_folder: Path) -> None:
    preempted: list[str] = []

    async def body(world: World) -> None:
        asked = [Client(f"r{number}", prompt_of(number, 14), 30) for number in range(4)]
        await world.ask_all(asked)
        for client in asked:
            client.assert_history_is_legal()
            assert client.tokens == client.truth
        preempted.extend(entry["id"] for entry in world.engine._core.trace.entries if entry.get("event") == "preempt")

    run(ledger_folder, body, num_kv_blocks=20, enable_prefix_caching=False)
    assert preempted, "the pool was meant to be too small"
    assert "r0" not in preempted, "the oldest request is never preempted (R23)"


def test_a_second_request_with_the_same_prompt_computes_only_what_is_new(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        first = await world.ask(Client("first", prompt_of(1, 21), 3))
        second = await world.ask(Client("second", prompt_of(1, 21), 3))
        assert first.tokens == second.tokens == second.truth
        assert first.outputs[-1].num_cached_tokens == 0
        assert second.outputs[-1].num_cached_tokens == 20, "five full blocks of four; the last token is computed anew"

    run(ledger_folder, body)


def test_two_steps_are_in_flight_at_once(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        asked = asyncio.create_task(world.ask(Client("r", prompt_of(0, 4), 8)))
        await world.loop.wait_settled()
        assert world.engine.status().steps_in_flight == 2
        assert [step.step for step in world.device.launched] == [1, 2]
        world.loop.release("step 1")
        client = await asked
        assert client.tokens == client.truth

    run(ledger_folder, body)


def test_an_abort_while_only_the_newer_step_names_the_request_waits_for_that_step(ledger_folder: Path) -> None:
    """R15: blocks wait for the fence of both slots."""

    async def body(world: World) -> None:
        world.loop.hold("step 1")
        world.loop.hold("step 2")
        older = asyncio.create_task(world.ask(Client("older", prompt_of(0, 16), 4)))  # takes the whole budget of step 1
        await world.loop.wait_settled()
        newer = asyncio.create_task(world.ask(Client("newer", prompt_of(1, 5), 4)))
        await world.loop.wait_settled()
        world.loop.release("step 1")
        await world.loop.wait_settled()
        assert {step.step for step in world.device.launched} == {2, 3}
        result = await world.engine.abort("newer")
        assert result.aborted == ("newer",)
        client = await newer
        assert client.finish_reason == "abort"
        assert client.tokens == []
        status = world.engine.status()
        assert status.requests.get("draining") == 1, "answered, and its blocks wait"
        assert status.blocks.fenced > 0
        world.loop.release("step 2")
        done = await older
        assert done.tokens == done.truth

    run(ledger_folder, body)


def test_the_token_of_an_answered_request_is_dropped_and_its_blocks_wait_for_both_steps(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        asked = asyncio.create_task(world.ask(Client("r", prompt_of(0, 4), 8)))
        await world.loop.wait_settled()
        assert world.engine.status().steps_in_flight == 2
        await world.engine.abort("r")
        client = await asked
        assert (client.finish_reason, client.tokens) == ("abort", [])
        assert world.engine.status().blocks.fenced > 0
        assert world.engine.status().live == 0
        world.loop.release("step 1")
        await world.loop.wait_settled()
        assert world.engine.status().blocks.fenced == 0
        assert client.outputs[-1] is client.outputs[0], "nothing follows the terminal"

    run(ledger_folder, body)


def test_a_stop_token_ends_the_request_and_is_told(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        prompt = prompt_of(2, 6)
        truth = true_tokens(prompt, 10, VOCAB_SIZE)
        params = SamplingParams(max_tokens=10, temperature=0, stop_token_ids=[truth[4]])
        outputs = [output async for output in world.engine.generate(prompt, params)]
        assert list(outputs[-1].token_ids) == truth[:5]
        assert outputs[-1].finish_reason == "stop"
        assert outputs[-1].outputs[0].stop_reason == truth[4]

    run(ledger_folder, body)


def test_the_contexts_end_is_length(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        client = await world.ask(Client("r", prompt_of(0, 60), 100))
        assert client.tokens == true_tokens(client.prompt, 4, VOCAB_SIZE)
        assert client.finish_reason == "length"

    run(ledger_folder, body)


def test_lower_priority_is_admitted_first_and_ties_by_arrival(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        finished: list[str] = []

        async def one(name: str, priority: int) -> None:
            await world.ask(Client(name, prompt_of(len(name), 6), 4), priority=priority)
            finished.append(name)

        world.loop.hold("step 1")
        tasks = [asyncio.create_task(one("first", 0))]
        await world.loop.wait_settled()
        tasks += [
            asyncio.create_task(one(name, priority)) for name, priority in (("late", 5), ("b", 1), ("bb", 1), ("urgent", -1))
        ]
        await world.loop.wait_settled()
        world.loop.release("step 1")
        await asyncio.gather(*tasks)
        assert finished == ["first", "urgent", "b", "bb", "late"]

    run(ledger_folder, body, max_num_seqs=1, max_num_batched_tokens=16)


def test_delta_and_final_outputs_say_the_same_as_cumulative_ones(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        prompt = prompt_of(3, 9)
        truth = true_tokens(prompt, 7, VOCAB_SIZE)
        delta = SamplingParams(max_tokens=7, temperature=0, ignore_eos=True, output_kind="delta")
        pieces = [output async for output in world.engine.generate(prompt, delta)]
        assert [token for piece in pieces for token in piece.token_ids] == truth
        spans = [piece.outputs[0].weight_versions for piece in pieces if piece.token_ids]
        assert spans[0][0][1] == 0
        assert spans[-1][-1] == (0, spans[-1][-1][1], 7)
        final = SamplingParams(max_tokens=7, temperature=0, ignore_eos=True, output_kind="final")
        (only,) = [output async for output in world.engine.generate(prompt, final)]
        assert list(only.token_ids) == truth
        assert only.outputs[0].weight_versions == ((0, 0, 7),)

    run(ledger_folder, body)


def test_a_slow_client_gets_one_merged_output(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        stream = world.engine.generate(prompt_of(1, 5), SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
        first = await anext(stream)
        await world.loop.wait_settled()  # the engine runs to the end meanwhile
        rest = [output async for output in stream]
        assert len(rest) == 1, "everything that happened meanwhile came as one output"
        assert rest[0].finished
        assert list(rest[0].token_ids) == true_tokens(prompt_of(1, 5), 12, VOCAB_SIZE)
        assert rest[0].token_ids[: len(first.token_ids)] == first.token_ids

    run(ledger_folder, body)


def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch_and_an_unseeded_request_reports_its_seed(
    ledger_folder: Path,
) -> None:
    async def sampled(world: World, seed: int | None) -> tuple[tuple[int, ...], int | None]:
        params = SamplingParams(max_tokens=6, seed=seed, ignore_eos=True)
        outputs = [output async for output in world.engine.generate(prompt_of(4, 6), params)]
        return outputs[-1].token_ids, outputs[-1].seed

    async def body(world: World) -> None:
        alone = await sampled(world, 11)
        together = await asyncio.gather(sampled(world, 11), sampled(world, 12), sampled(world, None), sampled(world, 11))
        assert together[0] == together[3] == alone
        assert together[1][0] != alone[0]
        again = await sampled(world, together[2][1])
        assert again == together[2], "the seed that was drawn and reported gives the same tokens again"

    run(ledger_folder, body)


def test_status_balances_at_every_snapshot_and_is_published_before_the_answers(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        seen = []
        core = world.engine._core
        deliver = core.deliver

        def look(answers: object) -> None:
            status = core.status
            assert status.balanced, status
            seen.append(status)
            deliver(answers)  # type: ignore[arg-type]

        core.deliver = look
        await everybody_gets_the_truth(world)
        assert len(seen) > 10

    run(ledger_folder, body, num_kv_blocks=16)
