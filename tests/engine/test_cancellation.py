"""Cancellation, disconnects and aborts at every await point, which the loop finds by itself. Nothing may be left behind, ever."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.awaits import for_every_await
from quiesce.stateful.choices import POS
from quiesce.stateful.driver import assert_nothing_left, ledger_config, ledger_engine
from quiesce.stateful.loop import AT_CREATION, DeterministicLoop
from quiesce.stateful.reports import AnyTask
from quiesce.stateful.scenario import Client, World, prompt_of, run

Scenario = Callable[[DeterministicLoop], object]


def three_clients(folder: Path, **config: Any) -> Scenario:
    """A scenario in which the task "victim" may be cancelled anywhere, beside two clients that must get the truth."""

    def scenario(loop: DeterministicLoop) -> None:
        async def body(world: World) -> None:
            victim = Client("victim", prompt_of(0, 9), 7)
            others = [Client(f"other-{number}", prompt_of(number, 6), 6) for number in (1, 2)]
            task = asyncio.create_task(world.ask(victim), name="victim")
            await asyncio.gather(world.ask_all(others), asyncio.wait([task]))
            for client in (victim, *others):
                client.assert_history_is_legal()
            for client in others:
                assert client.tokens == client.truth
            if not task.cancelled():
                assert victim.finish_reason in ("length", "abort")

        run(folder, body, loop=loop, **config)

    return scenario


@pytest.mark.parametrize("config", [{}, {"overlap": False}, {"num_kv_blocks": 16}, {"max_num_seqs": 1}], ids=str)
def test_a_client_cancelled_at_any_await_leaves_nothing(ledger_folder: Path, config: dict[str, Any]) -> None:
    num_awaits = for_every_await(three_clients(ledger_folder, **config), "victim", from_creation=True)
    assert num_awaits >= 3


def test_a_client_cancelled_at_any_await_leaves_nothing_when_schedules_are_adversarial(ledger_folder: Path) -> None:
    for seed in range(3):
        strategy_of_seed = seed  # bound now: the factory is called for each await
        for_every_await(
            three_clients(ledger_folder),
            "victim",
            make_loop=lambda seed=strategy_of_seed: DeterministicLoop(POS(seed), adversarial=True, timely=True),  # type: ignore[misc]
        )


def test_an_abort_landing_at_any_await_of_the_client_ends_it_and_only_it(ledger_folder: Path) -> None:
    def scenario(loop: DeterministicLoop) -> None:
        async def body(world: World) -> None:
            worlds[:] = [world]
            client, other = Client("r", prompt_of(0, 9), 7), Client("other", prompt_of(1, 6), 6)
            task = asyncio.create_task(world.ask(client), name="victim")
            await asyncio.gather(world.ask(other), task)
            await asyncio.gather(*aborts)
            client.assert_history_is_legal()
            assert client.finish_reason in ("abort", "length")
            assert other.tokens == other.truth

        aborts.clear()
        run(ledger_folder, body, loop=loop)

    def abort(_victim: AnyTask) -> None:
        aborts.append(asyncio.get_running_loop().create_task(worlds[0].engine.abort("r"), name="abort"))

    worlds: list[World] = []
    aborts: list[AnyTask] = []
    assert for_every_await(scenario, "victim", intrude=abort) >= 3


def test_an_abort_call_cancelled_at_any_await_still_aborts(ledger_folder: Path) -> None:
    def scenario(loop: DeterministicLoop) -> None:
        async def body(world: World) -> None:
            client = Client("r", prompt_of(0, 9), 40)
            streaming = asyncio.create_task(world.ask(client))
            await world.loop.wait_idle()
            task = asyncio.create_task(world.engine.abort("r"), name="aborting")
            await asyncio.wait([task])
            await streaming
            if not task.cancelled():
                assert task.result().aborted == ("r",)
            client.assert_history_is_legal()
            assert client.finish_reason == "abort", "the call was posted before its first await"

        run(ledger_folder, body, loop=loop)

    assert for_every_await(scenario, "aborting") >= 1


def test_an_abort_that_crosses_the_end_of_the_engine_finds_nobody(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        client = Client("r", prompt_of(0, 9), 40)
        streaming = asyncio.create_task(world.ask(client, stop_after=None))
        await world.loop.wait_idle()
        world.loop.hold("deliver")
        stopping = asyncio.create_task(world.engine.shutdown(timeout=0))
        await world.loop.wait_settled()
        aborting = asyncio.create_task(world.engine.abort("r"))
        await world.loop.wait_settled()
        world.loop.release("deliver")
        assert (await aborting).not_found == ("r",)
        await asyncio.gather(streaming, stopping)
        assert client.finish_reason == "abort"

    run(ledger_folder, body)


def test_a_shutdown_cancelled_at_any_await_still_stops_the_engine(ledger_folder: Path) -> None:
    def scenario(loop: DeterministicLoop) -> None:
        async def main() -> None:
            engine, device = ledger_engine(loop, ledger_config(ledger_folder))
            await engine.start()
            world = World(loop, engine, device)
            client = asyncio.create_task(world.ask(Client("r", prompt_of(0, 5), 6)))
            await loop.wait_idle()
            task = asyncio.create_task(engine.shutdown(timeout=5), name="stopping")
            await asyncio.wait([task])
            done = await client
            done.assert_history_is_legal()
            await loop.wait_settled()
            assert engine.status().engine == "stopped"
            again = await engine.shutdown()
            assert not again.changed
            assert_nothing_left(engine)

        loop.run(main())

    assert for_every_await(scenario, "stopping", from_creation=False) >= 2


def test_a_start_cancelled_at_any_await_can_be_shut_down(ledger_folder: Path) -> None:
    def scenario(loop: DeterministicLoop) -> None:
        async def main() -> None:
            engine, _ = ledger_engine(loop, ledger_config(ledger_folder))
            task = asyncio.create_task(engine.start(), name="starting")
            await asyncio.wait([task])
            await engine.shutdown(timeout=0)
            assert engine.status().engine == "stopped"
            assert_nothing_left(engine)

        loop.run(main())

    assert for_every_await(scenario, "starting") >= 1


def test_a_client_that_hangs_up_after_any_number_of_outputs_leaves_nothing(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        clients = [Client(f"r{number}", prompt_of(number, 5 + number), 12) for number in range(10)]
        await asyncio.gather(*(world.ask(client, stop_after=1 + number) for number, client in enumerate(clients)))
        for client in clients:
            client.assert_history_is_legal()

    run(ledger_folder, body)


def test_a_generator_that_is_dropped_aborts_its_request() -> None:
    """On the stock event loop, because it is that loop's hook which closes what the garbage collector finds."""

    async def main() -> None:
        async with AsyncEngine(EngineConfig(num_threads=1)) as engine:
            stream = engine.generate([5, 6, 7], SamplingParams(max_tokens=2000, ignore_eos=True))
            await anext(stream)
            del stream
            gc.collect()
            async with asyncio.timeout(20):
                while engine.request_ids():  # noqa: ASYNC110  there is no event to wait for: the client is gone
                    await asyncio.sleep(0)
            assert engine.status().finished["abort"] == 1

    asyncio.run(main())


def test_a_generator_that_was_never_iterated_submits_nothing(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        stream = world.engine.generate(prompt_of(0, 5))
        await world.loop.wait_settled()
        await stream.aclose()
        assert world.engine.status().accepted == 0

    run(ledger_folder, body)


def test_a_cancel_before_the_opening_is_answered_is_remembered_and_acted_on_then(ledger_folder: Path) -> None:
    """R36, and LMDeploy #4655: a client that leaves before it is known to be accepted leaves no orphan."""

    async def body(world: World) -> None:
        world.loop.hold("deliver")
        task = asyncio.create_task(world.ask(Client("r", prompt_of(0, 5), 20)))
        await world.loop.wait_settled()
        assert world.engine.status().accepted == 1, "the core has accepted it; the front end does not know yet"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert world.engine.request_ids() == ("r",), "remembered until the outcome is known"
        world.loop.release("deliver")
        await world.loop.wait_settled()
        assert world.engine.request_ids() == ()
        assert sum(world.engine.status().finished.values()) == 1

    run(ledger_folder, body)


def test_cancelled_before_it_ran_a_client_was_never_accepted(ledger_folder: Path) -> None:
    loop = DeterministicLoop()
    loop.cancel_at("victim", AT_CREATION)
    three_clients(ledger_folder)(loop)


def test_a_disconnect_logs_one_info_line_and_no_traceback(ledger_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(world: World) -> None:
        await world.ask(Client("r", prompt_of(0, 5), 20), stop_after=2)

    with caplog.at_level(logging.INFO, "quiesce"):
        run(ledger_folder, body)
    lines = [record for record in caplog.records if "disconnected" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].levelno == logging.INFO
    assert not any(record.exc_info for record in caplog.records)
