"""Pause and resume: what becomes of whom by the held mode, whose hold is whose, and how a pause that cannot be ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.stateful.choices import POS
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.operators import begun, some_clients, streaming
from quiesce.stateful.scenario import Client, World, prompt_of, run

MODES = ("abort", "wait", "keep")


# ---- the table of policies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_held_mode_decides_for_running_waiting_posted_and_new(ledger_folder: Path, mode: str) -> None:
    async def body(world: World) -> None:
        engine, loop = world.engine, world.loop
        clients = some_clients(4)
        running, waiting, posted = clients[:2], clients[2:], Client("posted", prompt_of(7, 4), 3)
        tasks = await streaming(world, *clients, step=3)
        tasks.append(asyncio.ensure_future(world.ask(posted)))
        pausing = await begun(world, engine.pause(mode=mode))
        assert (engine.status().engine, pausing.done()) == ("draining", False), "a step is in flight"
        late = Client("late", prompt_of(9, 4), 3)
        if mode == "keep":
            assert engine.status().admission == "queue"
            tasks.append(await begun(world, world.ask(late)))
        else:
            with pytest.raises(errors.Unavailable, match="draining") as refused:
                await world.ask(late)
            assert not isinstance(refused.value, errors.EngineDead), "retryable"
        loop.release("step 3")
        done = await pausing
        assert (done.state, done.changed) == ("paused", True)
        if mode == "abort":
            assert set(done.aborted) == {client.name for client in (*clients, posted)}
            assert not done.kept
            assert all(client.finish_reason == "abort" for client in (*clients, posted))
            assert all(0 < len(client.tokens) < 8 for client in running)
            assert not any(client.tokens for client in (*waiting, posted)), "no token is ever invented"
        elif mode == "wait":
            assert [client.tokens for client in running] == [client.truth for client in running]
            assert set(done.kept) == {client.name for client in (*waiting, posted)}
            assert not done.aborted
            assert engine.status().requests == {"admitted": 3}
        else:
            assert set(done.kept) == {client.name for client in (*clients, posted, late)}
            assert engine.status().requests == {"running": 2, "admitted": 3, "received": 1}
        assert engine.status().steps_in_flight == 0
        resumed = await engine.resume()
        assert (resumed.state, resumed.changed) == ("running", True)
        await asyncio.gather(*tasks)
        for client in (*clients, posted, *([late] if mode == "keep" else [])):
            client.assert_history_is_legal()
            if mode != "abort":
                assert client.tokens == client.truth

    run(ledger_folder, body, max_num_seqs=2)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_pause_that_keeps_loses_repeats_and_invents_no_token_at_any_step(ledger_folder: Path, overlap: bool) -> None:
    for step in range(1, 12):

        async def body(world: World, step: int = step) -> None:
            clients = some_clients(5)
            tasks = await streaming(world, *clients, step=step)
            pausing = await begun(world, world.engine.pause(mode="keep"))
            world.loop.release(f"step {step}")
            kept = (await pausing).kept
            before = {client.name: len(client.tokens) for client in clients}
            await world.loop.wait_settled()
            assert before == {client.name: len(client.tokens) for client in clients}, "nothing runs under a granted pause"
            await world.engine.resume()
            await asyncio.gather(*tasks)
            assert set(kept) == {client.name for client in clients if before[client.name] < 8}
            assert [client.tokens for client in clients] == [client.truth for client in clients]

        run(ledger_folder, body, overlap=overlap)


def test_a_wait_lets_what_was_preempted_run_to_its_end(ledger_folder: Path) -> None:
    """R11: a preempted request waits like one that never began, and is not one."""

    async def body(world: World) -> None:
        clients = [Client(f"r{number}", prompt_of(number, 12), 20) for number in range(3)]
        tasks = await streaming(world, *clients, step=1)
        step, waiting = 1, world.engine._core.world.by_state["admitted"]
        while not any(request.begun for request in waiting.values()):
            world.loop.hold(f"step {step + 1}")
            world.loop.release(f"step {step}")
            await world.loop.wait_settled()
            step += 1
        pausing = await begun(world, world.engine.pause(mode="wait"))
        world.loop.release(f"step {step}")
        done = await pausing
        assert (done.kept, done.aborted) == ((), ())
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body, num_kv_blocks=17)


def test_all_sequences_of_a_request_are_kept_or_aborted_together_and_named_once(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        from quiesce.engine.sampling_params import SamplingParams

        async def ask(name: str) -> Any:
            params = SamplingParams(n=3, max_tokens=6, temperature=1.0, seed=4, ignore_eos=True)
            return [output async for output in world.engine.generate(prompt_of(1, 5), params, request_id=name)][-1]

        alone = await ask("alone")
        world.loop.hold("step 9")
        asked = await begun(world, ask("kept"))
        pausing = await begun(world, world.engine.pause(mode="keep"))
        world.loop.release("step 9")
        assert (await pausing).kept == ("kept",)
        await world.engine.resume()
        outcome = await asked
        assert [child.token_ids for child in outcome.outputs] == [child.token_ids for child in alone.outputs]
        world.loop.hold("step 16")
        asked = await begun(world, ask("gone"))
        pausing = await begun(world, world.engine.pause(mode="abort"))
        world.loop.release("step 16")
        assert (await pausing).aborted == ("gone",)
        assert {child.finish_reason for child in (await asked).outputs} == {"abort"}

    run(ledger_folder, body)


def test_a_pause_is_answered_after_the_terminals_it_caused(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(6)
        tasks = await streaming(world, *clients, step=4)
        world.loop.release("step 4")
        await world.engine.pause(mode="abort")
        assert not world.engine.request_ids(), "every stream has its terminal"
        await asyncio.gather(*tasks)

    for seed in range(8):
        run(ledger_folder, body, loop=DeterministicLoop(POS(seed), adversarial=True, timely=True))


def test_a_client_can_abort_and_disconnect_while_it_is_frozen(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(3)
        tasks = await streaming(world, *clients, step=4)
        world.loop.release("step 4")
        await world.engine.pause(mode="keep")
        assert (await world.engine.abort("r0")).aborted == ("r0",)
        tasks[1].cancel()
        await world.loop.wait_settled()
        assert world.engine.status().requests == {"running": 1}
        await world.engine.resume()
        await asyncio.wait(tasks)
        assert clients[2].tokens == clients[2].truth
        clients[0].assert_history_is_legal()

    run(ledger_folder, body)


# ---- tokens -------------------------------------------------------------------------------------------------------------------


def test_the_engine_runs_again_when_the_last_owner_lets_go(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.pause(mode="keep", owner="a")
        again = await engine.pause(mode="keep", owner="a")
        assert not again.changed
        await engine.pause(mode="wait", owner="b")
        assert dict(engine.status().pause_owners) == {"a": "keep", "b": "wait"}
        assert (await engine.resume(owner="a")).state == "paused"
        assert not (await engine.resume(owner="a")).changed, "nothing is held under this name"
        assert (await engine.resume(owner="b")).state == "running"
        assert not (await engine.resume(owner="b")).changed
        assert not await engine.is_paused()

    run(ledger_folder, body)


def test_a_hold_may_strengthen_and_never_weakens(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        world.loop.release("step 4")
        assert set((await engine.pause(mode="keep")).kept) == {"r0", "r1"}
        stronger = await engine.pause(mode="abort")
        assert set(stronger.aborted) == {"r0", "r1"}
        assert stronger.changed
        weaker = await engine.pause(mode="keep")
        assert (weaker.changed, engine.status().pause_owners["user"], engine.status().admission) == (False, "abort", "reject")
        await engine.resume()
        await asyncio.gather(*tasks)

    run(ledger_folder, body)


def test_the_strongest_hold_rules_whoever_has_it(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.pause(mode="keep", owner="a")
        assert engine.status().admission == "queue"
        queued = await begun(world, world.ask(Client("queued", prompt_of(0, 4), 3)))
        await engine.pause(mode="wait", owner="b")
        assert engine.status().admission == "reject"
        assert engine.status().requests == {"received": 1}, "it stays queued"
        await engine.resume(owner="b")
        assert engine.status().admission == "queue"
        await engine.resume(owner="a")
        assert (await queued).tokens == (await queued).truth

    run(ledger_folder, body)


def test_wait_cannot_rise_over_frozen_requests(ledger_folder: Path) -> None:
    """R3: somebody has been told that nothing runs."""

    async def body(world: World) -> None:
        engine = world.engine
        clients = some_clients(2)
        tasks = await streaming(world, *clients, step=4)
        world.loop.release("step 4")
        await engine.pause(mode="keep", owner="a")
        for call in (engine.pause(mode="wait", owner="b"), engine.sleep(mode="wait"), engine.begin_weight_update(mode="wait")):
            with pytest.raises(errors.TransitionConflict, match="resume the listed owners"):
                await call
        assert dict(engine.status().pause_owners) == {"a": "keep"}, "a refusal changes nothing"
        await engine.resume(owner="a")
        await asyncio.gather(*tasks)
        assert [client.tokens for client in clients] == [client.truth for client in clients]

    run(ledger_folder, body)


def test_a_hold_with_a_time_to_live_ends_by_itself(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        await engine.pause(mode="keep", ttl=5)
        await engine.pause(mode="keep", owner="b", ttl=9)
        asked = asyncio.ensure_future(world.ask(Client("r", prompt_of(0, 4), 3)))
        await asyncio.sleep(6)
        assert dict(engine.status().pause_owners) == {"b": "keep"}
        await asyncio.sleep(2)
        assert engine.status().engine == "paused"
        await asyncio.sleep(2)
        assert engine.status().engine == "running"
        assert (await asked).tokens == (await asked).truth
        await engine.pause(ttl=5)
        await engine.pause()
        await asyncio.sleep(20)
        assert engine.status().engine == "paused", "the later call holds without an end"
        await engine.resume()
        await engine.pause(ttl=5)
        await engine.resume()
        await engine.pause()
        await asyncio.sleep(20)
        assert engine.status().engine == "paused", "the end of a hold that was let go ends no later one"
        await engine.resume()

    run(ledger_folder, body)


def test_a_time_to_live_that_ends_before_the_drain_does_supersedes_the_pause(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = some_clients(1)
        tasks = await streaming(world, *clients, step=4)
        pausing = await begun(world, world.engine.pause(mode="wait", ttl=5))
        await asyncio.sleep(6)
        with pytest.raises(errors.TransitionConflict) as caught:
            await pausing
        assert caught.value.superseded_by == "ttl"
        assert world.engine.status().engine == "running"
        world.loop.release("step 4")
        await asyncio.gather(*tasks)
        assert clients[0].tokens == clients[0].truth

    run(ledger_folder, body)


# ---- names and values ----------------------------------------


def test_vllms_names_do_the_same(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        engine = world.engine
        assert (await engine.pause_generation(wait_for_inflight_requests=True)).state == "paused"
        assert dict(engine.status().pause_owners) == {"user": "wait"}
        assert await engine.is_paused()
        assert (await engine.resume_generation()).state == "running"
        await engine.pause_generation()
        assert dict(engine.status().pause_owners) == {"user": "abort"}
        await engine.resume_generation()

    run(ledger_folder, body)


@pytest.mark.parametrize(
    "asked",
    [{"mode": "stop"}, {"mode": None}, {"owner": ""}, {"owner": "sleep"}, {"owner": 3}, {"clear_cache": 1}, {"timeout": -1},
     {"timeout": float("nan")}, {"ttl": 0}, {"ttl": "1"}, {"operation_id": ""}, {"operation_id": 7}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_happens(ledger_folder: Path, asked: dict[str, Any]) -> None:
    async def body(world: World) -> None:
        with pytest.raises(errors.InvalidRequest, match=next(iter(asked))):
            await world.engine.pause(**asked)
        assert world.engine.status().engine == "running"

    run(ledger_folder, body)
