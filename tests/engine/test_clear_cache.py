"""Cached prefixes are forgotten when asked: with a pause, by a reset, or not while somebody holds blocks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quiesce.engine import errors
from quiesce.stateful.operators import begun, some_clients, streaming
from quiesce.stateful.scenario import Client, World, prompt_of, run


def test_clearing_the_cache_forgets_prefixes_and_computes_frozen_requests_anew(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await world.ask(Client("before", prompt_of(5, 20), 2))
        assert engine.status().blocks.cached
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=6)
        world.loop.release("step 6")
        done = await engine.pause(mode="keep", clear_cache=True)
        assert set(done.kept) == {"r0", "r1"}
        blocks, requests = engine.status().blocks, dict(engine.status().requests)
        assert (blocks.free, requests) == (blocks.total, {"admitted": 2}), "even the oldest gave its blocks back"
        assert dict(engine.status().pause_owners) == {"user": "keep"}
        await engine.resume()
        await asyncio.gather(*tasks)
        again = await world.ask(Client("again", prompt_of(5, 20), 2))
        assert again.outputs[-1].num_cached_tokens == 0
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_resetting_the_prefix_cache_is_refused_while_blocks_are_held_unless_they_may_be_taken(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        client = await world.ask(Client("before", prompt_of(5, 20), 2))
        assert await engine.reset_prefix_cache()
        assert engine.status().blocks.cached == 0
        assert (await world.ask(Client("again", client.prompt, 2))).outputs[-1].num_cached_tokens == 0
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=9)
        assert not await engine.reset_prefix_cache()
        assert engine.status().blocks.cached
        resetting = await begun(world, engine.reset_prefix_cache(reset_running_requests=True))
        assert (engine.status().engine, engine.status().operation) == ("draining", "reset_prefix_cache")
        world.loop.release("step 9")
        assert await resetting
        assert engine.status().engine == "running", "nobody else held it"
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_a_reset_in_the_pass_in_which_a_step_lands_makes_no_block_findable_that_is_not_computed(ledger_folder: Path) -> None:
    """What a landed step filled is entered before the cache is cleared: afterwards the request has other blocks, not computed yet."""

    async def body(world: World) -> None:
        loop = world.loop
        first = Client("first", prompt_of(0, 39), 8)
        tasks = await streaming(world, first, step=4)
        loop.hold("pass")
        loop.hold("step 5")
        resetting = await begun(world, world.engine.reset_prefix_cache(reset_running_requests=True))
        loop.release("step 4")
        await loop.wait_settled()
        loop.release("pass")
        assert await resetting
        await world.engine.abort("first")
        loop.release("step 5")
        await asyncio.gather(*tasks)
        second = await world.ask(Client("second", first.prompt, 8))
        assert second.outputs[-1].num_cached_tokens <= 16, "no more than the one step that was computed anew"
        assert second.tokens == second.truth

    run(ledger_folder, body, overlap=False)


def test_a_reset_that_cannot_drain_in_time_is_withdrawn(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(1)
        tasks = await streaming(world, *clients, step=4)
        with pytest.raises(errors.DeadlineExceeded):
            await world.engine.reset_prefix_cache(reset_running_requests=True)
        assert (world.engine.status().engine, dict(world.engine.status().pause_owners)) == ("running", {})
        world.loop.release("step 4")
        await asyncio.gather(*tasks)
        assert clients[0].tokens == clients[0].truth

    run(ledger_folder, body, control_timeout_s=5.0)


def test_a_pause_that_clears_is_not_deprived_of_it_by_the_deadline_of_a_reset(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        await world.ask(Client("before", prompt_of(5, 20), 2))
        clients = some_clients(1)
        tasks = await streaming(world, *clients, step=5)
        resetting = await begun(world, world.engine.reset_prefix_cache(reset_running_requests=True))
        pausing = await begun(world, world.engine.pause(mode="keep", clear_cache=True, timeout=50))
        with pytest.raises(errors.DeadlineExceeded):
            await resetting
        world.loop.release("step 5")
        await pausing
        assert world.engine.status().blocks.cached == 0
        await world.engine.resume()
        await asyncio.gather(*tasks)

    run(ledger_folder, body, control_timeout_s=5.0)
