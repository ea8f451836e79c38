"""The control routes of vLLM, SGLang, LMDeploy, FastDeploy and Ray Serve, as one table: route, verb, arguments, reply.

A row's verb is a call of `AsyncEngine` by name, or a function of `engine/server/verbs.py` where a dialect's call is several of ours.
What a call could not do is an error with its status; nothing answers 200 without its effect. Every reply says, in headers, which state
the engine is in now and whether the call changed anything.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from quiesce.engine.outputs import Transition
from quiesce.engine.server import verbs
from quiesce.engine.server.arguments import (
    Take,
    arguments_of,
    described,
    flag,
    mapping,
    names,
    seconds,
    tags,
    take,
    text,
    version,
    whole,
)
from quiesce.engine.server.host import Host
from quiesce.engine.server.replies import envelope
from quiesce.engine.server.settings import is_bearer

logger = logging.getLogger("quiesce.server")
Verb = str | Callable[..., Awaitable[Any]]
Reply = Callable[[Any, Mapping[str, Any]], Any]
"""From what the verb returned and what was asked, the body."""


# ---- what replies look like -----------------------------------------------------------------------------------------------------


def evidence(result: Any) -> dict[str, Any]:
    """What a transition did, as JSON; nothing for other results."""
    return asdict(result) if isinstance(result, Transition) else {}


def status(word: str) -> Reply:
    """vLLM's: a word, beside what was measured."""
    return lambda result, asked: {"status": word, **evidence(result)}


def message(word: str) -> Reply:
    return lambda result, asked: {"message": word, "status": "ok", **evidence(result)}


def success(word: str) -> Reply:
    """SGLang's."""
    return lambda result, asked: {"success": True, "message": word, **evidence(result)}


def slept(result: Any, asked: Mapping[str, Any]) -> Any:
    return {"status": "sleeping", "level": asked.get("level", 1), **evidence(result)}


def woken(result: Transition, asked: Mapping[str, Any]) -> Any:
    return {
        "status": "sleeping" if result.state in ("sleeping", "partially_awake") else "awake",
        "tags": asked.get("tags"),
        **evidence(result),
    }


def fast_deploy(result: Any, asked: Mapping[str, Any]) -> Any:
    return {"status": "success", "result": evidence(result) or result}


def nothing(result: Any, asked: Mapping[str, Any]) -> Any:
    """SGLang's and LMDeploy's memory routes answer `null`; what happened is in the headers."""
    return None


def itself(result: Any, asked: Mapping[str, Any]) -> Any:
    return result


# ---- the table ------------------------------------------------------------------------------------------------------------------

MODE = take("mode", text, "abort")
KEEP = take("mode", text, "keep")
TIMEOUT = take("timeout", seconds)
OPERATION = take("operation_id", text)
OWNER = take("owner", text, "user")
TAGS = take("tags", tags)
VERSION = Take("version", ("weight_version", "version"), version)
PAUSE = (MODE, OWNER, take("clear_cache", flag, True), TIMEOUT, take("ttl", seconds), OPERATION)
SLEEP = (take("level", whole), TAGS, take("mode", text), TIMEOUT, OPERATION)
WAKE = (TAGS, TIMEOUT, OPERATION)
BEGIN = (KEEP, take("kv", text, "recompute"), TIMEOUT, take("lease", seconds), OPERATION)
ABORT = (take("request_ids", names, None, "rid", "req_ids", "session_id"), take("abort_all", flag, False))


@dataclass(frozen=True, slots=True)
class Route:
    """One route of one dialect."""

    methods: tuple[str, ...]
    path: str
    verb: Verb
    takes: tuple[Take, ...]
    reply: Reply
    dialect: str


POST, BOTH, GET = ("POST",), ("GET", "POST"), ("GET",)

ROUTES: Final = (
    # vLLM; Ray Serve has the same paths, with the arguments under `options`
    Route(POST, "/pause", "pause", PAUSE, status("paused"), "vLLM"),
    Route(POST, "/resume", "resume", (OWNER, OPERATION), status("resumed"), "vLLM"),
    Route(POST, "/sleep", verbs.sleep, SLEEP, slept, "vLLM"),
    Route(POST, "/wake_up", verbs.wake_up, WAKE, woken, "vLLM"),
    Route(POST, "/release_kv_cache_memory", verbs.release_kv, (TIMEOUT,), status("kv_cache_released"), "vLLM"),
    Route(POST, "/abort_requests", verbs.abort_all_if_none, ABORT[:1], verbs.aborted, "vLLM"),
    Route(POST, "/inference/v1/abort_requests", verbs.abort_all_if_none, ABORT[:1], verbs.aborted, "vLLM"),
    Route(POST, "/reset_prefix_cache", "reset_prefix_cache", (take("reset_running_requests", flag, False), OPERATION),
          lambda done, asked: {"success": done}, "vLLM"),
    Route(POST, "/init_weight_transfer_engine", verbs.init_transfer, (take("init_info", mapping),),
          lambda done, asked: {"message": "Weight transfer initialized"}, "vLLM"),
    Route(POST, "/start_weight_update", "begin_weight_update", BEGIN, lambda done, asked: {"message": "Weight update started", **evidence(done)}, "vLLM"),
    Route(POST, "/update_weights", verbs.update_weights, verbs.UPDATE, lambda done, asked: {"message": "Weights updated", **evidence(done)}, "vLLM, LMDeploy"),
    Route(POST, "/finish_weight_update", "finish_weight_update", (VERSION, OPERATION),
          lambda done, asked: {"message": "Weight update finished", **evidence(done)}, "vLLM"),
    Route(POST, "/abort_weight_update", "abort_weight_update", (OPERATION,), lambda done, asked: {"message": "Weight update aborted", **evidence(done)}, "ours"),
    Route(POST, "/shutdown_weight_transfer_engine", verbs.destroy_group, (), lambda done, asked: {"message": "Weight transfer shut down"}, "vLLM"),
    Route(POST, "/update_weight_version", verbs.rename_version, (take("new_version", version), take("abort_all_requests", flag, False)),
          lambda done, asked: {"success": True, "message": "renamed", "new_version": asked.get("new_version"), **evidence(done)}, "vLLM, SGLang"),
    Route(POST, "/weight_checker", verbs.weight_checker, (take("action", text, "checksum"), take("baseline", mapping)), itself, "vLLM"),
    # SGLang
    Route(POST, "/pause_generation", verbs.pause_generation, (MODE,), message("paused"), "SGLang"),
    Route(POST, "/continue_generation", "resume", (), message("resumed"), "SGLang"),
    Route(POST, "/abort_request", verbs.abort, ABORT, nothing, "SGLang, LMDeploy"),
    Route(BOTH, "/release_memory_occupation", verbs.sleep, (TAGS, take("mode", text)), nothing, "SGLang"),
    Route(BOTH, "/resume_memory_occupation", verbs.wake_up, (TAGS,), nothing, "SGLang"),
    Route(BOTH, "/flush_cache", verbs.flush_cache, (), lambda done, asked: "Cache flushed.", "SGLang"),
    Route(POST, "/begin_weight_update", "begin_weight_update", BEGIN, success("begun"), "SGLang"),
    Route(POST, "/end_weight_update", "finish_weight_update", (VERSION, OPERATION), success("ended"), "SGLang"),
    Route(POST, "/update_weights_from_disk", verbs.update_from_disk,
          (take("model_path", text), VERSION, take("abort_all_requests", flag, False), take("keep_pause", flag, False)), verbs.from_disk, "SGLang"),
    Route(POST, "/update_weights_from_tensor", verbs.update_from_tensors, verbs.UPDATE, success("updated"), "SGLang"),
    Route(POST, "/init_weights_update_group", verbs.init_group, verbs.GROUP, success("initialised"), "SGLang, LMDeploy"),
    Route(POST, "/destroy_weights_update_group", verbs.destroy_group, (), success("destroyed"), "SGLang, LMDeploy"),
    Route(POST, "/update_weights_from_distributed", verbs.update_from_group, verbs.DISTRIBUTED, success("updated"), "SGLang, LMDeploy"),
    Route(BOTH, "/weights_checker", verbs.weight_checker, (take("action", text, "checksum"),), itself, "SGLang"),
    Route(BOTH, "/open_session", verbs.open_session, (), itself, "SGLang"),
    Route(BOTH, "/close_session", verbs.close_session, (take("session_id", text),), itself, "SGLang"),
    # LMDeploy
    Route(POST, "/wakeup", verbs.wake_up, WAKE, nothing, "LMDeploy, Ray Serve"),
    Route(GET, "/update_weights_from_ipc", verbs.may_update, (), itself, "LMDeploy"),
    # FastDeploy
    Route(POST, "/v1/pause", "pause", (KEEP, OWNER, TIMEOUT), fast_deploy, "FastDeploy"),
    Route(POST, "/v1/resume", "resume", (OWNER,), fast_deploy, "FastDeploy"),
    Route(POST, "/v1/sleep", verbs.sleep, SLEEP, fast_deploy, "FastDeploy"),
    Route(POST, "/v1/wakeup", verbs.wake_up, WAKE, fast_deploy, "FastDeploy"),
    Route(POST, "/v1/update_weights", verbs.update_weights, verbs.UPDATE, fast_deploy, "FastDeploy"),
    Route(POST, "/v1/abort_requests", verbs.abort, ABORT, verbs.aborted_by_name, "FastDeploy"),
)  # fmt: skip

ABSENT: Final = {
    "/reset_mm_cache": "there is no multimodal input", "/reset_encoder_cache": "there is no encoder",
    "/collective_rpc": "workers take no foreign methods; the control routes do what is asked of them",
    "/update_weights_from_ipc": "handles of device memory are not passed; use update_weights_from_disk, _from_tensor or _from_distributed",
    "/get_weights_by_name": "single tensors are not handed out; weights_checker proves what is loaded",
}  # fmt: skip
"""Routes of the peers that have nothing behind them here."""


def router(host: Host) -> APIRouter:
    """The routes, for one engine; each asks for the token, where there is one."""
    routes = APIRouter(tags=["admin"])
    for route in ROUTES:
        for method in route.methods:
            routes.add_api_route(
                route.path,
                _endpoint(host, route),
                methods=[method],
                summary=f"{route.dialect}",
                name=f"{route.path} {method}",
                openapi_extra=described(route.takes, method != "GET"),
            )
    for path, reason in ABSENT.items():
        routes.add_api_route(path, _absent(host, reason), methods=["POST"], summary=f"501: {reason}", name=path)
    return routes


def _endpoint(host: Host, route: Route) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        refusal = denied(host, request)
        if refusal is not None:
            return refusal
        asked = await arguments_of(request)
        given = {one.parameter: one.of(asked) for one in route.takes}
        if isinstance(route.verb, str):
            result = await getattr(host.engine, route.verb)(**given)
        else:
            result = await route.verb(host, **given)
        logger.info("%s %s: %s", request.method, route.path, result)
        body = route.reply(result, asked)
        return body if isinstance(body, Response) else JSONResponse(body, headers=said(host, result))

    return endpoint


def said(host: Host, result: Any) -> dict[str, str]:
    """Which state the engine is in after the call, and whether the call changed anything."""
    now = host.status()
    changed = {"X-Quiesce-Changed": str(result.changed).lower()} if isinstance(result, Transition) else {}
    return {"X-Quiesce-State": now.engine, "X-Quiesce-Epoch": str(now.epoch), **changed}


def _absent(host: Host, reason: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return denied(host, request) or JSONResponse(envelope(501, reason), 501)

    return endpoint


def denied(host: Host, request: Request) -> Response | None:
    """The answer to who may not: nobody without the token, where there is one."""
    token = host.settings.admin_token
    if token is None or is_bearer(request.headers.get("authorization"), token):
        return None
    return JSONResponse(
        envelope(401, "Authorization: Bearer with the admin token is needed"), 401, {"WWW-Authenticate": "Bearer"}
    )
