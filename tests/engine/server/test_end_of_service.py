"""How a server ends: SIGTERM drains, a second one aborts, and nobody is left without an answer."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.engine.server.served import PATIENCE_S, Served


class Listener:
    """A client of a stream: what it was told."""

    def __init__(self, server: Served, max_tokens: int) -> None:
        body = {"prompt": "hi", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
        self._opened = server.client.stream("POST", "/v1/completions", json=body)
        self._lines = self._opened.__enter__().iter_lines()
        self.frames = [self._frame()]

    def _frame(self) -> dict[str, Any] | None:
        line = next(line for line in self._lines if line)
        if line == "data: [DONE]":
            return None
        frame: dict[str, Any] = json.loads(line.removeprefix("data: "))
        return frame

    def rest(self) -> list[dict[str, Any]]:
        """Listens to the end; every frame that came."""
        while (frame := self._frame()) is not None:
            self.frames.append(frame)
        self._opened.__exit__(None, None, None)
        return [frame for frame in self.frames if frame is not None]

    def to_the_end(self) -> str:
        """Listens to the end; how it ended."""
        return str(self.rest()[-1]["choices"][0]["finish_reason"])

    @property
    def num_frames(self) -> int:
        return len(self.frames)


def test_sigterm_refuses_new_work_and_lets_what_runs_end_with_0() -> None:
    with Served("--shutdown-timeout", "60") as server:
        listener = Listener(server, 1200)
        server.process.send_signal(signal.SIGTERM)
        refused = wait_for_refusal(server)
        assert refused.headers["Retry-After"]
        assert server.get("/health").status_code == 200
        assert server.get("/ready").status_code == 503
        assert listener.to_the_end() == "length"
        assert server.process.wait(PATIENCE_S) == 0


def wait_for_refusal(server: Served) -> httpx.Response:
    """The first refusal after the signal; until it has arrived calls are served."""
    while True:
        answer = server.post("/v1/completions", {"prompt": "hi", "max_tokens": 1})
        if answer.status_code != 200:
            assert answer.status_code == 503
            return answer


def test_a_second_sigterm_aborts_what_is_left_and_every_client_has_its_end() -> None:
    with Served("--shutdown-timeout", "600") as server, ThreadPoolExecutor(3) as pool:
        listeners = [Listener(server, 1900) for _ in range(3)]
        server.process.send_signal(signal.SIGTERM)
        wait_for_refusal(server)
        server.process.send_signal(signal.SIGTERM)
        ends = list(pool.map(Listener.to_the_end, listeners))
        assert server.process.wait(PATIENCE_S) == 0
    assert set(ends) <= {"abort", "length"}
    assert "abort" in ends


def test_a_deadline_of_nothing_aborts_at_once() -> None:
    with Served("--shutdown-timeout", "0") as server:
        listener = Listener(server, 1900)
        server.process.send_signal(signal.SIGINT)
        assert listener.to_the_end() == "abort"
        assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in "".join(server.errors)


def test_a_server_that_is_killed_closes_its_clients_connections() -> None:
    with Served() as server:
        listener = Listener(server, 1900)
        server.process.kill()
        with pytest.raises(httpx.HTTPError):
            listener.to_the_end()
