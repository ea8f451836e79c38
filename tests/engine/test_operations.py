"""Control calls as operations: retries, callers that leave, what waits and what is refused, and the end of everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.stateful.operators import begun, facts, some_clients, streaming, weights_of
from quiesce.stateful.scenario import Client, World, prompt_of, run

HERE = {"weights": "resident", "kv_cache": "resident"}
Call = Callable[[AsyncEngine], Coroutine[Any, Any, Any]]


def test_a_retry_with_the_same_id_is_given_the_first_answer_during_and_after(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        calls = [await begun(world, engine.pause(mode="keep", operation_id="p1")) for _ in range(2)]
        assert not any(call.done() for call in calls)
        world.loop.release("step 4")
        first, second = [await call for call in calls]
        assert first == second
        await engine.resume()
        await asyncio.gather(*tasks)
        assert await engine.pause(mode="keep", operation_id="p1") == first, "nothing happens again"
        assert engine.status().engine == "running"
        with pytest.raises(errors.InvalidRequest, match="'p1' was a pause"):
            await engine.resume(operation_id="p1")

    run(ledger_folder, body)


def test_a_retry_of_a_call_that_failed_is_given_its_error(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        found = []
        for _ in range(2):
            with pytest.raises(errors.TransitionConflict) as caught:
                await engine.finish_weight_update(operation_id="f")
            found.append(caught.value)
        assert str(found[0]) == str(found[1])
        clients = some_clients(1)
        tasks = await streaming(world, *clients, step=4)
        for _ in range(2):
            with pytest.raises(errors.DeadlineExceeded):
                await engine.sleep(timeout=1, operation_id="s")
        assert not await engine.reset_prefix_cache(operation_id="r")
        world.loop.release("step 4")
        await asyncio.gather(*tasks)
        assert not await engine.reset_prefix_cache(operation_id="r"), "the first answer, although it could be done now"

    run(ledger_folder, body)


def test_a_caller_that_leaves_is_detached_and_the_operation_runs_to_its_end(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        calls = [await begun(world, engine.sleep(mode="keep", operation_id="s")) for _ in range(2)]
        (operation,) = engine._core.operations.by_key.values()
        calls[0].cancel()
        await world.loop.wait_settled()
        assert str(operation.caller) == "present", "the other one still waits"
        calls[1].cancel()
        await world.loop.wait_settled()
        assert (str(operation.caller), engine.status().operation) == ("gone", "sleep")
        world.loop.release("step 4")
        await world.loop.wait_settled()
        assert engine.status().engine == "sleeping"
        assert (await engine.sleep(operation_id="s")).state == "sleeping", "a retry learns what became of it"
        await engine.wake_up()
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_a_caller_cancelled_in_the_turn_of_its_call_still_gets_what_it_asked_for(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        call = asyncio.ensure_future(world.engine.pause())
        await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await world.loop.wait_settled()
        assert world.engine.status().engine == "paused"
        await world.engine.resume()

    run(ledger_folder, body)


ACTS_AT_ONCE: dict[str, Call] = {
    "resume": lambda engine: engine.resume(),
    "a stronger pause": lambda engine: engine.pause(mode="abort", timeout=0.5),
    "wake_up of all that was chosen": lambda engine: engine.wake_up(),
    "abort_weight_update": lambda engine: engine.abort_weight_update(),
    "shutdown": lambda engine: engine.shutdown(timeout=0.5),
}
DRAINING: dict[str, Call] = {
    "pause": lambda engine: engine.pause(mode="keep"),
    "sleep": lambda engine: engine.sleep(mode="keep"),
    "begin_weight_update": lambda engine: engine.begin_weight_update(mode="keep"),
    "reset_prefix_cache": lambda engine: engine.reset_prefix_cache(reset_running_requests=True),
}


@pytest.mark.parametrize("first", DRAINING)
@pytest.mark.parametrize("second", ACTS_AT_ONCE)
def test_what_acts_at_once_never_queues_behind_a_drain(ledger_folder: Path, first: str, second: str) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        draining = await begun(world, DRAINING[first](engine))
        acting = await begun(world, ACTS_AT_ONCE[second](engine))
        states = {str(operation.kind): str(operation.state) for operation in engine._core.operations.by_key.values()}
        assert "queued" not in states.values()
        world.loop.release("step 4")
        await asyncio.wait([draining, acting])
        error = draining.exception()
        if (first, second) in (("pause", "resume"), ("sleep", "wake_up of all that was chosen")):
            assert isinstance(error, errors.TransitionConflict)
        elif second == "shutdown" or (first, second) == ("begin_weight_update", "abort_weight_update"):
            assert isinstance(error, errors.TransitionConflict)
            assert error.superseded_by == second
        else:
            assert error is None
        if acting.exception() is not None:
            assert second == "abort_weight_update", "where nothing is open"
        await settle_down(world)
        await asyncio.gather(*tasks)
        for client in clients:
            client.assert_history_is_legal()

    run(ledger_folder, body)


async def settle_down(world: World) -> None:
    """Lets go of everything, whatever it was."""
    engine = world.engine
    if engine.status().engine == "stopped":
        return
    with contextlib.suppress(errors.TransitionConflict):
        await engine.abort_weight_update()
    for owner in engine.status().pause_owners:
        if owner not in ("sleep", "update", "clear"):
            await engine.resume(owner)
    await engine.wake_up()
    assert facts(world)[:3] == ("running", {}, HERE)


def test_queued_calls_act_in_the_order_in_which_they_were_made(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        names = ["sleep", "wake weights", "update", "wake all"]
        ended: list[str] = []

        async def noted(name: str, call: Awaitable[Any]) -> None:
            await call
            ended.append(name)

        calls = [
            engine.sleep(mode="keep"),
            engine.wake_up(["weights"]),
            engine.update_weights(weights_of(world)),
            engine.wake_up(),
        ]
        made = [await begun(world, noted(name, call)) for name, call in zip(names[:3], calls[:3], strict=True)]
        assert engine.status().operation == "sleep", "the one that drains, not one that waits"
        world.loop.release("step 4")
        await asyncio.gather(*made)
        await noted(names[3], calls[3])
        assert ended == names
        assert facts(world) == ("running", {}, HERE, (1, "stable"))
        await asyncio.gather(*tasks)

    run(ledger_folder, body)


def test_a_call_waits_for_those_before_it_and_never_for_calls_that_keep_coming_after_it(ledger_folder: Path) -> None:
    """The model's story, with three calls at a time: checksums that overlap kept a clear waiting that only a wake_up makes possible."""

    async def body(world: World) -> None:
        engine = world.engine
        await engine.sleep(tags=["kv_cache"])
        for number in (2, 4):
            world.loop.hold(f"checksum {number}")
        before = await begun(world, engine.weights_checksum())
        clearing = await begun(world, engine.reset_prefix_cache(reset_running_requests=True))
        after = await begun(world, engine.weights_checksum())
        assert not clearing.done()
        world.loop.release("checksum 2")
        await before
        with pytest.raises(errors.TransitionConflict, match="wake_up"):
            await clearing
        assert not after.done()
        world.loop.release("checksum 4")
        assert await after == await engine.weights_checksum()
        await engine.wake_up()

    run(ledger_folder, body)


def test_a_call_that_waits_its_turn_has_a_deadline_too(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        world.loop.hold("unmap weights")
        sleeping = await begun(world, engine.sleep())
        for call in (engine.wake_up(timeout=3), engine.wake_up(["kv_cache"], timeout=0)):
            with pytest.raises(errors.DeadlineExceeded, match="wake_up did not act"):
                await call
        assert engine.status().operation == "sleep"
        world.loop.release("unmap weights")
        assert (await sleeping).state == "sleeping"
        await engine.wake_up()
        assert engine.status().operation is None

    run(ledger_folder, body)


def test_a_refusal_says_the_state_the_call_what_is_legal_and_what_to_do_first(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        with pytest.raises(errors.TransitionConflict) as caught:
            await world.engine.finish_weight_update()
        assert (caught.value.state, caught.value.event) == ("stable", "finish_weight_update")
        assert str(caught.value) == (
            "finish_weight_update is not legal while stable; legal here: begin_weight_update; begin_weight_update first"
        )
        await world.engine.begin_weight_update()
        with pytest.raises(errors.TransitionConflict) as caught:
            await world.engine.sleep()
        assert (caught.value.state, caught.value.event) == ("paused", "sleep")
        assert {"resume", "wake_up", "shutdown"} <= set(caught.value.allowed)
        await world.engine.abort_weight_update()

    run(ledger_folder, body)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_requests_that_a_control_call_ended_are_told_to_its_caller_and_to_no_one_who_still_waits(
    ledger_folder: Path, level: int
) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        sleeping = await begun(world, engine.sleep(level=level, mode="abort"))
        behind = await begun(world, engine.update_weights(weights_of(world)))
        tasks[0].cancel()
        world.loop.release("step 4")
        assert set((await sleeping).aborted) == {"r0", "r1"}
        await asyncio.wait([behind, *tasks])
        if behind.exception() is None:
            assert behind.result().aborted == () or level == 0
        await settle_down(world) if level < 2 else await engine.wake_up()
        if level == 2:
            await engine.update_weights(weights_of(world))

    run(ledger_folder, body)


def test_a_sleep_is_refused_while_an_update_is_open_and_an_asleep_engine_opens_none(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.begin_weight_update()
        for call in (engine.sleep(), engine.sleep(tags=["kv_cache"])):
            with pytest.raises(errors.TransitionConflict, match="finish_weight_update or abort_weight_update"):
                await call
        await engine.abort_weight_update()
        await engine.sleep()
        for asked in (
            engine.begin_weight_update(),
            engine.weights_checksum(),
            engine.reset_prefix_cache(reset_running_requests=True),
        ):
            with pytest.raises(errors.TransitionConflict, match="wake_up"):
                await asked
        assert not await engine.reset_prefix_cache()
        await engine.wake_up()

    run(ledger_folder, body)


@pytest.mark.parametrize("state", ["paused", "sleeping", "half awake", "updating"])
def test_a_shutdown_of_a_gated_engine_answers_who_is_frozen_or_queued(ledger_folder: Path, state: str) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        world.loop.release("step 4")
        match state:
            case "paused":
                await engine.pause(mode="keep")
            case "updating":
                await engine.begin_weight_update()
            case _:
                await engine.sleep(mode="keep")
                await engine.wake_up(["weights"] if state == "half awake" else ["cuda_graph"])
        queued = await begun(world, world.ask(Client("queued", prompt_of(5, 4), 3)))
        assert (await engine.shutdown(timeout=30)).state == "stopped"
        await asyncio.gather(*tasks, queued)
        assert {client.finish_reason for client in (*clients, await queued)} == {"abort"}
        assert (await queued).tokens == []

    run(ledger_folder, body)


@pytest.mark.parametrize(
    ("verb", "asked", "field"),
    [
        ("sleep", {"level": 3}, "level"), ("sleep", {"level": True}, "level"), ("sleep", {"level": 1, "tags": ["weights"]}, "level"),
        ("sleep", {"tags": []}, "tags"), ("sleep", {"tags": ["disk"]}, "tags"), ("sleep", {"tags": {"weights": "burn"}}, "tags"),
        ("sleep", {"tags": 5}, "tags"), ("sleep", {"mode": "soft"}, "mode"), ("wake_up", {"tags": ["weights", "x"]}, "tags"),
        ("wake_up", {"tags": []}, "tags"), ("resume", {"owner": "update"}, "owner"), ("reset_prefix_cache", {"reset_running_requests": 1}, "reset"),
        ("begin_weight_update", {"lease": -1}, "lease"), ("begin_weight_update", {"kv": None}, "kv"),
        ("finish_weight_update", {"version": ""}, "version"), ("shutdown", {"timeout": -1}, "timeout"),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_before_anything_happens(
    ledger_folder: Path, verb: str, asked: dict[str, Any], field: str
) -> None:
    async def body(world: World) -> None:
        with pytest.raises(errors.InvalidRequest, match=field):
            await getattr(world.engine, verb)(**asked)
        assert not (await world.engine.sleep(tags=["cuda_graph"])).changed, "graphs survive: there is nothing to do"
        assert facts(world) == ("running", {}, HERE, (0, "stable"))

    run(ledger_folder, body)
