"""A client that vanishes, at each named moment, streaming and not: its request ends, its blocks come home, the books balance."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce.stateful.http_call import Call, asked
from tests.engine.server.served import PATIENCE_S, Served
from tests.engine.server.storm import CONTROL

LONG = {"max_tokens": 1900, "ignore_eos": True}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", {"prompt": "hi", **LONG}),
    "two prompts, two each": ("/v1/completions", {"prompt": ["hi", "you"], "n": 2, **LONG}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], **LONG}),
    "token ids": ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": LONG}),
    "generate": ("/generate", {"text": "hi", "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True}}),
}
SEQUENCES = {"two prompts, two each": 4}
BEFORE = ("half a request", "unanswered")
CASES = [
    (name, moment, streams)
    for name in CALLS
    for moment in ((*BEFORE, "running", "told", *CONTROL) if name == "completion" else ("running", "told"))
    for streams in (True, False)
    if (streams or moment != "told")
    and (name == "completion" or streams == (moment == "told"))  # only who streams is told before the end
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("--enable-admin", "--dtype", "float32", "--max-num-batched-tokens", "64") as served:
        settled(served)
        held = served.held()
        yield served
        assert_holds(served, held)  # looked at once: it takes the server as long as a test


def settled(server: Served) -> dict[str, Any]:
    """The status once nobody is in the engine any more."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := server.lifecycle())["requests"] or found["streams"] or found["steps_in_flight"]:
        assert time.monotonic() < deadline_s, found
    return found


def assert_holds(server: Served, expected: dict[str, int]) -> None:
    """The process comes to hold this and no more."""
    deadline_s = time.monotonic() + PATIENCE_S
    settled(server)  # our own connection is open, before as after
    while (found := server.held()) != expected:
        assert time.monotonic() < deadline_s, (found, expected)
        settled(server)


async def running(server: Served, count: int) -> None:
    """Returns once so many sequences run."""
    while (await asked(server.url, "/lifecycle"))[1]["requests"].get("running", 0) < count:
        pass


async def vanish(server: Served, name: str, streams: bool, moment: str) -> None:
    """Calls, waits for the moment, and drops the connection; takes back what an operator did for it."""
    path, body = CALLS[name]
    call = Call(server.url, path, {**body, "stream": streams})
    await call.send(0.5 if moment == "half a request" else 1.0)
    if moment not in BEFORE:
        await running(server, SEQUENCES.get(name, 1))
    if moment == "told":
        assert await call.begin() == 200
        assert await anext(call.events())
    if moment not in CONTROL:
        call.drop()
        return
    close, open_ = CONTROL[moment]
    closing = asyncio.create_task(asked(server.url, close, {}))
    if moment != "draining":
        assert (await closing)[0] == 200
    call.drop()
    assert (await closing)[0] == 200, "what drained had nobody to wait for any more"
    while (await asked(server.url, "/lifecycle"))[1]["requests"]:
        pass  # it ends where it is: in a paused engine, too
    assert (await asked(server.url, open_, {}))[0] == 200


@pytest.mark.parametrize(("name", "moment", "streams"), CASES)
def test_a_client_that_vanishes_leaves_nothing_behind(server: Served, name: str, moment: str, streams: bool) -> None:
    before = settled(server)
    asyncio.run(vanish(server, name, streams, moment))
    after = settled(server)
    assert (after["engine"], after["pause_owners"], after["blocks"]["held"], after["blocks"]["fenced"]) == ("running", {}, 0, 0)
    accepted = after["accepted"] - before["accepted"]
    aborted = after["finished"]["abort"] - before["finished"]["abort"]
    assert accepted == aborted
    assert accepted in ((0, SEQUENCES.get(name, 1)) if moment in BEFORE else (SEQUENCES.get(name, 1),))
    assert after["accepted"] == sum(after["finished"].values())


def test_a_reader_of_events_that_vanishes_is_not_told_any_more(server: Served) -> None:
    settled(server)
    held = server.held()

    async def scene() -> None:
        readers = [Call(server.url, "/lifecycle/events") for _ in range(20)]
        for reader in readers:
            await reader.send()
            assert await reader.begin() == 200
            assert "status" in await anext(reader.events())
        assert server.held()["generators"] == held["generators"] + len(readers)
        for reader in readers:
            reader.drop()

    asyncio.run(scene())
    assert_holds(server, held)


def counted(server: Served, name: str) -> float:
    line = next(line for line in server.get("/metrics").text.splitlines() if line.startswith(f"quiesce:{name} "))
    return float(line.split()[1])


def test_who_vanishes_while_the_prompt_is_read_was_told_no_token_and_the_books_balance(server: Served) -> None:
    """The engine is frozen in the middle of a prompt of thirty chunks."""
    before, tokens, prompts = (
        settled(server),
        counted(server, "generation_tokens_total"),
        counted(server, "prompt_tokens_total"),
    )

    async def scene() -> dict[str, Any]:
        call = Call(server.url, "/v1/completions", {"prompt": [7] * 1900, "max_tokens": 5})
        await call.send()
        await running(server, 1)
        assert (await asked(server.url, "/pause?mode=keep&clear_cache=false", {}))[0] == 200
        frozen: dict[str, Any] = (await asked(server.url, "/lifecycle"))[1]
        call.drop()
        while (await asked(server.url, "/lifecycle"))[1]["requests"]:
            pass
        assert (await asked(server.url, "/resume", {}))[0] == 200
        return frozen

    frozen = asyncio.run(scene())
    after = settled(server)
    assert frozen["blocks"]["held"] > 0
    assert after["finished"]["abort"] == before["finished"]["abort"] + 1
    assert (counted(server, "generation_tokens_total"), counted(server, "prompt_tokens_total")) == (tokens, prompts)
    assert (after["blocks"]["held"], after["blocks"]["fenced"]) == (0, 0)
    assert after["accepted"] == sum(after["finished"].values())


def test_a_client_that_vanishes_while_the_server_drains_lets_it_end() -> None:
    with Served("--shutdown-timeout", "600") as server:

        async def scene() -> None:
            call = Call(server.url, "/v1/completions", {"prompt": "hi", "stream": True, **LONG})
            await call.send()
            assert await call.begin() == 200
            server.process.send_signal(signal.SIGTERM)
            while (await asked(server.url, "/lifecycle"))[1]["engine"] == "running":
                pass
            call.drop()

        asyncio.run(scene())
        assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in "".join(server.errors)
