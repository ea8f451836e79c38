"""Calls that meet an engine of which a part is away, or on its way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.stateful.operators import begun, facts, some_clients, streaming, weights_of
from quiesce.stateful.scenario import Client, World, run

KV = {"kv_cache": "offload"}
WEIGHTS = {"weights": "offload"}


async def kv_leaves(world: World, clients: list[Client]) -> tuple[list[asyncio.Task[Client]], asyncio.Task[Any]]:
    """Frozen clients, whose KV is being copied: `unmap kv_cache` is held."""
    tasks = await streaming(world, *clients, step=5)
    world.loop.hold("unmap kv_cache")
    sleeping = await begun(world, world.engine.sleep(tags=KV, mode="keep"))
    world.loop.release("step 5")
    await world.loop.wait_settled()
    return tasks, sleeping


def test_wait_cannot_rise_over_who_is_frozen_in_a_sleep(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks, sleeping = await kv_leaves(world, clients)
        for call in (world.engine.sleep(tags=WEIGHTS, mode="wait"), world.engine.pause(mode="wait")):
            with pytest.raises((errors.TransitionConflict, errors.DeadlineExceeded)):
                await call
        world.loop.release("unmap kv_cache")
        await sleeping
        with pytest.raises(errors.TransitionConflict, match="resume the listed owners"):
            await world.engine.sleep(tags=WEIGHTS, mode="wait")
        await world.engine.wake_up()
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_the_deadline_of_a_sleep_that_moves_memory_is_over_even_while_blocks_wait_for_a_copy(ledger_folder: Path) -> None:
    """Whom it aborts is answered, and keeps its blocks until the copy of the KV has ended."""

    async def body(world: World) -> None:
        tasks, first = await kv_leaves(world, some_clients(2))
        second = await begun(world, world.engine.sleep(tags=WEIGHTS, mode="abort", timeout=3))
        await asyncio.sleep(5)
        assert not second.done()
        assert world.engine.status().memory["weights"] == "releasing", "nothing was withdrawn"
        world.loop.release("unmap kv_cache")
        await first
        done = await second
        assert (done.state, set(done.aborted)) == ("sleeping", {"r0", "r1"})
        await asyncio.gather(*tasks)
        await world.engine.wake_up()

    run(ledger_folder, body)


def test_who_waits_in_the_queue_is_not_told_of_what_others_aborted(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        tasks, sleeping = await kv_leaves(world, some_clients(2))
        updating = await begun(world, world.engine.update_weights(weights_of(world)))
        assert not updating.done(), "memory moves"
        pausing = await begun(world, world.engine.pause(mode="abort"))
        world.loop.release("unmap kv_cache")
        assert set((await pausing).aborted) == {"r0", "r1"}
        await sleeping
        assert (await updating).aborted == ()
        await asyncio.gather(*tasks)
        await world.engine.resume()
        await world.engine.wake_up()
        assert facts(world)[3] == (1, "stable")

    run(ledger_folder, body)


def test_a_wake_up_is_not_told_of_what_others_abort_meanwhile(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        tasks, sleeping = await kv_leaves(world, some_clients(2))
        world.loop.release("unmap kv_cache")
        await sleeping
        world.loop.hold("map kv_cache")
        waking = await begun(world, world.engine.wake_up())
        pausing = await begun(world, world.engine.pause(mode="abort"))
        world.loop.release("map kv_cache")
        assert set((await pausing).aborted) == {"r0", "r1"}
        assert (await waking).aborted == ()
        await asyncio.gather(*tasks)
        await world.engine.resume()

    run(ledger_folder, body)


def test_each_of_two_sleeps_is_told_what_its_own_tags_freed(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("unmap weights")
        weights = await begun(world, world.engine.sleep(tags=WEIGHTS))
        kv = await begun(world, world.engine.sleep(tags=KV))
        world.loop.release("unmap weights")
        whole = (await weights).freed_bytes + (await kv).freed_bytes
        await world.engine.wake_up()
        assert weights.result().freed_bytes > 0 < kv.result().freed_bytes
        assert (await world.engine.sleep(level=1)).freed_bytes == whole
        await world.engine.wake_up()

    run(ledger_folder, body)
