"""`quiesce serve --backend process`: how a server and its core end, each by itself and together."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from quiesce.stateful.processes import children_of
from tests.engine.link.cores import SOON_S
from tests.engine.server.served import PATIENCE_S, Served
from tests.engine.server.test_end_of_service import Listener, wait_for_refusal


def core_of(server: Served) -> int:
    """The one process that the server has started."""
    (core,) = children_of(server.process.pid)
    return core


def wait_until_gone(pid: int) -> None:
    """Its process descriptor says so."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], PATIENCE_S)[0], f"process {pid} is still there"
    finally:
        os.close(descriptor)


def folders(server: Served) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"quiesce-{server.process.pid}-*"))


def how_it_broke(listener: Listener) -> tuple[int, bool]:
    """The last event of a stream whose core has died: its code, and whether it may be asked again."""
    frames = listener.rest()
    assert frames[-2]["choices"][0]["finish_reason"] == "error"
    error = frames[-1]["error"]
    return error["code"], error.get("retryable", False)


def test_sigterm_drains_and_both_processes_end() -> None:
    with Served("--backend", "process", "--shutdown-timeout", "60") as server:
        core = core_of(server)
        listener = Listener(server, 1000)
        server.process.send_signal(signal.SIGTERM)
        assert wait_for_refusal(server).headers["Retry-After"]
        assert listener.to_the_end() == "length"
        assert server.process.wait(PATIENCE_S) == 0
        wait_until_gone(core)
        assert folders(server) == []
    assert "Traceback" not in "".join(server.errors)


@pytest.mark.parametrize("hangs", [False, True], ids=["a core that runs", "a core that hangs"])
def test_a_server_that_is_killed_leaves_no_core(hangs: bool) -> None:
    with Served("--backend", "process") as server:
        core = core_of(server)
        listener = Listener(server, 1900)
        if hangs:
            os.kill(core, signal.SIGSTOP)
        server.process.kill()
        with pytest.raises(httpx.HTTPError):
            listener.to_the_end()
        server.process.wait(PATIENCE_S)
        if hangs:
            os.kill(core, signal.SIGCONT)
        wait_until_gone(core)
        assert folders(server) == []


def test_a_core_that_is_killed_shows_in_health_within_a_second_and_ends_every_stream() -> None:
    with Served("--backend", "process") as server:
        listener = Listener(server, 1900)
        began_s = time.monotonic()
        os.kill(core_of(server), signal.SIGKILL)
        assert how_it_broke(listener) == (500, False)
        assert server.get("/health").status_code == 503
        assert time.monotonic() - began_s < SOON_S
        assert server.post("/v1/completions", {"prompt": "hi", "max_tokens": 1}).status_code == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 1


def test_a_core_that_is_killed_is_followed_by_another_where_that_was_asked_for() -> None:
    with Served("--backend", "process", "--max-restarts", "2") as server:
        core = core_of(server)
        listener = Listener(server, 1900)
        os.kill(core, signal.SIGKILL)
        assert how_it_broke(listener) == (503, True)
        refused = server.post("/v1/completions", {"prompt": "hi", "max_tokens": 1})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        deadline_s = time.monotonic() + PATIENCE_S
        while server.get("/ready").status_code != 200:
            assert time.monotonic() < deadline_s
        assert core_of(server) != core
        answer = server.post("/v1/completions", {"prompt": "hi", "max_tokens": 3, "ignore_eos": True})
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert server.lifecycle()["epoch"] > 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
