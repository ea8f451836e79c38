"""The live page at `/`: one file, no build step, nothing from elsewhere. It shows `/lifecycle` and `/lifecycle/events`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse, JSONResponse, Response

from quiesce.engine.server.host import Host
from quiesce.engine.server.replies import envelope
from quiesce.spec import CATALOG
from quiesce.statemachine import graphviz

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
"""The page loads nothing, and speaks with nobody but its own server."""


def router(host: Host) -> APIRouter:
    """The routes, for one engine."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(_page(host), headers={"Content-Security-Policy": POLICY})

    @routes.get("/lifecycle/engine.svg")
    async def picture() -> Response:
        try:
            return Response(_picture(), media_type="image/svg+xml")
        except graphviz.ToolMissing as missing:
            return JSONResponse(envelope(501, str(missing)), 501)

    return routes


def _page(host: Host) -> str:
    machine = CATALOG.machines["engine"]
    facts = {
        "model": host.name, "states": [str(state) for state in machine.states], "admin": host.settings.has_admin and host.settings.admin_port is None,
        "meanings": {str(state): text for state, text in machine.meanings.items()},
    }  # fmt: skip
    text = json.dumps(facts).replace("<", "\\u003c")  # a model's name cannot end the script
    return Path(__file__).with_suffix(".html").read_text(encoding="utf-8").replace("FACTS;", f"{text};", 1)


@cache
def _picture() -> str:
    return graphviz.svg(graphviz.dot(CATALOG.machines["engine"]))
