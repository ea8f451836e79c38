"""Memory that cannot leave or come back: what is told, what is as before, and what fails the engine."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from quiesce.engine import errors
from quiesce.stateful.operators import begun, facts, some_clients, streaming
from quiesce.stateful.scenario import Client, World, prompt_of, run

AWAY = {"weights": "released", "kv_cache": "released"}
HERE = {"weights": "resident", "kv_cache": "resident"}


async def asleep(world: World, **tags: str) -> tuple[list[Client], list[asyncio.Task[Client]]]:
    clients = some_clients(3)
    tasks = await streaming(world, *clients, step=5)
    sleeping = await begun(world, world.engine.sleep(mode="keep", tags=tags))
    world.loop.release("step 5")
    await asyncio.wait([sleeping])
    return clients, tasks


def test_an_offload_that_fails_is_rolled_back_and_may_be_tried_again(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.device.fail_move.add(("kv_cache", "released"))
        with pytest.raises(errors.Unavailable, match="sleep again") as caught:
            await world.engine.sleep(tags={"kv_cache": "offload"}, mode="keep")
        assert caught.value.retry_after
        assert facts(world)[:3] == ("running", {}, HERE), "nothing is away: nothing holds the gate"
        world.device.fail_move.add(("weights", "released"))
        with pytest.raises(errors.Unavailable):
            await world.engine.sleep(mode="keep")
        await world.loop.wait_settled()
        assert facts(world)[:3] == ("partially_awake", {"sleep": "keep"}, HERE | {"kv_cache": "released"})
        assert (await world.engine.sleep()).state == "sleeping"
        await world.engine.wake_up()

    run(ledger_folder, body)


@pytest.mark.parametrize("tag", ["weights", "kv_cache"])
def test_a_restore_that_fails_leaves_the_tag_away_and_may_be_tried_again(ledger_folder: Path, tag: str) -> None:
    async def body(world: World) -> None:
        clients, tasks = await asleep(world, weights="offload", kv_cache="offload")
        world.device.fail_move.add((tag, "restored"))
        with pytest.raises(errors.Unavailable, match="wake_up again"):
            await world.engine.wake_up()
        await world.loop.wait_settled()
        assert facts(world)[:3] == ("partially_awake", {"sleep": "keep"}, HERE | {tag: "released"})
        assert (await world.engine.wake_up()).state == "running"
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_what_is_called_while_the_rest_of_a_failed_move_is_on_its_way_waits_for_it(ledger_folder: Path) -> None:
    """Its operation is answered, so that nobody else would say that something is sure to end."""

    async def body(world: World) -> None:
        engine = world.engine
        world.device.fail_move.add(("weights", "released"))
        world.loop.hold("unmap kv_cache")
        with pytest.raises(errors.Unavailable):
            await engine.sleep()
        waking = await begun(world, engine.wake_up())
        assert not waking.done()
        world.loop.release("unmap kv_cache")
        assert (await waking).state == "running"
        await engine.sleep()
        world.device.fail_move.add(("weights", "restored"))
        world.loop.hold("zero kv_cache")
        with pytest.raises(errors.Unavailable):
            await engine.wake_up()
        sleeping = await begun(world, engine.sleep(tags={"kv_cache": "discard"}))
        assert not sleeping.done()
        world.loop.release("zero kv_cache")
        assert (await sleeping).state == "sleeping"
        await engine.wake_up()

    run(ledger_folder, body)


@pytest.mark.parametrize("tag", ["weights", "kv_cache"])
def test_a_discard_that_fails_loses_nothing_and_may_be_tried_again(ledger_folder: Path, tag: str) -> None:
    async def body(world: World) -> None:
        clients = some_clients(3)
        tasks = await streaming(world, *clients, step=5)
        world.device.fail_move.add((tag, "released"))
        sleeping = await begun(world, world.engine.sleep(level=2, mode="keep"))
        world.loop.release("step 5")
        await asyncio.wait([sleeping])
        assert isinstance(sleeping.exception(), errors.Unavailable)
        await world.loop.wait_settled()
        away = {name: "resident" if name == tag else "released" for name in HERE}
        assert facts(world)[:3] == ("partially_awake", {"sleep": "keep"}, away)
        await world.engine.wake_up()
        if tag == "weights":
            await asyncio.gather(*tasks)
            assert [client.tokens for client in clients] == [client.truth for client in clients], "the weights are whole"
        else:
            assert facts(world)[:3] == ("partially_awake", {"sleep": "keep"}, HERE | {"weights": "undefined"}), (
                "as after any discard"
            )

    run(ledger_folder, body)


def test_memory_of_which_nothing_is_known_any_more_fails_the_engine_and_everybody_is_answered(
    ledger_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        world.device.fail_move.add(("kv_cache", "zeroed"))
        clients = some_clients(3)
        tasks = await streaming(world, *clients, step=5)
        calls = [await begun(world, engine.sleep(level=2, mode="keep"))]
        calls.append(await begun(world, engine.wake_up(tags=["kv_cache"])))
        world.loop.release("step 5")
        await asyncio.wait([*calls, *tasks])
        assert engine.status().engine == "failed"
        assert {client.finish_reason for client in clients} == {"error"}
        assert isinstance(calls[1].exception(), errors.EngineDead)
        dead = (engine.pause(), engine.resume(), engine.sleep(), engine.wake_up(), engine.begin_weight_update(), engine.load_weights([]),
                engine.finish_weight_update(), engine.abort_weight_update(), engine.weights_checksum(), engine.reset_prefix_cache(),
                engine.reset_prefix_cache(reset_running_requests=True), engine.update_weights([]))  # fmt: skip
        for call in dead:
            with pytest.raises(errors.EngineDead):
                await call
        assert (await engine.abort("r0")).not_found == ("r0",)
        assert (await engine.shutdown()).state == "stopped"

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        run(ledger_folder, body)


@pytest.mark.parametrize("held", ["unmap weights", "unmap kv_cache", "map weights", "map kv_cache"])
def test_a_shutdown_waits_for_copies_and_answers_everybody(ledger_folder: Path, held: str) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        world.loop.hold(held)
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=5)
        sleeping = await begun(world, engine.sleep(mode="keep"))
        world.loop.release("step 5")
        await world.loop.wait_settled()
        waking = await begun(world, engine.wake_up())
        stopping = await begun(world, engine.shutdown(timeout=5))
        assert engine.status().engine == "stopping"
        assert not stopping.done()
        await asyncio.gather(*tasks)
        assert {client.finish_reason for client in clients} == {"abort"}
        world.loop.release(held)
        assert (await stopping).state == "stopped"
        await asyncio.wait([sleeping, waking])
        for found in [sleeping.exception(), waking.exception()][held.startswith("map") :]:
            assert isinstance(found, errors.TransitionConflict)
            assert found.superseded_by == "shutdown"
        with pytest.raises(errors.EngineDead):
            await world.ask(Client("late", prompt_of(0, 4), 2))

    run(ledger_folder, body)


@pytest.mark.parametrize("held", ["unmap kv_cache", "map kv_cache"])
def test_nobody_waits_for_an_engine_that_stops(ledger_folder: Path, held: str) -> None:
    """A copy is on its way, and the engine stops when it has ended: whatever is called meanwhile is refused at once."""

    async def body(world: World) -> None:
        engine = world.engine
        world.loop.hold(held)
        moving = await begun(world, engine.sleep())
        if moving.done():
            moving = await begun(world, engine.wake_up())
        stopping = await begun(world, engine.shutdown())
        assert engine.status().engine == "stopping"
        calls = (engine.pause(), engine.resume(), engine.sleep(), engine.sleep(level=0), engine.wake_up(), engine.wake_up(["kv_cache"]),
                 engine.begin_weight_update(), engine.update_weights([]), engine.reset_prefix_cache(True), engine.weights_checksum(),
                 world.ask(Client("late", prompt_of(0, 4), 2)))  # fmt: skip
        for call in calls:
            asked = await begun(world, call)
            assert asked.done(), "it would be told only when the copy has ended"
            assert type(asked.exception()) is errors.Unavailable
            assert "it is shutting down" in str(asked.exception())
        world.loop.release(held)
        assert (await stopping).state == "stopped"
        assert isinstance((await asyncio.gather(moving, return_exceptions=True))[0], errors.TransitionConflict)

    run(ledger_folder, body)


def test_the_engine_fails_while_memory_moves_and_the_late_completion_is_for_nobody(
    ledger_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        world.loop.hold("unmap kv_cache")
        sleeping = await begun(world, engine.sleep())
        core = engine._core
        core.operations.moved = lambda move: 1 / 0  # type: ignore[method-assign, assignment]
        core.inbox.post(object())  # type: ignore[arg-type]  # nothing, but it wakes the core
        await world.loop.wait_settled()
        world.loop.release("unmap kv_cache")
        with pytest.raises(errors.EngineDead):
            await sleeping
        assert engine.status().engine == "failed"

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        run(ledger_folder, body)
