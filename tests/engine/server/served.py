"""A server as a user starts it: `quiesce serve` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from quiesce.engine.tiny import checkpoint_folder

SMALL = str(checkpoint_folder("small"))
PATIENCE_S = 120


class Served:
    """The process, its address and a client."""

    def __init__(self, *flags: str) -> None:
        command = [
            sys.executable,
            "-m",
            "quiesce.engine.cli",
            "serve",
            SMALL,
            "--port",
            "0",
            "--served-model-name",
            "small",
            *flags,
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), f"no address: {''.join(self.errors)}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors += self.process.stderr.readlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def lifecycle(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/lifecycle").json()
        return found


@contextmanager
def until(server: Served, wanted: str) -> Iterator[None]:
    """Leaves once a transition whose line has these words has happened after the block was entered."""
    with server.client.stream("GET", "/lifecycle/events") as opened:
        lines = opened.iter_lines()
        next(lines)
        yield
        for line in lines:
            if all(word in line for word in wanted.split()):
                return
    raise AssertionError(f"the events ended before {wanted!r}")
