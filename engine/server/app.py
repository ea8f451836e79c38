"""Puts the server together: routes, errors, limits, and the engine's life as the application's own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import quiesce
from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.server import completions, control, facts, page, projections, tokens
from quiesce.engine.server.host import Host
from quiesce.engine.server.limits import Limits
from quiesce.engine.server.replies import envelope, error_body
from quiesce.engine.server.serving import ClientGone
from quiesce.engine.server.settings import Settings

logger = logging.getLogger("quiesce.server")
RETRY_AFTER_S = 1
"""What `Retry-After` says where the engine does not know better."""


def make_app(engine: AsyncEngine, settings: Settings | None = None) -> FastAPI:
    """The application for one engine. Starting it starts the engine, ending it shuts the engine down."""
    host = Host(engine, settings or Settings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        try:
            yield
        finally:
            await engine.shutdown(timeout=host.settings.shutdown_timeout_s)

    app = FastAPI(title="Quiesce", version=quiesce.__version__, lifespan=lifespan)
    app.state.host = host
    for module in (completions, tokens, projections, facts, page):
        app.include_router(module.router(host))
    if host.settings.has_admin and host.settings.admin_port is None:
        app.include_router(control.router(host))
    return _guarded(app, host.settings)


def make_admin_app(host: Host) -> FastAPI:
    """The control routes alone, for a port of their own; the engine's life is the other application's."""
    app = FastAPI(title="Quiesce, control", version=quiesce.__version__)
    app.include_router(control.router(host))
    app.include_router(projections.router(host))
    return _guarded(app, host.settings)


def _guarded(app: FastAPI, settings: Settings) -> FastAPI:
    """With limits on what is sent, and every error in one envelope."""
    app.add_middleware(Limits, settings=settings)
    app.exception_handler(errors.EngineError)(_engine_error)
    app.exception_handler(RequestValidationError)(_malformed)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(ClientGone)(_gone)
    app.exception_handler(Exception)(_defect)
    return app


async def _engine_error(request: Request, error: Exception) -> Response:
    found = cast("errors.EngineError", error)
    headers = {}
    if found.http_status in (429, 503):
        headers["Retry-After"] = str(max(1, round(getattr(found, "retry_after", None) or RETRY_AFTER_S)))
    return JSONResponse(error_body(found), found.http_status, headers)


async def _malformed(request: Request, error: Exception) -> Response:
    first = cast("RequestValidationError", error).errors()[0]
    where = [str(part) for part in first.get("loc", ()) if part != "body"]
    return JSONResponse(
        envelope(400, f"{'.'.join(where) or 'body'}: {first.get('msg', 'cannot be read')}", where[0] if where else None), 400
    )


async def _http_error(request: Request, error: Exception) -> Response:
    found = cast("HTTPException", error)
    return JSONResponse(envelope(found.status_code, str(found.detail)), found.status_code, found.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the access log does


async def _defect(request: Request, error: Exception) -> Response:
    logger.error("%s %s", request.method, request.url.path, exc_info=error)
    return JSONResponse(envelope(500, "a defect of the server; its log says more"), 500)
