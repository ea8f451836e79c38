"""A client's connection and the life of its requests: whoever leaves first ends the other.

A client that disconnects cancels what is awaited for it, at whatever await that is; the engine's generator aborts its request when it
is closed. Nothing here knows about engine states.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quiesce.engine.outputs import RequestOutput

T = TypeVar("T")
Outputs = AsyncGenerator[RequestOutput, None]
Frame = Mapping[str, Any] | str
"""One event: JSON, or a word such as `[DONE]`."""


class ClientGone(Exception):
    """The client left before its answer was ready; there is nobody to tell."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Awaits the work while the client is there.

    Raises:
        ClientGone: the client left first; the work was cancelled and has ended.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def merged(requests: Sequence[Outputs]) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """The outputs of several requests as they come, each with its request's place. Closing it closes them all."""
    waiting = {_next(outputs): place for place, outputs in enumerate(requests)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: waiting[task]):
                place = waiting.pop(task)
                output = task.result()
                if not output.finished:
                    waiting[_next(requests[place])] = place
                yield place, output
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for outputs in requests:
            await outputs.aclose()


def _next(outputs: Outputs) -> asyncio.Task[RequestOutput]:
    async def one() -> RequestOutput:
        return await anext(outputs)

    return asyncio.ensure_future(one())


async def finals(requests: Sequence[Outputs]) -> list[RequestOutput]:
    """The last output of each request."""
    found: dict[int, RequestOutput] = {}
    async with contextlib.aclosing(merged(requests)) as outputs:
        async for place, output in outputs:
            found[place] = output
    return [found[place] for place in range(len(requests))]


class EventStream(Response):
    """Server-sent events. Ends when the events do, or when the client leaves; either way their source is closed."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Frame, None], close: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send))
        except (ClientGone, OSError):  # a socket that breaks while we write is a client that left
            pass
        finally:
            await self._events.aclose()
            if self._close is not None:
                await self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for frame in self._events:
            await send({"type": "http.response.body", "body": _encoded(frame), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _encoded(frame: Frame) -> bytes:
    text = frame if isinstance(frame, str) else json.dumps(frame, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


async def stream(
    request: Request,
    requests: Sequence[Outputs],
    frames: Callable[[AsyncIterator[tuple[int, RequestOutput]]], AsyncGenerator[Frame, None]],
) -> EventStream:
    """Starts the requests, and answers with their events once the first output has come: until then a refusal is a status of its own.

    Raises:
        EngineError: refused.
        ClientGone: the client left.
    """
    outputs = merged(requests)
    try:
        first = await unless_gone(request.receive, _first(outputs))
    except BaseException:
        await outputs.aclose()
        raise
    return EventStream(frames(_again(first, outputs)), outputs.aclose)


async def _first(outputs: AsyncGenerator[tuple[int, RequestOutput], None]) -> tuple[int, RequestOutput]:
    return await anext(outputs)


async def _again(
    first: tuple[int, RequestOutput], rest: AsyncIterator[tuple[int, RequestOutput]]
) -> AsyncIterator[tuple[int, RequestOutput]]:
    yield first
    async for output in rest:
        yield output
