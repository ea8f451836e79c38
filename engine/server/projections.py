"""Three questions kept apart: alive (`/health`), admitting (`/ready`), in which state (`/lifecycle`). All are read from `Status`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, Final

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from quiesce.engine.metrics import CONTENT_TYPE, expose
from quiesce.engine.server.host import Host
from quiesce.engine.server.replies import envelope
from quiesce.engine.server.serving import EventStream, Frame
from quiesce.statemachine.trace import Trace

DEAD: Final = ("failed", "stopped")
MOST_RECENT: Final = 1_000
"""Transitions of the past that a reader may ask for."""
MOST_BEHIND: Final = 10_000
"""Transitions that a slow reader of `/lifecycle/events` may be behind before it misses the oldest."""


def router(host: Host) -> APIRouter:
    """The routes, for one engine."""
    routes = APIRouter(tags=["status"])

    @routes.get("/health")
    async def health() -> Response:
        """Alive: 200 in every state but failed and stopped."""
        state = host.status().engine
        if state in DEAD:
            return JSONResponse(envelope(503, f"the engine is {state}", state=state), 503)
        return JSONResponse({"status": "sleeping" if await host.engine.is_sleeping() else "healthy", "state": state})

    @routes.get("/ready")
    async def ready() -> Response:
        """Admitting: 200 where a new call would be accepted and run."""
        status = host.status()
        if status.admission != "accept" or host.is_stopping:
            body = envelope(503, f"the engine is {status.engine}", state=status.engine, admission=status.admission)
            return JSONResponse(body, 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ready", "state": status.engine})

    @routes.get("/lifecycle")
    async def lifecycle() -> dict[str, Any]:
        """The whole status."""
        return host.lifecycle()

    @routes.get("/lifecycle/events")
    async def events(recent: int = Query(0, ge=0, le=MOST_RECENT)) -> EventStream:
        """Every transition from now on, as the trace has them; before them the status and, if asked for, the last ones that were."""
        return EventStream(_events(host, recent))

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(expose(host.engine), media_type=CONTENT_TYPE)

    return routes


async def _events(host: Host, recent: int) -> AsyncGenerator[Frame, None]:
    yield {"status": host.lifecycle()}
    feed = Feed(host.engine.trace)
    try:
        for entry in list(host.engine.trace.entries)[len(host.engine.trace.entries) - recent :] if recent else []:
            yield entry
        while True:
            for entry in await feed.next():
                yield entry
    finally:
        feed.close()


class Feed:
    """Transitions as they happen, for one reader on this loop. A reader that is too far behind is told how many it missed."""

    def __init__(self, trace: Trace) -> None:
        self._loop = asyncio.get_running_loop()
        self._entries: deque[dict[str, Any]] = deque(maxlen=MOST_BEHIND)
        self._num_missed = 0
        self._waiter: asyncio.Event = asyncio.Event()
        self.close = trace.watch(self._come)

    def _come(self, entry: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._add, entry)

    def _add(self, entry: dict[str, Any]) -> None:
        self._num_missed += len(self._entries) == MOST_BEHIND
        self._entries.append(entry)
        self._waiter.set()

    async def next(self) -> list[dict[str, Any]]:
        """What has happened since the last time; waits until something has."""
        await self._waiter.wait()
        self._waiter.clear()
        found = [{"missed": self._num_missed}] if self._num_missed else []
        found += self._entries
        self._entries.clear()
        self._num_missed = 0
        return found
