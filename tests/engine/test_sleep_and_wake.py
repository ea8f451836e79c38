"""Sleep and wake_up on the ledger device: what leaves, what comes back, who waits for what, and what a failed move leaves behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.stateful.ledger_device import WEIGHTS_BYTES
from quiesce.stateful.operators import begun, facts, some_clients, streaming, weights_of
from quiesce.stateful.scenario import Client, World, prompt_of, run

AWAY = {"weights": "released", "kv_cache": "released"}
HERE = {"weights": "resident", "kv_cache": "resident"}
POLICIES = ("offload", "discard")


async def frozen(world: World, *, step: int = 6, **sleep: Any) -> tuple[list[Client], list[asyncio.Task[Client]], Any]:
    """Four clients that stream, and a sleep that keeps them."""
    clients = some_clients(4, 12)
    tasks = await streaming(world, *clients, step=step)
    sleeping = await begun(world, world.engine.sleep(mode="keep", **sleep))
    world.loop.release(f"step {step}")
    return clients, tasks, await sleeping


@pytest.mark.parametrize("step", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("kv_cache", POLICIES)
def test_requests_that_were_kept_over_a_sleep_end_with_the_tokens_of_an_undisturbed_run(
    ledger_folder: Path, kv_cache: str, step: int
) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients, tasks, slept = await frozen(world, step=step, tags={"weights": "offload", "kv_cache": kv_cache})
        assert (slept.state, slept.changed, slept.aborted) == ("sleeping", True, ())
        assert set(slept.kept) == {client.name for client in clients}
        status = engine.status()
        assert facts(world)[:3] == ("sleeping", {"sleep": "keep"}, AWAY)
        assert (status.steps_in_flight, status.admission, await engine.is_sleeping()) == (0, "queue", True)
        if kv_cache == "discard":
            assert (status.blocks.free, status.blocks.cached) == (status.blocks.total, 0)
            assert not status.requests.get("running"), "who held blocks waits again"
        queued = await begun(world, world.ask(Client("queued", prompt_of(8, 6), 4)))
        woken = await engine.wake_up()
        assert (woken.state, woken.changed) == ("running", True)
        assert facts(world) == ("running", {}, HERE, (0, "stable"))
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]
        assert (await queued).tokens == (await queued).truth

    run(ledger_folder, body, max_num_seqs=3, num_kv_blocks=20)


def test_the_prefix_cache_survives_an_offload_and_not_a_discard(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        prompt = prompt_of(3, 21)
        await world.ask(Client("first", prompt, 2))
        for number, (policy, cached) in enumerate((("offload", 20), ("discard", 0))):
            await world.engine.sleep(tags={"kv_cache": policy})
            await world.engine.wake_up()
            again = await world.ask(Client(f"again-{number}", prompt, 2))
            assert again.outputs[-1].num_cached_tokens == cached
            assert again.tokens == again.truth

    run(ledger_folder, body)


def test_what_a_sleep_frees_is_what_the_device_measured(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        weights = await world.engine.sleep(tags=["weights"])
        assert (weights.freed_bytes, weights.state, weights.aborted, weights.kept) == (WEIGHTS_BYTES, "partially_awake", (), ())
        rest = await world.engine.sleep()
        assert (rest.freed_bytes, rest.state) == (world.device._num_bytes("kv_cache"), "sleeping"), "the weights were away"
        again = await world.engine.sleep()
        assert (again.freed_bytes, again.changed, again.state) == (0, False, "sleeping")
        await world.engine.wake_up()

    run(ledger_folder, body)


def test_the_gate_stays_shut_until_every_tag_is_back(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients, tasks, _ = await frozen(world, tags={"weights": "offload", "kv_cache": "offload"})
        woken = await engine.wake_up(tags=["weights"])
        assert (woken.state, facts(world)[2]) == ("partially_awake", {"weights": "resident", "kv_cache": "released"})
        assert not (await engine.wake_up(tags=["weights"])).changed
        await world.loop.wait_settled()
        assert engine.status().steps_in_flight == 0
        assert (await engine.wake_up(tags="kv_cache")).state == "running"
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]
        assert not (await engine.wake_up()).changed, "nothing is away"

    run(ledger_folder, body)


def test_a_wake_up_opens_no_gate_that_another_holds(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.pause(mode="keep", owner="mine")
        await engine.sleep()
        assert (await engine.resume(owner="mine")).state == "sleeping", "nor does a resume open a sleeping one"
        await engine.pause(mode="keep", owner="mine")
        assert (await engine.wake_up()).state == "paused"
        assert dict(engine.status().pause_owners) == {"mine": "keep"}
        assert (await engine.resume(owner="mine")).state == "running"

    run(ledger_folder, body)


def test_a_sleep_without_a_mode_is_as_strong_as_the_strongest_hold_and_else_aborts(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        world.loop.release("step 4")
        await engine.pause(mode="keep")
        slept = await engine.sleep()
        assert set(slept.kept) == {"r0", "r1"}, "frozen work is not killed by a forgotten argument"
        await engine.wake_up()
        await engine.resume()
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]
        others = some_clients(2, 40, first=2)
        asked = await streaming(world, *others, step=20)
        sleeping = await begun(world, engine.sleep())
        world.loop.release("step 20")
        assert set((await sleeping).aborted) == {"r2", "r3"}
        await asyncio.gather(*asked)
        await engine.wake_up()

    run(ledger_folder, body)


def test_level_0_only_pauses_and_level_2_forgets_the_weights(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        assert (await engine.sleep(level=0, mode="keep")).state == "paused"
        assert facts(world)[:3] == ("paused", {"sleep": "keep"}, HERE)
        assert not (await engine.sleep(level=0, mode="keep")).changed
        assert (await engine.wake_up(tags=["kv_cache"])).state == "running"
        assert (await engine.sleep(level=2)).state == "sleeping"
        assert engine.status().weights == (0, "undefined")
        woken = await engine.wake_up()
        assert (woken.state, facts(world)[2]) == ("partially_awake", {"weights": "undefined", "kv_cache": "resident"})
        with pytest.raises(errors.Unavailable):
            await world.ask(Client("r", prompt_of(0, 4), 2))
        assert (await engine.update_weights(weights_of(world))).state == "running"
        assert engine.status().weights == (1, "stable")
        await world.ask(Client("r2", prompt_of(0, 4), 2))

    run(ledger_folder, body)


@pytest.mark.parametrize("kv_cache", POLICIES)
def test_a_client_can_abort_at_every_point_of_a_sleep(ledger_folder: Path, kv_cache: str) -> None:
    """R18: also while its KV is away, where there is no memory to give back, and while it moves, when its blocks wait."""
    moves = ("unmap weights", "unmap kv_cache", "map weights", "map kv_cache", "nothing")
    for held in (*moves, *(["zero kv_cache"] if kv_cache == "discard" else [])):

        async def body(world: World, held: str = held) -> None:
            clients = some_clients(3)
            tasks = await streaming(world, *clients, step=5)
            world.loop.hold(held)
            sleeping = await begun(world, world.engine.sleep(tags={"weights": "offload", "kv_cache": kv_cache}, mode="keep"))
            world.loop.release("step 5")
            await world.loop.wait_settled()
            waking = await begun(world, world.engine.wake_up()) if held[:3] in ("map", "zer") else None
            assert (await world.engine.abort(["r0", "r1"])).aborted == ("r0", "r1")
            await asyncio.gather(*tasks[:2])
            tasks[2].cancel()
            world.loop.release(held)
            await sleeping
            if waking is not None:
                await waking
            await world.engine.wake_up()
            await asyncio.wait(tasks)
            for client in clients:
                client.assert_history_is_legal()
            again = await world.ask(Client("again", clients[0].prompt, 6))
            assert again.tokens == again.truth

        run(ledger_folder, body)


def test_a_stronger_pause_sweeps_who_is_frozen_in_a_sleep(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients, tasks, _ = await frozen(world, tags={"kv_cache": "offload"})
        done = await world.engine.pause(mode="abort")
        assert set(done.aborted) == {client.name for client in clients}
        assert done.state == "partially_awake"
        await asyncio.gather(*tasks)
        await world.engine.wake_up()
        assert (await world.engine.resume()).state == "running"

    run(ledger_folder, body)


# ---- who waits for whom ---------------------------------------------------------------------------------------------------------


def test_waking_all_that_was_chosen_withdraws_a_sleep_that_still_drains(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        sleeping = await begun(world, world.engine.sleep(mode="keep"))
        woken = await begun(world, world.engine.wake_up())
        assert (woken.result().changed, woken.result().state) == (True, "running")
        with pytest.raises(errors.TransitionConflict) as caught:
            await sleeping
        assert caught.value.superseded_by == "wake_up"
        world.loop.release("step 4")
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_waking_a_part_of_what_drains_waits_for_the_sleep(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        sleeping = await begun(world, world.engine.sleep(mode="keep"))
        waking = await begun(world, world.engine.wake_up(tags=["weights"]))
        assert not waking.done()
        world.loop.release("step 4")
        assert (await sleeping).state == "sleeping"
        assert (await waking).state == "partially_awake"
        assert facts(world)[2] == {"weights": "resident", "kv_cache": "released"}
        await world.engine.wake_up()
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


@pytest.mark.parametrize("moving", ["unmap weights", "unmap kv_cache"])
def test_a_wake_up_waits_for_the_sleep_that_moves_the_same_tags(ledger_folder: Path, moving: str) -> None:
    """Waking one tag of a sleep that has not ended would leave the sleep waiting for what nobody brings about."""

    async def body(world: World) -> None:
        world.loop.hold(moving)
        sleeping = await begun(world, world.engine.sleep())
        waking = [await begun(world, world.engine.wake_up(tags=[tag])) for tag in ("weights", "kv_cache")]
        assert not any(task.done() for task in (sleeping, *waking))
        world.loop.release(moving)
        assert (await sleeping).state == "sleeping"
        assert [(await task).changed for task in waking] == [True, True]
        assert facts(world)[:3] == ("running", {}, HERE)

    run(ledger_folder, body)


@pytest.mark.parametrize("moving", ["map weights", "map kv_cache", "zero kv_cache"])
@pytest.mark.parametrize("sleep", [{}, {"level": 0}, {"tags": ["kv_cache"]}], ids=str)
def test_a_sleep_waits_for_the_wake_up_that_moves_the_same_tags(
    ledger_folder: Path, moving: str, sleep: dict[str, Any]
) -> None:
    async def body(world: World) -> None:
        await world.engine.sleep()
        world.loop.hold(moving)
        waking = await begun(world, world.engine.wake_up())
        sleeping = await begun(world, world.engine.sleep(**sleep))
        assert not waking.done()
        assert not sleeping.done()
        world.loop.release(moving)
        await waking
        slept = await sleeping
        assert slept.changed
        await world.loop.wait_settled()
        assert (world.engine.status().engine, await world.engine.is_sleeping()) == (slept.state, True), "it holds"
        await world.engine.wake_up()
        assert world.engine.status().engine == "running"

    run(ledger_folder, body)


def test_a_sleep_that_drains_may_take_more_tags_and_a_stronger_mode_and_no_other_policy(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        first = await begun(world, engine.sleep(tags={"weights": "offload"}, mode="keep"))
        with pytest.raises(errors.TransitionConflict, match="another policy"):
            await engine.sleep(tags={"weights": "discard"})
        second = await begun(world, engine.sleep(tags={"kv_cache": "discard"}, mode="abort"))
        world.loop.release("step 4")
        assert set((await second).aborted) == {"r0", "r1"}
        assert (await first).changed
        assert facts(world)[2] == AWAY
        with pytest.raises(errors.TransitionConflict, match="wake_up first"):
            await engine.sleep(tags={"kv_cache": "offload"})
        await asyncio.gather(*tasks)
        await engine.wake_up()

    run(ledger_folder, body)


def test_a_deadline_withdraws_a_sleep_with_its_hold_and_its_choices(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        with pytest.raises(errors.DeadlineExceeded, match="sleep"):
            await world.engine.sleep(mode="keep", timeout=3)
        assert facts(world)[:3] == ("running", {}, HERE)
        world.loop.release("step 4")
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]
        assert not [name for name in world.loop.offered if "unmap" in name]

    run(ledger_folder, body)


def test_a_deadline_of_one_sleep_takes_back_what_it_chose_and_leaves_what_others_did(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        hasty = await begun(world, world.engine.sleep(tags={"weights": "offload"}, mode="keep", timeout=3))
        patient = await begun(world, world.engine.sleep(tags={"kv_cache": "offload"}, mode="keep"))
        with pytest.raises(errors.DeadlineExceeded):
            await hasty
        world.loop.release("step 4")
        await patient
        assert facts(world)[2] == {"weights": "resident", "kv_cache": "released"}
        await world.engine.wake_up()
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_a_deadline_leaves_a_sleep_of_level_0_that_was_granted_before(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(1)
        tasks = await streaming(world, *clients, step=4)
        light = await begun(world, engine.sleep(level=0, mode="keep", timeout=50))
        deep = await begun(world, engine.sleep(level=1, mode="keep", timeout=3))
        with pytest.raises(errors.DeadlineExceeded):
            await deep
        world.loop.release("step 4")
        assert (await light).state == "paused"
        assert facts(world)[:3] == ("paused", {"sleep": "keep"}, HERE)
        await engine.wake_up()
        await asyncio.gather(*tasks)

    run(ledger_folder, body)


def test_a_deadline_is_over_once_memory_moves(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("unmap kv_cache")
        sleeping = await begun(world, world.engine.sleep(timeout=3))
        await asyncio.sleep(30)
        assert not sleeping.done()
        world.loop.release("unmap kv_cache")
        assert (await sleeping).state == "sleeping"
        await world.engine.wake_up(timeout=0)

    run(ledger_folder, body)


def test_a_sleep_waits_for_a_clear_that_drains(ledger_folder: Path) -> None:
    """It would take the drain over, and whoever waits for the clear would wait until somebody wakes the engine."""

    async def body(world: World) -> None:
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        clearing = await begun(world, world.engine.reset_prefix_cache(reset_running_requests=True))
        pausing = await begun(world, world.engine.pause(mode="keep", owner="mine", clear_cache=True))
        sleeping = await begun(world, world.engine.sleep(mode="keep"))
        world.loop.release("step 4")
        assert await clearing
        assert (await pausing).state == "paused"
        assert (await sleeping).state == "sleeping"
        await world.engine.resume(owner="mine")
        await world.engine.wake_up()
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)
