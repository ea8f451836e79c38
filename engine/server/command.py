"""`quiesce serve`: the server, and what signals do to it.

The first SIGTERM or Ctrl+C closes the gate for good: new work is refused, what runs has until the deadline, every answer is delivered,
then the process ends with 0. A second one aborts what is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence

import uvicorn
from fastapi import FastAPI

from quiesce.engine.api import AsyncEngine
from quiesce.engine.server.app import make_admin_app, make_app
from quiesce.engine.server.flags import configured
from quiesce.engine.server.settings import Settings

logger = logging.getLogger("quiesce.server")


def run(asked: argparse.Namespace) -> int:
    """Serves until a signal ends it. The exit status: 0, or 1 if the engine failed.

    Raises:
        InvalidRequest: a flag's value cannot be.
    """
    config, settings = configured(asked)
    engine = AsyncEngine(config)
    return asyncio.run(_Serving(engine, settings).run())


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError: the address cannot be taken."""
    found = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # asyncio sends at once (TCP_NODELAY) only on sockets that say they are TCP: without, every small answer waits 40 ms for an ACK
    return socket.socket(found.family, found.type, socket.IPPROTO_TCP, found.detach())


class _Server(uvicorn.Server):
    """uvicorn, but that signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Serving:
    """The applications on their sockets. Raises OSError: an address cannot be taken."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.app = make_app(engine, settings)
        sockets = [listening(settings.host, settings.port)]
        self.servers = [self._server(self.app)]
        if settings.admin_port is not None:
            sockets.append(listening(settings.host, settings.admin_port))
            self.servers.append(self._server(make_admin_app(self.app.state.host)))
        self.sockets = sockets
        self._ending: asyncio.Task[None] | None = None
        self._aborting: asyncio.Task[object] | None = None

    def _server(self, app: FastAPI) -> _Server:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_keep_alive=30, h11_max_incomplete_event_size=self.settings.max_header_bytes,
            ws="none", server_header=False,
        )  # fmt: skip
        return _Server(config)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        pairs = zip(self.servers, self.sockets, strict=True)
        serving = [asyncio.ensure_future(server.serve(sockets=[listening])) for server, listening in pairs]
        await self._say_where(serving)
        await asyncio.gather(*serving)
        if self._ending is not None:
            await self._ending
        return 1 if self.engine.status().engine == "failed" else 0

    async def _say_where(self, serving: Sequence[asyncio.Future[None]]) -> None:
        """Prints the addresses once they answer: port 0 is a free port that nobody knows yet."""
        while not all(server.started for server in self.servers):
            if any(one.done() for one in serving):
                return
            await asyncio.sleep(0.01)
        for listening in self.sockets:
            host, port = listening.getsockname()[:2]
            print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    def _signalled(self, number: int) -> None:
        if self._ending is None:
            logger.warning(
                "%s: refusing new work; what runs has %g s", signal.Signals(number).name, self.settings.shutdown_timeout_s
            )
            self.app.state.host.is_stopping = True
            self._ending = asyncio.ensure_future(self._end())
        else:
            logger.warning("%s again: aborting what is left", signal.Signals(number).name)
            self._aborting = asyncio.ensure_future(self.engine.shutdown(timeout=0))

    async def _end(self) -> None:
        try:
            await self.engine.shutdown(timeout=self.settings.shutdown_timeout_s)
        finally:
            for server in self.servers:
                server.should_exit = True
            sys.stderr.flush()
