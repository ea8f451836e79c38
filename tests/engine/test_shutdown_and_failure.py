"""How an engine ends: drained, aborted, or failed. Everybody is answered, nothing hangs, and the state says the truth."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from quiesce.engine import errors
from quiesce.engine.answers import Terminal
from quiesce.stateful.driver import assert_nothing_left, ledger_config, ledger_engine
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.scenario import Client, World, prompt_of, run


def test_shutdown_lets_what_runs_run_and_aborts_what_never_began(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 2")
        running = [Client(f"running-{number}", prompt_of(number, 4), 6) for number in range(2)]
        waiting = [Client(f"waiting-{number}", prompt_of(number, 4), 6) for number in range(3)]
        tasks = [asyncio.create_task(world.ask(client)) for client in running]
        await world.loop.wait_settled()
        tasks += [asyncio.create_task(world.ask(client)) for client in waiting]
        await world.loop.wait_settled()
        stopping = asyncio.create_task(world.engine.shutdown(timeout=60))
        await world.loop.wait_settled()
        status = world.engine.status()
        assert (status.engine, status.admission, status.pause_owners["shutdown"]) == ("draining", "reject", "wait")
        with pytest.raises(errors.Unavailable, match="draining; it is shutting down"):
            await world.ask(Client("late", prompt_of(9, 4), 1))
        world.loop.release("step 2")
        await asyncio.gather(*tasks)
        result = await stopping
        assert (result.state, result.changed) == ("stopped", True)
        for client in running:
            assert (client.finish_reason, client.tokens) == ("length", client.truth)
        for client in waiting:
            assert (client.finish_reason, client.tokens) == ("abort", []), "no token is ever invented"
        assert world.engine.status().rejected == 1

    run(ledger_folder, body, max_num_seqs=2)


def test_a_stopped_engine_waits_for_the_time_of_no_token(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        await world.engine.pause(ttl=50)
        await world.engine.shutdown(timeout=0)
        assert world.engine._core.operations.next_deadline_s() is None

    run(ledger_folder, body)


def test_the_deadline_aborts_what_is_left_with_its_tokens_so_far(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        client = Client("r", prompt_of(0, 5), 50)
        world.loop.hold("step 6")
        task = asyncio.create_task(world.ask(client))
        await world.loop.wait_settled()
        stopping = asyncio.create_task(world.engine.shutdown(timeout=5))
        await asyncio.sleep(4)
        assert world.engine.status().engine == "draining"
        await asyncio.sleep(2)
        await task
        assert client.finish_reason == "abort"
        assert 0 < len(client.tokens) < 50
        client.assert_history_is_legal()
        assert not stopping.done(), "the device is not idle: a step is in flight"
        assert world.engine.status().blocks.fenced > 0
        world.loop.release("step 6")
        await stopping

    run(ledger_folder, body)


def test_shutdown_with_timeout_zero_aborts_at_once_and_twice_is_once(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = [Client(f"r{number}", prompt_of(number, 4), 30) for number in range(6)]
        tasks = [asyncio.create_task(world.ask(client)) for client in clients]
        await world.loop.wait_idle()
        first, second = await asyncio.gather(world.engine.shutdown(timeout=0), world.engine.shutdown(timeout=30))
        assert first.state == second.state == "stopped"
        await asyncio.gather(*tasks)
        assert {client.finish_reason for client in clients} == {"abort"}
        third = await world.engine.shutdown()
        assert (third.state, third.changed) == ("stopped", False)
        with pytest.raises(errors.EngineDead):
            await world.ask(Client("late", prompt_of(0, 4), 1))
        with pytest.raises(errors.EngineDead):
            await world.engine.check_health()

    run(ledger_folder, body)


def test_requests_posted_while_loading_wait_and_are_served(ledger_folder: Path) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder))
        loop.hold("load")
        world = World(loop, engine, device)
        client = Client("early", prompt_of(0, 5), 4)
        task = asyncio.create_task(world.ask(client))
        await loop.wait_settled()
        assert (engine.status().engine, engine.status().admission) == ("starting", "queue")
        assert engine.status().requests == {"received": 1}
        loop.release("load")
        async with engine:
            await task
            assert client.tokens == client.truth

    loop.run(main())


def test_an_engine_without_weights_is_gated_alive_and_can_be_shut_down(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        status = world.engine.status()
        assert (status.engine, status.admission, status.weights[1]) == ("paused", "reject", "undefined")
        with pytest.raises(errors.Unavailable, match="paused"):
            await world.ask(Client("r", prompt_of(0, 4), 3))
        await world.engine.check_health()

    run(ledger_folder, body, load_format="empty")


def test_shutdown_while_loading_answers_who_waits(ledger_folder: Path) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder))
        loop.hold("load")
        client = Client("early", prompt_of(0, 5), 4)
        task = asyncio.create_task(World(loop, engine, device).ask(client))
        await loop.wait_settled()
        await engine.shutdown(timeout=5)
        await task
        assert (client.finish_reason, client.tokens) == ("abort", [])
        assert device.closed

    loop.run(main())


def test_a_start_overtaken_by_a_shutdown_says_so(ledger_folder: Path) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, _ = ledger_engine(loop, ledger_config(ledger_folder))
        loop.hold("load")
        starting = asyncio.create_task(engine.start())
        await loop.wait_settled()
        await engine.shutdown()
        with pytest.raises(errors.EngineDead, match="while loading"):
            await starting

    loop.run(main())


def test_a_fault_while_starting_raises_its_cause_and_answers_who_waits(ledger_folder: Path) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder))
        device.load_error = OSError("the disk is gone")
        client = Client("early", prompt_of(0, 5), 4)
        loop.hold("load")
        task = asyncio.create_task(World(loop, engine, device).ask(client))
        await loop.wait_settled()
        loop.release("load")
        with pytest.raises(OSError, match="the disk is gone"):
            await engine.start()
        await task
        assert client.finish_reason == "error"
        assert "the disk is gone" in (client.outputs[-1].error or "")
        assert engine.status().engine == "stopped"

    loop.run(main())


def test_a_step_that_fails_fails_the_engine_and_answers_everybody_with_their_tokens(
    ledger_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(world: World) -> None:
        world.device.fail_at[5] = RuntimeError("the device is on fire")
        clients = [Client(f"r{number}", prompt_of(number, 4), 12) for number in range(6)]
        await world.ask_all(clients)
        for client in clients:
            client.assert_history_is_legal()
            assert client.finish_reason == "error"
            assert "on fire" in (client.outputs[-1].error or "")
        assert any(client.tokens for client in clients)
        status = world.engine.status()
        assert (status.engine, status.admission, status.live, status.steps_in_flight) == ("failed", "reject", 0, 0)
        assert status.blocks.held == status.blocks.fenced == 0
        with pytest.raises(errors.EngineDead, match="failed"):
            await world.ask(Client("late", prompt_of(0, 4), 1))
        with pytest.raises(errors.EngineDead):
            await world.engine.check_health()

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        run(ledger_folder, body)


def test_a_step_that_never_lands_fails_the_engine_by_its_deadline(
    ledger_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 3")
        client = await world.ask(Client("r", prompt_of(0, 4), 12))
        assert client.finish_reason == "error"
        assert "did not land" in (client.outputs[-1].error or "")
        client.assert_history_is_legal()
        assert world.engine.status().engine == "failed"

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        run(ledger_folder, body, step_timeout_s=20.0)


def test_a_fault_in_one_requests_own_work_fails_that_request_alone(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.device.fault_at.add((3, 1))
        clients = [Client(f"r{number}", prompt_of(number, 4), 8) for number in range(3)]
        await world.ask_all(clients)
        reasons = sorted(str(client.finish_reason) for client in clients)
        assert reasons == ["error", "length", "length"]
        for client in clients:
            client.assert_history_is_legal()
            if client.finish_reason == "length":
                assert client.tokens == client.truth
            else:
                assert client.outputs[-1].error == "the ledger was told to fault"
        assert world.engine.status().engine == "running"

    run(ledger_folder, body)


def test_a_defect_in_the_core_fails_the_engine_and_still_answers(ledger_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(world: World) -> None:
        core = world.engine._core
        launch = core.device.launch

        def breaks(*args: object) -> None:
            core.device.launch = launch  # type: ignore[method-assign]
            raise ZeroDivisionError("a defect")

        core.device.launch = breaks  # type: ignore[method-assign, assignment]
        client = await world.ask(Client("r", prompt_of(0, 4), 8))
        assert client.finish_reason == "error"
        assert world.engine.status().engine == "failed"

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        run(ledger_folder, body)


def test_a_core_that_dies_without_a_word_resolves_every_stream_and_call(
    ledger_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder))
        await engine.start()
        world = World(loop, engine, device)
        loop.hold("step 4")
        client = Client("r", prompt_of(0, 4), 20)
        task = asyncio.create_task(world.ask(client))
        await loop.wait_settled()
        core = engine._core
        core.fail = core.step = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
        late = asyncio.create_task(world.ask(Client("late", prompt_of(1, 4), 3)))
        abort = asyncio.create_task(engine.abort("r"))
        await task
        assert client.finish_reason == "error"
        client.assert_history_is_legal()
        for call in (late, abort):
            with pytest.raises(errors.EngineDead):
                await call
        with pytest.raises(errors.EngineDead):
            await engine.check_health()
        await engine.shutdown()
        assert engine.request_ids() == ()

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        loop.run(main())


def test_tokens_that_do_not_add_up_are_told_as_an_error_and_never_hang(
    ledger_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S14 at the seam: the terminal says how many tokens there are; the stream compares."""

    async def body(world: World) -> None:
        core = world.engine._core
        deliver = core.deliver

        def lies(answers: object) -> None:
            kept = [answer for answer in answers.answers if not (isinstance(answer, Terminal) and answer.num_tokens != 3)]  # type: ignore[attr-defined]
            for answer in kept:
                if isinstance(answer, Terminal):
                    object.__setattr__(answer, "num_tokens", 2)
            deliver(answers)  # type: ignore[arg-type]

        core.deliver = lies
        client = await world.ask(Client("r", prompt_of(0, 4), 3))
        assert client.finish_reason == "error"
        assert "S14" in (client.outputs[-1].error or "")

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        run(ledger_folder, body)


def test_leaving_the_context_by_an_error_aborts_what_runs(ledger_folder: Path) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder))
        client = Client("r", prompt_of(0, 4), 50)
        task = asyncio.create_task(World(loop, engine, device).ask(client))

        async def leave() -> None:
            async with engine:
                await loop.wait_idle()
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await leave()
        await task
        assert client.finish_reason == "abort"
        assert_nothing_left(engine)

    loop.run(main())
