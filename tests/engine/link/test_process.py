"""A core in a process of its own: the same engine, and what becomes of everybody when the process dies."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.link.process import LAST_WORDS_MS
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.tiny import checkpoint_folder
from quiesce.statemachine import trace
from tests.engine.link.cores import (
    PATIENCE_S,
    PROMPT,
    SOON_S,
    asks,
    born,
    config,
    core_of,
    kill,
    last,
    leftovers,
    nothing_left,
    until,
)


def live(body: Callable[[AsyncEngine], Awaitable[Any]], **changes: Any) -> Any:
    """Runs a scenario on an engine whose core is a process; afterwards nothing of it is left."""

    async def main() -> Any:
        async with nothing_left(), asyncio.timeout(PATIENCE_S):
            async with AsyncEngine(config(**changes)) as engine:
                result = await body(engine)
            status = engine.status()
            assert status.balanced
            assert status.streams == status.sessions == status.live == 0
            assert engine.request_ids() == ()
            return result

    return asyncio.run(main())


async def on_thread(max_tokens: int) -> RequestOutput:
    async with AsyncEngine(config(backend="thread")) as engine:
        return await last(engine.generate(PROMPT, asks(max_tokens, logprobs=2, prompt_logprobs=1)))


def test_a_process_gives_the_tokens_the_logprobs_and_the_control_results_that_a_thread_gives(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine) -> None:
        mine, theirs = await last(engine.generate(PROMPT, asks(12, logprobs=2, prompt_logprobs=1))), await on_thread(12)
        assert mine.outputs == theirs.outputs
        assert mine.prompt_logprobs == theirs.prompt_logprobs
        assert engine.status().measured.generation_tokens == 12
        assert (await engine.pause()).state == engine.status().engine == "paused"
        with pytest.raises(errors.Unavailable):
            await last(engine.generate(PROMPT))
        assert (await engine.resume()).state == "running"
        digest = await engine.weights_checksum()
        assert (await engine.sleep()).freed_bytes > 0
        with pytest.raises(errors.TransitionConflict, match="wake_up") as refused:
            await engine.begin_weight_update()
        assert refused.value.allowed
        assert (await engine.wake_up()).changed
        assert await engine.weights_checksum() == digest
        assert (await last(engine.generate(PROMPT, asks(12)))).token_ids == mine.token_ids

    path = tmp_path / "trace.ndjson"
    live(body, trace_path=path)
    written = {(entry.get("machine"), entry.get("event")) for entry in trace.read(path)}
    assert {("link", "connect"), ("stream", "call"), ("request", "admit"), ("engine", "pause")} <= written


def test_sessions_aborts_and_clients_that_leave_work_as_with_a_thread() -> None:
    async def body(engine: AsyncEngine) -> None:
        session = await engine.open_session()
        first = await last(engine.generate(PROMPT, asks(4), session_id=session.id))
        second = await last(engine.generate([7], asks(4), session_id=session.id))
        assert second.prompt_token_ids == (*PROMPT, *first.token_ids, 7)
        async with aclosing(engine.generate(PROMPT, asks(1500), request_id="long")) as outputs:
            await anext(outputs)
            assert (await engine.abort(["long", "nobody"])).aborted == ("long",)
            assert (await last(outputs)).finish_reason == "abort"
        async with aclosing(engine.generate(PROMPT, asks(1500), request_id="left")) as outputs:
            await anext(outputs)
        await until(lambda: not engine.request_ids(), engine)
        with pytest.raises(errors.InvalidRequest, match="text"):
            await last(engine.generate(PROMPT, request_id="\ud800"))
        assert await engine.close_session(session.id)

    live(body)


def test_a_core_that_is_killed_answers_every_stream_and_every_call_at_once() -> None:
    async def body(engine: AsyncEngine) -> None:
        async with aclosing(engine.generate(PROMPT, asks(1500))) as outputs:
            before = await anext(outputs)
            draining = asyncio.ensure_future(engine.pause(mode="wait"))
            await until(lambda: engine.status().engine == "draining", engine)
            began_s = time.monotonic()
            kill(engine)
            with pytest.raises(errors.EngineDead):
                await draining
            output = await last(outputs)
            assert time.monotonic() - began_s < SOON_S
        assert output.finish_reason == "error"
        assert output.token_ids[: len(before.token_ids)] == before.token_ids
        assert output.error is not None
        assert "SIGKILL" in output.error
        assert not output.retryable
        assert engine.status().engine == "failed"
        with pytest.raises(errors.EngineDead):
            await last(engine.generate(PROMPT))
        with pytest.raises(errors.EngineDead):
            await engine.check_health()

    live(body)


def test_a_new_core_is_started_once_everybody_is_answered_and_sessions_outlive_the_old_one() -> None:
    async def body(engine: AsyncEngine) -> None:
        session = await engine.open_session()
        turn = await last(engine.generate(PROMPT, asks(6), session_id=session.id))
        old, epoch = core_of(engine), engine.status().epoch
        async with aclosing(engine.generate([8], asks(1500), session_id=session.id)) as outputs:
            await anext(outputs)
            kill(engine)
            output = await last(outputs)
        assert (output.finish_reason, output.retryable) == ("error", True)
        with pytest.raises(errors.Unavailable) as refused:
            await last(engine.generate(PROMPT))
        assert refused.value.retry_after
        await engine.start()
        assert core_of(engine) != old
        assert engine.status().epoch > epoch
        again = await last(engine.generate([8], asks(3), session_id=session.id))
        assert again.prompt_token_ids == (*PROMPT, *turn.token_ids, 8)
        kill(engine)
        await until(lambda: engine.status().engine == "failed", engine)

    live(body, max_restarts=1)


def test_a_core_that_hangs_is_killed_and_everybody_is_answered() -> None:
    async def body(engine: AsyncEngine) -> None:
        async with aclosing(engine.generate(PROMPT, asks(1500))) as outputs:
            await anext(outputs)
            pid = core_of(engine)
            kill(engine, signal.SIGSTOP)
            output = await last(outputs)
        assert output.finish_reason == "error"
        assert output.error is not None
        assert "no sign of life" in output.error
        await engine.shutdown()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    live(body, heartbeat_timeout_s=1.0)


def test_an_engine_that_fails_is_replaced_where_that_is_asked_for() -> None:
    async def body(engine: AsyncEngine) -> None:
        output = await last(engine.generate(PROMPT, asks(1500)))  # its first step is already too slow
        assert (output.finish_reason, output.retryable) == ("error", True)
        await engine.start()
        assert engine.status().engine == "running"
        output = await last(engine.generate(PROMPT, asks(1500)))
        assert (output.finish_reason, output.retryable) == ("error", False)
        assert engine.status().engine == "failed"

    live(body, step_timeout_s=1e-7, max_restarts=1)


def test_a_loop_that_is_closed_without_a_shutdown_leaves_no_core() -> None:
    before = leftovers()
    engine = AsyncEngine(config(heartbeat_timeout_s=0.5))
    asyncio.run(engine.start())
    core = os.pidfd_open(core_of(engine))
    try:
        assert select.select([core], [], [], PATIENCE_S)[0]
    finally:
        os.close(core)
    (supervisor,) = (thread for thread in threading.enumerate() if thread.name == "quiesce-supervisor")
    supervisor.join(PATIENCE_S)
    assert leftovers() == before


def test_a_core_that_dies_while_it_is_started_is_an_outcome_of_the_start() -> None:
    async def main() -> None:
        async with nothing_left(), asyncio.timeout(PATIENCE_S):
            engine = AsyncEngine(config())
            starting = asyncio.ensure_future(engine.start())
            waiting = asyncio.ensure_future(last(engine.generate(PROMPT)))
            os.kill(await born(engine), signal.SIGKILL)
            with pytest.raises(errors.EngineDead):
                await starting
            with pytest.raises(errors.EngineDead):
                await waiting
            assert engine.status().engine == "failed"

    asyncio.run(main())


def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        async with nothing_left(), asyncio.timeout(PATIENCE_S):
            engine = AsyncEngine(config())
            starting = asyncio.ensure_future(engine.start())
            await born(engine)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            await engine.shutdown()
            assert engine.status().engine == "stopped"

    asyncio.run(main())


def test_what_keeps_a_core_from_starting_is_told_by_name_and_no_other_is_started(tmp_path: Path) -> None:
    async def main() -> None:
        async with nothing_left(), asyncio.timeout(PATIENCE_S):
            folder = shutil.copytree(checkpoint_folder("small"), tmp_path / "model")
            engine = AsyncEngine(config(model=str(folder), max_restarts=3))
            (folder / "config.json").unlink()
            with pytest.raises(errors.InvalidRequest, match=r"config\.json"):
                await engine.start()
            assert engine.status().engine == "failed"

    asyncio.run(main())


def test_a_shutdown_waits_for_what_runs_and_a_second_one_is_nothing_new() -> None:
    async def body(engine: AsyncEngine) -> None:
        async with aclosing(engine.generate(PROMPT, asks(200))) as outputs:
            await anext(outputs)
            stopping = asyncio.ensure_future(engine.shutdown(timeout=PATIENCE_S))
            assert (await last(outputs)).finish_reason == "length"
        assert (await stopping).state == "stopped"
        assert not (await engine.shutdown()).changed
        with pytest.raises(errors.EngineDead):
            await last(engine.generate(PROMPT))

    live(body, max_restarts=2)


def test_a_device_of_the_caller_stays_with_a_thread() -> None:
    with pytest.raises(errors.InvalidRequest, match="backend"):
        AsyncEngine(config(), make_device=lambda config, model: CpuDevice(config, model.info, model.num_blocks))


def test_a_queue_that_is_full_refuses_whoever_is_too_many() -> None:
    async def body(engine: AsyncEngine) -> None:
        kill(engine, signal.SIGSTOP)  # nothing is acknowledged now
        waiting = [asyncio.ensure_future(last(engine.generate(PROMPT, asks(1)))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(errors.QueueFull):
            await last(engine.generate(PROMPT))
        kill(engine, signal.SIGCONT)
        assert [output.finish_reason for output in await asyncio.gather(*waiting)] == ["length"] * 3

    live(body, max_queue=3)


def test_last_words_leave_time_for_the_answers() -> None:
    assert LAST_WORDS_MS / 1e3 < 0.25
