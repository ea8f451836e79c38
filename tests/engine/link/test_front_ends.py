"""Several front ends on one core: their keys never meet, each leaves by itself, and one that dies is missed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from quiesce.engine import errors
from quiesce.engine.answers import Ack, Answer, Reply, Tokens
from quiesce.engine.api import AsyncEngine
from quiesce.engine.inbox import NOBODY, Abort, AwaitReady, Control, Detach, Submit
from quiesce.engine.link import codec
from quiesce.engine.link.fronts import Front, owned, sort
from quiesce.engine.link.letters import MAX_KEY, STREAM_BITS, Welcome
from quiesce.engine.messages import TokenLogprobs
from quiesce.engine.sampling_params import SamplingParams
from quiesce.spec.vocabulary import OperationKind
from tests.engine.link.cores import PATIENCE_S, PROMPT, asks, config, core_of, kill, last, nothing_left, until

ROOT = Path(__file__).resolve().parents[3]


def front(number: int) -> Front:
    return Front(number, b"", 1.0, 0.0)


def test_a_front_ends_keys_become_the_cores_and_come_back_as_its_own() -> None:
    fronts = {number: front(number) for number in (1, 2)}
    submit = owned(Submit(7, "r", np.array([1], np.int32), SamplingParams(), 0), fronts[2])
    assert isinstance(submit, Submit)
    assert submit.stream == 2 << STREAM_BITS | 7
    control = owned(Control(8, OperationKind.pause), fronts[1])
    assert isinstance(control, Control)
    sort([Ack(submit.stream, 3), Reply(control.call, True)], fronts)
    assert fronts[2].answers == [Ack(7, 3)]
    assert fronts[1].answers == [Reply(8, True)]
    assert fronts[1].calls == set()


def test_tokens_go_to_whose_they_are_with_their_logprobs() -> None:
    fronts = {number: front(number) for number in (1, 3)}
    streams = np.array([3 << STREAM_BITS | 5, 1 << STREAM_BITS | 5, 2 << STREAM_BITS | 5, 3 << STREAM_BITS | 6])
    logprobs = {place: TokenLogprobs((place,), (0.0,), (1,)) for place in range(4)}
    sort([Tokens(streams, np.arange(4, dtype=np.int32), np.arange(4) + 10, 0, logprobs)], fronts)
    told: dict[int, list[Any]] = {}
    for number, one in fronts.items():
        (tokens,) = one.answers
        assert isinstance(tokens, Tokens)
        told[number] = [
            tokens.streams.tolist(),
            tokens.token_ids.tolist(),
            [tokens.logprobs[n].token_ids[0] for n in sorted(tokens.logprobs)],
        ]
    assert told == {1: [[5], [11], [1]], 3: [[5, 6], [10, 13], [0, 3]]}


def test_what_is_for_a_front_end_that_is_gone_is_nobodys() -> None:
    fronts = {2: front(2)}
    answers: list[Answer] = [Ack(1 << STREAM_BITS | 1, 0), Reply(1 << STREAM_BITS | 2), Reply(NOBODY)]
    sort([*answers, Tokens(np.array([1 << STREAM_BITS | 1]), np.zeros(1, np.int32), np.zeros(1, np.int64), 0, {})], fronts)
    assert fronts[2].answers == []


@pytest.mark.parametrize("event", [
    Abort(0), Abort(-1), Abort(MAX_KEY + 1), Abort(1, MAX_KEY + 1), Abort(1, -1), AwaitReady(0), Detach(0), Control(-1, OperationKind.pause),
    Submit(0, "r", np.array([1], np.int32), SamplingParams(), 0), Submit(MAX_KEY + 1, "r", np.array([1], np.int32), SamplingParams(), 0),
])  # fmt: skip
def test_keys_that_no_front_end_has_are_nobodys(event: Any) -> None:
    assert owned(event, front(1)) is None


def test_a_call_that_nobody_waits_for_stays_nobodys() -> None:
    event = owned(Control(NOBODY, OperationKind.shutdown), front(9))
    assert isinstance(event, Control)
    assert event.call == NOBODY


@asynccontextmanager
async def two(**changes: Any) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    """The front end that has started a core, and a further one."""
    async with nothing_left(), asyncio.timeout(PATIENCE_S):
        async with AsyncEngine(config(**changes)) as mine, AsyncEngine(config(connect=mine.address)) as theirs:
            yield mine, theirs
        assert mine.status().balanced


def test_two_front_ends_share_a_core_and_one_that_leaves_takes_its_own_requests_along() -> None:
    async def main() -> None:
        async with two() as (mine, theirs):
            assert core_of(mine) == core_of(theirs)
            one, other = await asyncio.gather(
                *(last(each.generate(PROMPT, asks(20), request_id="same")) for each in (mine, theirs))
            )
            assert one.token_ids == other.token_ids
            assert len(one.token_ids) == 20
            assert (await theirs.pause(owner="them")).state == "paused"
            await until(lambda: mine.status().pause_owners == {"them": "abort"}, mine)
            assert (await mine.resume(owner="them")).state == "running"
            async with (
                aclosing(theirs.generate(PROMPT, asks(1900))) as outputs,
                aclosing(mine.generate(PROMPT, asks(1500))) as stay,
            ):
                await anext(outputs)
                await anext(stay)
                assert (theirs.status().streams, mine.status().streams, mine.status().live) == (1, 1, 2)
                await theirs.shutdown()
                assert (await last(outputs)).finish_reason == "abort"
                assert theirs.status().engine == "stopped"
                assert (await last(stay)).finish_reason == "length"
            assert mine.status().engine == "running"

    asyncio.run(main())


def test_every_front_end_learns_that_the_core_has_died() -> None:
    async def main() -> None:
        async with two() as (mine, theirs):
            async with aclosing(theirs.generate(PROMPT, asks(1500))) as outputs:
                await anext(outputs)
                kill(mine)
                assert (await last(outputs)).finish_reason == "error"
            assert theirs.status().engine == "failed"
            await until(lambda: mine.status().engine == "failed", mine)

    asyncio.run(main())


@contextmanager
def another_process(address: str, lease_s: float) -> Iterator[subprocess.Popen[str]]:
    """A further front end elsewhere, whose stream has begun."""
    command = [sys.executable, "-m", "tests.engine.link.attached", address, str(lease_s)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "streaming\n"
            yield other
        finally:
            other.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_the_requests_of_a_front_end_that_dies_are_aborted_when_its_lease_is_over(number: int) -> None:
    async def main() -> None:
        async with nothing_left(), asyncio.timeout(PATIENCE_S), AsyncEngine(config()) as engine:
            with another_process(str(engine.address), 1.0) as other:
                os.kill(other.pid, number)
                await until(lambda: engine.status().finished.get("abort", 0) == 1, engine)
                assert engine.status().live == 0
            assert (await last(engine.generate(PROMPT, asks(5)))).finish_reason == "length"

    asyncio.run(main())


def test_a_core_that_is_gone_by_the_time_its_welcome_is_read_is_a_dead_one(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"ipc://{tmp_path}/answers")

        async def main() -> None:
            async with asyncio.timeout(PATIENCE_S):
                engine = AsyncEngine(config(connect=f"ipc://{tmp_path}"))
                starting = asyncio.ensure_future(engine.start())
                address, _ = await asyncio.to_thread(router.recv_multipart)
                welcome = Welcome(1, gone.pid, engine.config.model, engine.model.max_model_len)
                router.send_multipart([address, codec.encode(1, 0, welcome)])
                with pytest.raises(errors.EngineDead):
                    await starting
                assert engine.status().engine == "failed"

        asyncio.run(main())


def test_an_address_is_a_private_folder_of_this_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for address, why in (
        (str(tmp_path), "must be"),
        (f"ipc://{tmp_path}/none", "there is no core"),
        (f"ipc://{tmp_path}", "others"),
    ):
        with pytest.raises(errors.InvalidRequest, match=f"^connect: .*{why}"):
            AsyncEngine(config(connect=address))
    for changes in ({"backend": "thread"}, {"max_restarts": 1}):
        with pytest.raises(errors.InvalidRequest, match=r"^connect"):
            config(connect="ipc:///x", **changes)


def test_a_front_end_of_another_model_or_of_no_core_is_told_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    async def main() -> None:
        async with nothing_left(), asyncio.timeout(PATIENCE_S):
            async with AsyncEngine(config()) as engine:
                with pytest.raises(errors.InvalidRequest, match=r"^connect: the core serves"):
                    await AsyncEngine(config(connect=engine.address, max_model_len=1000)).start()
            with pytest.raises(errors.EngineDead) as dead:
                await AsyncEngine(config(connect=f"ipc://{tmp_path}", heartbeat_timeout_s=0.2)).start()
            assert "no sign of life" in str(dead.value.__cause__)

    asyncio.run(main())
