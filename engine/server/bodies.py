"""JSON as it comes from clients: what the answer could not be written with is refused where it comes in."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response


def read_json(text: bytes) -> Any:
    """What the text says.

    Raises:
        ValueError: it is no JSON, nests too deeply, or has half a surrogate pair, which no text can be written with (JSON can escape one).
    """
    try:
        found = json.loads(text, parse_constant=_refused)
        if b"\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is no character") from None
    return found


def _refused(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


class JsonRequest(Request):
    """A request whose body FastAPI reads with `read_json`."""

    async def json(self) -> Any:
        try:
            return read_json(await self.body())
        except ValueError as error:
            raise HTTPException(400, f"body: is no JSON: {error}") from None


class JsonRoute(APIRoute):
    """A route whose requests are such."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return read
