"""Competing control calls, aborts and cancellations at every await point of every control call. Everybody is answered, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.stateful.awaits import for_every_await
from quiesce.stateful.choices import POS
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.operators import some_clients, weights_of
from quiesce.stateful.reports import AnyTask
from quiesce.stateful.scenario import World, run
from quiesce.stateful.truth import assert_tokens_are_true

Calls = Callable[[World], Coroutine[Any, Any, Any]]


async def pauses(world: World) -> None:
    await world.engine.pause(mode="keep", clear_cache=True)
    await world.engine.resume()


async def pauses_and_waits(world: World) -> None:
    await world.engine.pause(mode="wait")
    await world.engine.resume()


async def sleeps(world: World) -> None:
    await world.engine.sleep(tags={"weights": "offload", "kv_cache": "offload"}, mode="keep")
    await world.engine.wake_up(tags=["weights"])
    await world.engine.wake_up()


async def forgets(world: World) -> None:
    await world.engine.sleep(level=1, mode="keep")
    await world.engine.wake_up()


async def updates(world: World) -> None:
    await world.engine.update_weights(weights_of(world))


async def updates_by_hand(world: World) -> None:
    await world.engine.begin_weight_update()
    await world.engine.load_weights(weights_of(world))
    await world.engine.weights_checksum()
    await world.engine.finish_weight_update()


async def gives_up_an_update(world: World) -> None:
    await world.engine.begin_weight_update(kv="keep")
    await world.engine.abort_weight_update()


async def resets(world: World) -> None:
    await world.engine.reset_prefix_cache(reset_running_requests=True)


VICTIMS: list[Calls] = [pauses, pauses_and_waits, sleeps, forgets, updates, updates_by_hand, gives_up_an_update, resets]
INTRUSIONS: dict[str, Calls] = {
    "pause(keep)": lambda world: world.engine.pause(mode="keep", owner="other"),
    "pause(abort)": lambda world: world.engine.pause(mode="abort"),
    "resume": lambda world: world.engine.resume(),
    "sleep": lambda world: world.engine.sleep(mode="keep"),
    "sleep(kv)": lambda world: world.engine.sleep(tags={"kv_cache": "offload"}),
    "wake_up": lambda world: world.engine.wake_up(),
    "update_weights": lambda world: world.engine.update_weights(weights_of(world)),
    "begin_weight_update": lambda world: world.engine.begin_weight_update(lease=5),
    "abort_weight_update": lambda world: world.engine.abort_weight_update(),
    "reset_prefix_cache": lambda world: world.engine.reset_prefix_cache(reset_running_requests=True),
    "abort a request": lambda world: world.engine.abort("r0"),
    "shutdown": lambda world: world.engine.shutdown(timeout=3),
}


async def heal(world: World) -> None:
    """Lets go of whatever holds the engine, and mends its weights."""
    engine = world.engine
    if engine.status().engine == "stopped":
        return
    with contextlib.suppress(errors.TransitionConflict):
        await engine.abort_weight_update()
    for owner in engine.status().pause_owners:
        if owner not in ("sleep", "update", "clear"):
            await engine.resume(owner)
    await engine.wake_up()
    if engine.status().weights[1] != "stable":
        await engine.update_weights(weights_of(world))


def scenario_of(
    folder: Path, calls: Calls, intruders: list[asyncio.Task[Any]], worlds: list[World]
) -> Callable[[DeterministicLoop], None]:
    """Clients, a task "operator" that makes the calls, and whatever intrudes on it."""

    def scenario(loop: DeterministicLoop) -> None:
        async def body(world: World) -> None:
            intruders.clear()
            worlds[:] = [world]
            clients = some_clients(3)
            asked = [asyncio.ensure_future(world.ask(client)) for client in clients]
            operator = asyncio.create_task(calls(world), name="operator")
            await asyncio.wait([operator])
            if intruders:
                await asyncio.wait(intruders)
            for task in (operator, *intruders):
                if not task.cancelled() and task.exception() is not None:
                    assert isinstance(task.exception(), errors.EngineError), task.exception()
            await heal(world)
            refusals = await asyncio.gather(*asked, return_exceptions=True)
            for client, refusal in zip(clients, refusals, strict=True):
                if isinstance(refusal, errors.Unavailable) and not client.outputs:
                    continue  # it came when the gate was shut: never accepted
                assert client.finish_reason in ("length", "abort"), refusal
                (child,) = client.outputs[-1].outputs
                spans = [(int(version), start, end) for version, start, end in child.weight_versions]
                assert_tokens_are_true(client.name, client.prompt, child.token_ids, spans)
                assert client.finish_reason == "abort" or len(child.token_ids) == client.max_tokens
            assert world.engine.status().engine in ("running", "stopped")
            assert not world.engine._core.operations.by_key

        run(folder, body, loop=loop)

    return scenario


def make_loop(seed: int) -> Callable[[], DeterministicLoop]:
    return lambda: DeterministicLoop(POS(seed) if seed else None, adversarial=bool(seed), timely=True)


@pytest.mark.parametrize("calls", VICTIMS, ids=lambda calls: calls.__name__)
def test_a_caller_cancelled_at_any_await_leaves_an_engine_that_can_be_healed(ledger_folder: Path, calls: Calls) -> None:
    for seed in range(3):
        scenario = scenario_of(ledger_folder, calls, [], [])
        assert for_every_await(scenario, "operator", make_loop=make_loop(seed)) >= 1


@pytest.mark.parametrize("intrusion", INTRUSIONS)
@pytest.mark.parametrize("calls", VICTIMS, ids=lambda calls: calls.__name__)
def test_a_competing_call_at_any_await_is_answered_and_so_is_everybody_else(
    ledger_folder: Path, calls: Calls, intrusion: str
) -> None:
    intruders: list[asyncio.Task[Any]] = []
    worlds: list[World] = []

    def intrude(_victim: AnyTask) -> None:
        call = INTRUSIONS[intrusion](worlds[0])
        intruders.append(asyncio.get_running_loop().create_task(call, name="intruder"))

    seed = list(INTRUSIONS).index(intrusion) % 3  # of three schedules one each
    scenario = scenario_of(ledger_folder, calls, intruders, worlds)
    assert for_every_await(scenario, "operator", intrude=intrude, make_loop=make_loop(seed)) >= 1
