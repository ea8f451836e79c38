"""Defects that a review of the running engine found, each as the story that showed it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from quiesce.engine import errors
from quiesce.engine.blocking import Engine, _Call
from quiesce.engine.config import EngineConfig
from quiesce.engine.sampling_params import SamplingParams
from quiesce.stateful.driver import ledger_config, ledger_engine
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.scenario import Client, World, prompt_of, run


def test_what_a_faulty_request_computed_is_never_found_by_another(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.device.fault_at.add((1, 0))
        bad = await world.ask(Client("bad", prompt_of(1, 30), 4))
        assert bad.finish_reason == "error"
        good = await world.ask(Client("good", prompt_of(1, 30), 4))
        assert good.outputs[-1].num_cached_tokens == 0
        assert good.tokens == good.truth

    run(ledger_folder, body)


def test_a_step_is_not_blamed_for_the_time_it_waited_behind_another(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 1")
        world.loop.hold("step 2")
        asked = asyncio.create_task(world.ask(Client("r", prompt_of(0, 4), 6)))
        await asyncio.sleep(15)
        world.loop.release("step 1")
        await asyncio.sleep(10)
        assert world.engine.status().engine == "running", "neither step took more than 20 seconds of its own"
        world.loop.release("step 2")
        client = await asked
        assert client.tokens == client.truth

    run(ledger_folder, body, step_timeout_s=20.0)


def test_a_sampled_row_without_a_token_fails_that_request_and_does_not_hang_it(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        run_step = world.device._run

        def forgets(step: object) -> object:
            output = run_step(step)  # type: ignore[arg-type]
            output.token_ids[0] = -1
            return output

        world.device._run = forgets  # type: ignore[method-assign, assignment]
        client = await world.ask(Client("r", prompt_of(0, 4), 6))
        assert client.finish_reason == "error"
        assert "no token" in (client.outputs[-1].error or "")
        assert world.engine.status().engine == "running"

    run(ledger_folder, body)


def test_an_engine_whose_core_died_says_failed(ledger_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder))
        await engine.start()
        core = engine._core
        core.fail = core.step = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
        with pytest.raises(errors.EngineDead, match="failed"):
            await World(loop, engine, device).ask(Client("r", prompt_of(0, 4), 3))
        status = engine.status()
        assert (status.engine, status.admission) == ("failed", "reject")

    with caplog.at_level(logging.CRITICAL, "quiesce"):
        loop.run(main())


def test_a_gated_engine_looks_at_each_new_request_once(ledger_folder: Path) -> None:
    loop = DeterministicLoop()

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(ledger_folder))
        loop.hold("load")
        world = World(loop, engine, device)
        fires = 0
        fire = engine._core.gate.fire

        def counting(*args: object) -> object:
            nonlocal fires
            fires += 1
            return fire(*args)  # type: ignore[arg-type]

        engine._core.gate.fire = counting  # type: ignore[method-assign, assignment]
        tasks = [asyncio.create_task(world.ask(Client(f"r{number}", prompt_of(number, 4), 2))) for number in range(200)]
        await loop.wait_settled()
        assert fires < 10 * len(tasks), "the work of a pass grows with what is new, not with what waits"
        loop.release("load")
        for client in await asyncio.gather(*tasks):
            assert client.tokens == client.truth
        await engine.shutdown()

    loop.run(main())


def test_the_monitor_forgets_what_is_over(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        await world.ask_all([Client(f"r{number}", prompt_of(number, 4), 4) for number in range(20)])
        await world.loop.wait_settled()
        assert not [record for record in world.engine._core.monitor._last if record.machine in ("request", "step")]
        assert not [record for record in world.engine._front.monitor._last if record.machine == "stream"]

    run(ledger_folder, body)


def test_a_shutdown_lists_what_it_aborted_and_not_what_clients_aborted(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        world.loop.hold("step 3")
        tasks = [asyncio.create_task(world.ask(Client(name, prompt_of(0, 4), 40))) for name in ("mine", "yours")]
        await world.loop.wait_settled()
        stopping = asyncio.create_task(world.engine.shutdown(timeout=5))
        await world.loop.wait_settled()
        await world.engine.abort("mine")
        await asyncio.sleep(6)
        world.loop.release("step 3")
        assert (await stopping).aborted == ("yours",)
        await asyncio.gather(*tasks)

    run(ledger_folder, body)


def test_calls_of_other_threads_end_when_a_blocking_engine_is_shut_down() -> None:
    for _ in range(3):
        engine = Engine(EngineConfig(num_threads=1, num_kv_blocks=200))
        ended: list[str] = []

        def call(engine: Engine = engine, ended: list[str] = ended) -> None:
            try:
                while True:
                    engine.abort("nobody")
            except errors.EngineDead as error:
                ended.append(str(error))

        threads = [threading.Thread(target=call, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        engine.shutdown(timeout=0)
        for thread in threads:
            thread.join(60)
        assert len(ended) == 4


LEAVES = """
from quiesce import Engine, EngineConfig, SamplingParams
import threading, time
engine = Engine(EngineConfig(num_threads=1, num_kv_blocks=200))
work = threading.Thread(target=lambda: engine.generate([5], SamplingParams(max_tokens=2000, ignore_eos=True), use_tqdm=False), daemon=True)
work.start()
while engine.status().steps_in_flight == 0:
    time.sleep(0.001)
"""


def test_a_process_that_leaves_without_a_shutdown_exits_cleanly() -> None:
    began = time.monotonic()
    left = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=110, check=False)
    assert (left.returncode, left.stderr) == (0, ""), left.stderr
    assert time.monotonic() - began < 50


def test_stop_tokens_are_told_once_each_and_bounded() -> None:
    assert SamplingParams(stop_token_ids=[5, 6, 5]).stop_token_ids == (5, 6)
    with pytest.raises(errors.InvalidRequest, match="stop_token_ids"):
        SamplingParams(stop_token_ids=list(range(1000)))


@pytest.mark.parametrize("posted", [True, False], ids=["right after it was posted", "before it was posted"])
def test_a_blocking_call_interrupted_at_any_instruction_leaves_no_work(posted: bool) -> None:
    """Ctrl+C between posting a batch and waiting for it used to leave the batch running."""
    loop = asyncio.new_event_loop()
    began: list[bool] = []

    async def work() -> None:
        began.append(True)
        await asyncio.Event().wait()

    coroutine = work()
    call = _Call(loop, coroutine)
    if posted:
        loop.call_soon_threadsafe(call.start)
    call.give_up()
    loop.run_until_complete(asyncio.sleep(0.01))
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED, "it has ended, or was never begun"
    assert asyncio.all_tasks(loop) == set()
    assert call.answer.cancelled() is posted
    loop.close()
