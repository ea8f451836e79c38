"""What clients of the peers ask about a server before they use it: models, versions, load. Read from `Status` and the configuration."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

import quiesce
from quiesce.engine.server.host import Host


def router(host: Host) -> APIRouter:
    """The routes, for one engine."""
    routes = APIRouter(tags=["status"])
    started = int(time.time())

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {
            "id": host.name, "object": "model", "created": started, "owned_by": "quiesce", "root": str(host.engine.config.model),
            "max_model_len": host.engine.model.max_model_len,
        }  # fmt: skip
        return {"object": "list", "data": [card]}

    @routes.get("/version")
    async def version() -> dict[str, str]:
        return {"version": quiesce.__version__}

    @routes.get("/load")
    async def load() -> dict[str, int]:
        return {"server_load": host.status().live}

    @routes.get("/v1/loads")
    async def loads() -> dict[str, Any]:
        status = host.status()
        running = status.requests.get("running", 0)
        return {
            "loads": [
                {
                    "dp_rank": 0,
                    "num_running_reqs": running,
                    "num_waiting_reqs": status.live - running,
                    "num_total_reqs": status.live,
                }
            ]
        }

    @routes.get("/model_info")
    async def model_info() -> dict[str, Any]:
        return {
            "model_path": str(host.engine.config.model),
            "is_generation": True,
            "weight_version": str(host.status().weights[0]),
        }

    @routes.get("/weight_info")
    async def weight_info() -> dict[str, str]:
        return {"weight_version": str(host.status().weights[0])}

    @routes.get("/get_world_size")
    async def world_size() -> dict[str, int]:
        return {"world_size": 1}

    @routes.get("/is_paused")
    async def is_paused() -> dict[str, bool]:
        return {"is_paused": await host.engine.is_paused()}

    @routes.get("/is_sleeping")
    async def is_sleeping() -> dict[str, bool]:
        return {"is_sleeping": await host.engine.is_sleeping()}

    @routes.get("/v1/is_paused")
    async def is_paused_there() -> dict[str, Any]:
        """FastDeploy's shape."""
        return {"status": "success", "result": {"is_paused": await host.engine.is_paused()}}

    return routes
