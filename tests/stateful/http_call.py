"""One HTTP call in a bare socket, so that it can end at any byte: hundreds of them fit in one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

DONE = "[DONE]"


class Call:
    """A POST, or a GET where there is no body. Whoever makes it closes it: `end` when it is over, `drop` to vanish."""

    def __init__(self, url: str, path: str, body: Any = None) -> None:
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port
        text = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        self.message = head.encode() + text
        self.status = 0
        self._writer: asyncio.StreamWriter | None = None
        self.headers: dict[str, str] = {}

    async def send(self, part: float = 1.0) -> None:
        """Connects and writes the request, or the first part of its bytes."""
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(self.message[: int(len(self.message) * part)])
        await self._writer.drain()

    async def begin(self) -> int:
        """Waits for the status and the headers of the answer.

        Raises:
            ConnectionError: the other end closes first.
        """
        self.status = int((await self._line()).split()[1])
        while line := (await self._line()).strip():
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        return self.status

    async def _line(self) -> str:
        line = await self._reader.readline()
        if not line:
            raise ConnectionResetError("the server closed the connection")
        return line.decode()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The server-sent events of the answer, up to the last. A chunk is one event: its size is on a line of its own, and skipped.

        Raises:
            ConnectionError: the other end closes before the last.
        """
        while (line := (await self._line()).strip()) != f"data: {DONE}":
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))

    async def body(self) -> Any:
        """The whole answer as JSON."""
        text = await self._reader.read()
        if self.headers.get("transfer-encoding") == "chunked":
            text = text.partition(b"\r\n")[2].rpartition(b"\r\n0\r\n")[0]
        return json.loads(text) if text.strip() else None

    async def end(self) -> None:
        """Closes the connection."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):  # the other end was first
                await self._writer.wait_closed()

    def drop(self) -> None:
        """Vanishes, whatever is still on its way."""
        if self._writer is not None:
            self._writer.transport.abort()


async def asked(url: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One call and its whole answer: the status, and the body if it is JSON."""
    call = Call(url, path, body)
    await call.send()
    try:
        await call.begin()
        return call.status, await call.body()
    finally:
        await call.end()
