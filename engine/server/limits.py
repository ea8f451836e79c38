"""Bounds on what a client may send, held before anything is parsed."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quiesce.engine.server.replies import envelope
from quiesce.engine.server.settings import Settings, is_bearer


class Limits:
    """Refuses bodies and headers beyond the limits, and generating calls without the API key where there is one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.settings.max_body_bytes:
                raise HTTPException(413, self._too_long())
            return message

        await self.app(scope, counted, send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> JSONResponse | None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self.settings.max_header_bytes:
            return JSONResponse(envelope(431, "the headers are too long"), 431)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.settings.max_body_bytes:
            return JSONResponse(envelope(413, self._too_long()), 413)
        key = self.settings.api_key
        if key is not None and _generates(scope["path"]) and not is_bearer(headers.get("authorization"), key):
            return JSONResponse(envelope(401, "Authorization: Bearer with the server's API key is needed"), 401)
        return None

    def _too_long(self) -> str:
        return f"the body is longer than {self.settings.max_body_bytes} bytes"


def _generates(path: str) -> bool:
    return path.startswith("/v1/") or path in ("/generate", "/inference/v1/generate", "/tokenize", "/detokenize")
