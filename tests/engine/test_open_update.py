"""An update that its client opens, fills and ends: several loads, none, too late, abandoned, overtaken, or dying with the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quiesce.engine import errors
from quiesce.stateful.operators import begun, facts, some_clients, streaming, weights_of
from quiesce.stateful.scenario import Client, World, prompt_of, run

Facts = tuple[str, dict[str, str], dict[str, str], tuple[int | str, str]]
HERE = {"weights": "resident", "kv_cache": "resident"}
SERVING: Facts = ("running", {}, HERE, (0, "stable"))
BROKEN: Facts = ("paused", {}, HERE, (0, "undefined"))


def chunks(world: World) -> Iterator[dict[str, Any]]:
    values = list(weights_of(world).items())
    for start in range(0, len(values), 5):
        yield dict(values[start : start + 5])


def test_an_update_is_begun_loaded_in_parts_and_finished(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        opened = await engine.begin_weight_update()
        assert (opened.state, opened.changed) == ("paused", True)
        assert facts(world) == ("paused", {"update": "keep"}, HERE, (0, "updating"))
        queued = await begun(world, world.ask(Client("queued", prompt_of(0, 4), 2)))
        for part in chunks(world):
            await engine.load_weights(iter(part.items()))
        done = await engine.finish_weight_update(version="next")
        assert (done.state, done.changed) == ("running", True)
        assert facts(world) == ("running", {}, HERE, ("next", "stable"))
        by_parts = await engine.weights_checksum()
        await engine.update_weights(weights_of(world))
        assert await engine.weights_checksum() == by_parts
        assert (await queued).finish_reason == "length"

    run(ledger_folder, body)


def test_calls_on_an_update_are_done_in_order_even_when_they_are_made_at_once(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.begin_weight_update()
        calls = [asyncio.ensure_future(engine.load_weights(part)) for part in chunks(world)]
        calls.append(asyncio.ensure_future(engine.finish_weight_update()))
        await asyncio.gather(*calls)
        assert facts(world) == ("running", {}, HERE, (1, "stable"))
        assert len(world.device.tensors) == len(weights_of(world))

    run(ledger_folder, body)


def test_some_tensors_are_enough_over_whole_weights_and_not_over_broken_ones(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        some = dict(list(weights_of(world, 0.25).items())[:3])
        await engine.begin_weight_update()
        await engine.load_weights(some)
        await engine.finish_weight_update()
        assert engine.status().weights == (1, "stable")
        await engine.begin_weight_update()
        await engine.load_weights(some)
        await engine.abort_weight_update()
        assert engine.status().weights == (1, "undefined")
        await engine.begin_weight_update()
        await engine.load_weights(some)
        with pytest.raises(errors.TransitionConflict, match=r"load the remaining tensors \(10: .*\), or abort_weight_update"):
            await engine.finish_weight_update()
        rest = dict(list(weights_of(world).items())[3:])
        await engine.load_weights(rest)
        assert (await engine.finish_weight_update()).state == "running"

    run(ledger_folder, body)


def test_a_load_that_cannot_be_leaves_the_update_open(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.begin_weight_update()
        name, value = next(iter(weights_of(world).items()))
        wrong: list[Any] = [{name: np.zeros(3, np.float32)}, [(name, value), ("no.such", value)], iter([7]), {"no.such": value}]
        for source in wrong:
            with pytest.raises(errors.InvalidRequest):
                await engine.load_weights(source)
        world.device.fail_fetch = OSError("a wire was cut")
        with pytest.raises(errors.InvalidRequest, match="a wire was cut"):
            await engine.load_weights([(name, value)])
        assert engine.status().weights == (0, "updating")
        assert not world.device.tensors, "each was refused before a byte of it was written"
        ended = await engine.abort_weight_update()
        assert (ended.state, facts(world)) == ("running", SERVING)

    run(ledger_folder, body)


def test_without_an_open_update_there_is_nothing_to_load_finish_or_abort(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        for call in (engine.load_weights({}), engine.finish_weight_update(), engine.abort_weight_update()):
            with pytest.raises(errors.TransitionConflict, match="begin_weight_update first"):
                await call
        clients = some_clients(1)
        tasks = await streaming(world, *clients, step=4)
        opening = await begun(world, engine.begin_weight_update())
        for call in (engine.load_weights({}), engine.finish_weight_update()):
            with pytest.raises(errors.TransitionConflict):
                await call
        world.loop.release("step 4")
        await opening
        for call in (engine.begin_weight_update(), engine.update_weights(weights_of(world))):
            with pytest.raises(errors.TransitionConflict, match="finish_weight_update or abort_weight_update"):
                await call
        await engine.abort_weight_update()
        await asyncio.gather(*tasks)
        assert clients[0].tokens == clients[0].truth

    run(ledger_folder, body)


# ---- withdrawn, rolled back, overtaken ----------------------------------------------------------------------------------------


def test_an_abort_withdraws_an_update_that_still_drains(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        opening = await begun(world, world.engine.begin_weight_update(lease=50))
        assert (await world.engine.abort_weight_update()).state == "running"
        with pytest.raises(errors.TransitionConflict) as caught:
            await opening
        assert caught.value.superseded_by == "abort_weight_update"
        world.loop.release("step 4")
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]
        await asyncio.sleep(60)
        assert facts(world) == SERVING, "its lease ended with it"

    run(ledger_folder, body)


def test_a_deadline_withdraws_an_update_that_still_drains(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        calls = (
            world.engine.begin_weight_update(timeout=3, lease=50),
            world.engine.update_weights(weights_of(world), timeout=3),
        )
        for call in calls:
            with pytest.raises(errors.DeadlineExceeded):
                await call
        assert facts(world) == SERVING
        world.loop.release("step 4")
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


@pytest.mark.parametrize("loaded", [False, True])
def test_the_end_of_a_lease_rolls_an_open_update_back(ledger_folder: Path, loaded: bool) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.begin_weight_update(lease=5)
        if loaded:
            await engine.load_weights(weights_of(world))
        await asyncio.sleep(4)
        assert engine.status().weights == (0, "updating")
        await asyncio.sleep(2)
        assert facts(world) == (BROKEN if loaded else SERVING)
        with pytest.raises(errors.TransitionConflict):
            await engine.finish_weight_update()
        await engine.begin_weight_update(lease=5)
        await engine.load_weights(weights_of(world))
        await engine.finish_weight_update()
        await asyncio.sleep(10)
        assert facts(world) == ("running", {}, HERE, (1, "stable")), "a lease ends with its update"

    run(ledger_folder, body)


@pytest.mark.parametrize("held", ["fetch 1", "fetch 2", "load_weights"])
@pytest.mark.parametrize("by", ["abort", "lease", "shutdown"])
def test_who_loads_is_told_what_ended_the_update_and_what_comes_late_is_for_nobody(
    ledger_folder: Path, held: str, by: str
) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.begin_weight_update(lease=5 if by == "lease" else None)
        world.loop.hold(held)
        loading = await begun(world, engine.load_weights(weights_of(world)))
        waiting = await begun(world, engine.finish_weight_update())
        match by:
            case "abort":
                await engine.abort_weight_update()
            case "lease":
                await asyncio.sleep(6)
            case _:
                assert (await engine.shutdown()).state == "stopped"
        word = {"abort": "abort_weight_update"}.get(by, by)
        await asyncio.wait([loading, waiting])
        found = loading.exception()
        assert isinstance(found, errors.TransitionConflict)
        assert (found.superseded_by, found.event) == (word, "load_weights")
        assert isinstance(waiting.exception(), errors.TransitionConflict)
        if by == "shutdown":
            return
        assert facts(world) == (SERVING if held == "fetch 1" else BROKEN)
        again = await begun(world, engine.update_weights(weights_of(world, 0.75)))
        assert not again.done(), "the device is still at the old one"
        world.loop.release(held)
        assert (await again).state == "running"
        assert facts(world) == ("running", {}, HERE, (1, "stable"))
        client = await world.ask(Client("r", prompt_of(0, 4), 2))
        assert client.outputs[-1].outputs[0].weight_versions == ((1, 0, 2),)

    run(ledger_folder, body)


@pytest.mark.parametrize("held", ["fetch 1", "load_weights", "fetch 2"])
def test_an_update_that_loads_by_itself_can_be_aborted(ledger_folder: Path, held: str) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        world.loop.hold(held)
        updating = await begun(world, engine.update_weights(weights_of(world)))
        await engine.abort_weight_update()
        with pytest.raises(errors.TransitionConflict) as caught:
            await updating
        assert (caught.value.superseded_by, caught.value.event) == ("abort_weight_update", "update_weights")
        assert facts(world) == (SERVING if held == "fetch 1" else BROKEN)
        world.loop.release(held)
        await engine.update_weights(weights_of(world))

    run(ledger_folder, body)


def test_what_is_called_while_an_update_loads_by_itself_waits_for_it(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        world.loop.hold("load_weights")
        updating = await begun(world, engine.update_weights(weights_of(world)))
        behind = [await begun(world, call) for call in (engine.update_weights(weights_of(world, 0.25)), engine.sleep())]
        assert not any(call.done() for call in (updating, *behind))
        assert engine.status().operation == "update_weights"
        world.loop.release("load_weights")
        assert (await updating).changed
        assert (await behind[0]).changed
        assert (await behind[1]).state == "sleeping"
        assert engine.status().weights == (2, "stable")
        await engine.wake_up()

    run(ledger_folder, body)


def test_a_shutdown_ends_an_open_update_and_its_lease(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        opening = await begun(world, world.engine.begin_weight_update(lease=1, timeout=50))
        stopping = await begun(world, world.engine.shutdown(timeout=20))
        with pytest.raises(errors.TransitionConflict) as caught:
            await opening
        assert caught.value.superseded_by == "shutdown"
        await asyncio.sleep(5)
        assert world.engine.status().engine == "draining", "the lease is over, and nothing fails of it"
        world.loop.release("step 4")
        assert (await stopping).state == "stopped"
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


@pytest.mark.parametrize("at", ["begin", "load", "queued"])
def test_the_engines_death_answers_every_call_on_an_update(
    ledger_folder: Path, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        if at == "begin":
            clients = some_clients(1)
            tasks: list[Any] = list(await streaming(world, *clients, step=4))
            world.device.fail_at[4] = OSError("the device is gone")
            tasks.append(await begun(world, engine.begin_weight_update(lease=3)))
            world.loop.release("step 4")
        else:
            await engine.begin_weight_update(lease=3)
            world.loop.hold("fetch 1")
            tasks = [await begun(world, engine.load_weights(weights_of(world)))]
            if at == "queued":
                tasks.append(await begun(world, engine.finish_weight_update()))
            world.device.load_weights = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
            world.loop.release("fetch 1")
        await asyncio.wait(tasks)
        assert engine.status().engine == "failed"
        assert all(isinstance(task.exception(), errors.EngineDead) for task in tasks if task.exception() is not None)
        assert sum(task.exception() is not None for task in tasks) == (2 if at == "queued" else 1)
        assert engine._core.operations.next_deadline_s() is None, "the lease is over with the engine"
        await asyncio.sleep(10)
        assert engine.status().engine == "failed"

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        run(ledger_folder, body)
