"""`quiesce serve` in a process of its own, with an HTTP client, and ways to wait for what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx

from quiesce.stateful.server_process import PATIENCE_S, SMALL, ServerProcess

__all__ = ["PATIENCE_S", "SMALL", "Served", "until"]


class Served(ServerProcess):
    """The process, its address and a client."""

    def __init__(self, *flags: str) -> None:
        super().__init__(*flags)
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()
        super().__exit__(kind, error, trace)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def lifecycle(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/lifecycle").json()
        return found


@contextmanager
def until(server: Served, *wanted: str) -> Iterator[None]:
    """Leaves once transitions whose lines have these words have happened, one after the other, after the block was entered."""
    with server.client.stream("GET", "/lifecycle/events") as opened:
        lines = opened.iter_lines()
        next(lines)
        yield
        waited_for = list(wanted)
        for line in lines:
            if all(word in line for word in waited_for[0].split()):
                del waited_for[0]
                if not waited_for:
                    return
    raise AssertionError(f"the events ended before {wanted!r}")
