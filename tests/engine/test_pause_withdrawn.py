"""Pauses that do not come about, or not yet: resumed before, too late, asked for twice, or while the engine loads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quiesce.engine import errors
from quiesce.stateful.driver import ledger_config, ledger_engine
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.operators import begun, some_clients, streaming
from quiesce.stateful.scenario import Client, World, prompt_of, run


def test_a_resume_before_the_drain_has_ended_supersedes_the_pause(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        pausing = await begun(world, world.engine.pause(mode="keep"))
        other = await begun(world, world.engine.pause(mode="keep", owner="other"))
        assert world.engine.status().operation == "pause"
        assert (await world.engine.resume()).changed
        with pytest.raises(errors.TransitionConflict) as caught:
            await pausing
        assert caught.value.superseded_by == "resume"
        assert world.engine.status().engine == "draining", "the other owner still wants it"
        world.loop.release("step 4")
        assert (await other).state == "paused"
        await world.engine.resume(owner="other")
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_a_deadline_withdraws_the_pause_and_resumes_what_it_froze(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        pausing = await begun(world, world.engine.pause(mode="keep", timeout=3))
        await asyncio.sleep(2)
        assert not pausing.done()
        with pytest.raises(errors.DeadlineExceeded, match=r"pause did not act within 3(\.0)? s"):
            await pausing
        assert (world.engine.status().engine, dict(world.engine.status().pause_owners)) == ("running", {})
        world.loop.release("step 4")
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_a_deadline_undoes_no_abort(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        with pytest.raises(errors.DeadlineExceeded):
            await world.engine.pause(mode="abort", timeout=3)
        assert world.engine.status().engine == "running"
        await asyncio.gather(*tasks)
        assert {client.finish_reason for client in clients} == {"abort"}
        world.loop.release("step 4")

    run(ledger_folder, body)


def test_the_deadline_of_one_call_leaves_the_same_pause_to_who_still_waits_for_it(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(1)
        tasks = await streaming(world, *clients, step=4)
        hasty = await begun(world, world.engine.pause(mode="keep", timeout=3))
        patient = await begun(world, world.engine.pause(mode="keep", timeout=10))
        with pytest.raises(errors.DeadlineExceeded):
            await hasty
        assert dict(world.engine.status().pause_owners) == {"user": "keep"}
        with pytest.raises(errors.DeadlineExceeded):
            await patient
        assert world.engine.status().engine == "running", "the last one takes the hold along"
        world.loop.release("step 4")
        await asyncio.gather(*tasks)

    run(ledger_folder, body)


def test_a_deadline_leaves_a_hold_that_was_there_before(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(1)
        tasks = await streaming(world, *clients, step=4)
        first = await begun(world, world.engine.pause(mode="keep"))
        with pytest.raises(errors.DeadlineExceeded):
            await world.engine.pause(mode="keep", timeout=1)
        world.loop.release("step 4")
        assert (await first).state == "paused"
        await world.engine.resume()
        await asyncio.gather(*tasks)

    run(ledger_folder, body)


def test_a_pause_while_loading_is_honoured_and_not_lost(ledger_folder: Path) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder))
        loop.hold("load")
        world = World(loop, engine, device)
        pausing = await begun(world, engine.pause(mode="keep", clear_cache=True))
        asked = await begun(world, world.ask(Client("r", prompt_of(0, 4), 3)))
        assert (engine.status().engine, engine.status().admission, pausing.done()) == ("starting", "queue", False)
        loop.release("load")
        assert (await pausing).state == "paused"
        async with engine:
            assert engine.status().requests == {"received": 1}
            await engine.resume()
            assert (await asked).tokens == (await asked).truth

    loop.run(main())
