"""Whatever a client sends, it is told what was wrong, nobody else notices, and nothing is left of it.

Each scenario runs on the real engine over the ledger device; `run` checks afterwards that no block, request, stream or call is left.
"""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder
from quiesce.stateful.driver import VOCAB_SIZE, assert_nothing_left
from quiesce.stateful.scenario import Client, World, prompt_of, run

BAD_PROMPTS: dict[str, tuple[Any, str]] = {
    "empty": ([], "is empty"),
    "empty mapping value": ({"prompt_token_ids": []}, "is empty"),
    "no room for an answer": ([5] * 64, "64 tokens leave no room in a context of 64"),
    "far too long": ([5] * 5000, "5000 tokens leave no room"),
    "an id above the vocabulary": ([5, VOCAB_SIZE], f"token id {VOCAB_SIZE} is outside the vocabulary of {VOCAB_SIZE}"),
    "an id that overflows": ([5, 2**63], "outside the vocabulary"),
    "a negative id": ([-1, 5], "token id -1"),
    "text without a tokenizer": ("hello", "no tokenizer"),
    "a number": (5, "must be text or token ids, not int"),
    "nothing": (None, "not NoneType"),
    "bytes": (b"\x05\x06", "not bytes"),
    "floats": ([5.0, 6.0], "token ids must be integers"),
    "booleans": ([True, False], "token ids must be integers"),
    "strings": (["5"], "token ids must be integers"),
    "lists": ([[5, 6]], "token ids must be integers"),
    "a set": ({5, 6}, "not set"),
    "a wrong key": ({"prompt": [5]}, "must have the key 'prompt_token_ids' alone"),
    "a key too many": ({"prompt_token_ids": [5], 7: 1}, "alone"),
    "a key without a value": ({"prompt_token_ids": None}, "not NoneType"),
}
BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown session": ({"session_id": "s1"}, "session_id"),
    "an empty request id": ({"request_id": ""}, "request_id"),
    "a request id that is no string": ({"request_id": 7}, "request_id"),
    "a priority that is no integer": ({"priority": 1.5}, "priority"),
    "a priority that is a flag": ({"priority": True}, "priority"),
    "parameters of another type": ({"sampling_params": {"temperature": 0}}, "sampling_params"),
}
BAD_PARAMETERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": math.nan},
    "max_tokens": {"max_tokens": -1},
    "top_p": {"top_p": 2},
    "nonsense": {"nonsense": 1},
}


async def drain(engine: AsyncEngine, prompt: Any, **options: Any) -> None:
    async for _ in engine.generate(prompt, **options):
        pass


async def is_untouched(world: World, accepted: int = 0) -> None:
    """Nothing was accepted of what went before, and the next request is served right."""
    status = world.engine.status()
    assert (status.engine, status.accepted, status.live, status.streams) == ("running", accepted, 0, 0)
    assert_nothing_left(world.engine)
    client = await world.ask(Client("next", prompt_of(1, 9), 5))
    assert (client.tokens, client.finish_reason) == (client.truth, "length")


@pytest.mark.parametrize(("prompt", "complaint"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_bad_prompt_is_refused_on_the_first_iteration(ledger_folder: Path, prompt: Any, complaint: str) -> None:
    async def body(world: World) -> None:
        stream = world.engine.generate(prompt, SamplingParams(max_tokens=3), request_id="bad")
        with pytest.raises(InvalidRequest, match=complaint) as refusal:
            await anext(stream)
        assert refusal.value.field == "prompt"
        await is_untouched(world)

    run(ledger_folder, body)


@pytest.mark.parametrize(("options", "field"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_is_refused_by_name(ledger_folder: Path, options: dict[str, Any], field: str) -> None:
    async def body(world: World) -> None:
        with pytest.raises(InvalidRequest, match=f"^{field}: "):
            await drain(world.engine, [5, 6], **options)
        await is_untouched(world)

    run(ledger_folder, body)


@pytest.mark.parametrize(("name", "parameters"), BAD_PARAMETERS.items(), ids=BAD_PARAMETERS)
def test_a_bad_parameter_never_reaches_the_engine(ledger_folder: Path, name: str, parameters: dict[str, Any]) -> None:
    async def body(world: World) -> None:
        with pytest.raises(InvalidRequest, match=f"^{name}: "):
            await drain(world.engine, [5, 6], sampling_params=SamplingParams.of(**parameters))
        await is_untouched(world)

    run(ledger_folder, body)


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 2**31},
        {"temperature": 1e39},
        {"stop_token_ids": [2**63]},
    ],
    ids=["top_k", "temperature", "stop_token_ids"],
)
def test_a_number_too_large_for_the_batch_does_not_fail_the_engine(ledger_folder: Path, parameters: dict[str, Any]) -> None:
    async def body(world: World) -> None:
        with pytest.raises(InvalidRequest):
            await drain(world.engine, [5, 6], sampling_params=SamplingParams.of(**parameters))
        await is_untouched(world)

    run(ledger_folder, body)


def test_a_context_one_token_short_of_the_limit_gets_that_one_token(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        client = await world.ask(Client("r", prompt_of(0, 63), 10))
        assert (client.tokens, client.finish_reason) == (client.truth[:1], "length")

    run(ledger_folder, body)


def test_a_live_id_is_a_duplicate_and_the_first_goes_on_untouched(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 2")
        first = Client("r", prompt_of(0, 5), 8)
        task = asyncio.create_task(world.ask(first))
        await world.loop.wait_settled()
        with pytest.raises(errors.DuplicateRequest) as refusal:
            await world.ask(Client("r", prompt_of(1, 5), 8))
        assert refusal.value.request_id == "r"
        assert world.engine.request_ids() == ("r",)
        world.loop.release("step 2")
        await task
        assert (first.tokens, first.finish_reason) == (first.truth, "length")
        first.assert_history_is_legal()
        assert world.engine.status().accepted == 1

    run(ledger_folder, body)


def test_two_calls_with_one_id_at_once_are_one_request_and_one_duplicate(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = [Client("r", prompt_of(number, 5), 4) for number in range(2)]
        found = await asyncio.gather(*map(world.ask, clients), return_exceptions=True)
        assert sum(isinstance(one, errors.DuplicateRequest) for one in found) == 1
        (served,) = [one for one in found if isinstance(one, Client)]
        assert served.tokens == served.truth

    run(ledger_folder, body)


def test_an_id_is_free_again_as_soon_as_its_terminal_is_delivered_though_its_blocks_still_wait(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        first = asyncio.create_task(world.ask(Client("r", prompt_of(0, 5), 8)))
        await world.loop.wait_settled()
        await world.engine.abort("r")
        assert (await first).finish_reason == "abort"
        assert world.engine.status().requests == {"draining": 1}
        second = asyncio.create_task(world.ask(Client("r", prompt_of(1, 7), 6)))
        await world.loop.wait_settled()
        world.loop.release("step 1")
        again = await second
        assert (again.tokens, again.finish_reason) == (again.truth, "length"), "no token of its namesake"

    run(ledger_folder, body)


def test_a_made_up_id_never_meets_one_that_a_client_chose(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        chosen = asyncio.create_task(world.ask(Client("request-0", prompt_of(0, 5), 3)))
        await world.loop.wait_settled()
        made_up = asyncio.create_task(drain(world.engine, [5, 6]))
        await world.loop.wait_settled()
        assert world.engine.request_ids() == ("request-0", "request-1")
        world.loop.release("step 1")
        await asyncio.gather(chosen, made_up)

    run(ledger_folder, body)


@pytest.mark.parametrize("names", [[], (), "", [""], [5], ["r", ""], ["r", None]], ids=repr)
def test_an_abort_that_names_nothing_is_refused_and_aborts_nobody(ledger_folder: Path, names: Any) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        client = Client("r", prompt_of(0, 5), 3)
        task = asyncio.create_task(world.ask(client))
        await world.loop.wait_settled()
        with pytest.raises(InvalidRequest, match=r"^request_ids: "):
            await world.engine.abort(names)
        world.loop.release("step 1")
        await task
        assert client.finish_reason == "length"

    run(ledger_folder, body)


@pytest.mark.parametrize("names", [5, None, [["r"]]], ids=repr)
def test_an_abort_of_something_that_holds_no_ids_is_an_invalid_request(ledger_folder: Path, names: Any) -> None:
    async def body(world: World) -> None:
        with pytest.raises(InvalidRequest):
            await world.engine.abort(names)

    run(ledger_folder, body)


def test_an_abort_tells_who_was_live_once_each_and_matches_no_prefix(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        clients = [Client(name, prompt_of(0, 5), 5) for name in ("job-1", "job-10")]
        tasks = [asyncio.create_task(world.ask(client)) for client in clients]
        await world.loop.wait_settled()
        result = await world.engine.abort(["job-1", "job", "job-1", "job-11"])
        assert (result.aborted, result.not_found) == (("job-1",), ("job", "job-11"))
        assert (await world.engine.abort("job-1")).not_found == ("job-1",)
        world.loop.release("step 1")
        await asyncio.gather(*tasks)
        assert [client.finish_reason for client in clients] == ["abort", "length"]

    run(ledger_folder, body)


def test_aborting_everybody_when_nobody_is_there_is_nothing(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        result = await world.engine.abort_all()
        assert (result.aborted, result.not_found) == ((), ())

    run(ledger_folder, body)


@pytest.mark.parametrize("timeout", [-1, -0.1, math.nan, "5", True], ids=repr)
def test_a_bad_timeout_is_refused_and_the_engine_goes_on(ledger_folder: Path, timeout: Any) -> None:
    async def body(world: World) -> None:
        with pytest.raises(InvalidRequest, match=r"^timeout: "):
            await world.engine.shutdown(timeout)
        await is_untouched(world)

    run(ledger_folder, body)


def test_a_timeout_that_no_float_holds_is_refused_and_leaves_no_call(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        with pytest.raises(InvalidRequest, match=r"^timeout: "):
            await world.engine.shutdown(10**400)
        assert world.engine._front.calls == {}

    run(ledger_folder, body)


def test_beyond_the_queue_calls_are_refused_and_the_others_are_served(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        clients = [Client(f"r{number}", prompt_of(number, 5), 4) for number in range(6)]
        tasks = []
        for client in clients:
            tasks.append(asyncio.create_task(world.ask(client)))
            await world.loop.wait_settled()
        assert world.engine.status().rejected == 2
        world.loop.release("step 1")
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in found[4:]] == [errors.QueueFull, errors.QueueFull]
        for client in clients[:4]:
            assert (client.tokens, client.finish_reason) == (client.truth, "length")
        late = await world.ask(Client("r5", prompt_of(0, 5), 4))
        assert late.tokens == late.truth, "there is room again, and the refused id is free"

    run(ledger_folder, body, max_num_seqs=1, max_queue=3)


def test_a_burst_beyond_the_inbox_is_refused_before_the_core_looks(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = [Client(f"r{number}", prompt_of(number, 5), 4) for number in range(5)]
        found = await asyncio.gather(*map(world.ask, clients), return_exceptions=True)
        assert [isinstance(one, errors.QueueFull) for one in found] == [False, False, False, True, True]
        status = world.engine.status()
        assert (status.accepted, status.rejected) == (3, 2)

    run(ledger_folder, body, max_queue=3)


def test_every_refusal_counts_as_rejected_and_none_as_accepted(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        for prompt, _ in BAD_PROMPTS.values():
            with pytest.raises(InvalidRequest):
                await drain(world.engine, prompt)
        status = world.engine.status()
        assert (status.rejected, status.accepted, status.balanced) == (len(BAD_PROMPTS), 0, True)

    run(ledger_folder, body)


def test_many_aborted_waiters_leave_no_trace_in_the_waiting_queue(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        busy = asyncio.create_task(world.ask(Client("busy", prompt_of(0, 5), 4)))
        await world.loop.wait_settled()
        for number in range(200):
            waiting = asyncio.create_task(world.ask(Client(f"w{number}", prompt_of(number, 5), 4)))
            await world.loop.wait_settled()
            await world.engine.abort(f"w{number}")
            await waiting
        kept = len(world.engine._core.pipeline._waiting)
        world.loop.release("step 1")
        await busy
        assert kept < 100

    run(ledger_folder, body, max_num_seqs=1)


# ---- checkpoints --------------------------------------------------------------------------------------------------------------


def copy_of_tiny(folder: Path) -> Path:
    folder.mkdir()
    for file in checkpoint_folder().iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def refused_checkpoint(folder: Path) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        AsyncEngine(EngineConfig(model=str(folder), num_threads=1, num_kv_blocks=200))
    assert str(folder) in str(refusal.value)
    return str(refusal.value)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    refused_checkpoint(tmp_path / "nowhere")
    folder = copy_of_tiny(tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refused_checkpoint(folder)


def test_a_truncated_tensor_file_is_named(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "copy")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refused_checkpoint(folder)


def test_a_tensor_of_a_wrong_shape_is_named_with_its_file(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    message = refused_checkpoint(folder)
    assert "model.safetensors" in message
    assert "mlp" in message
