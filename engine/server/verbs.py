"""Control calls of the peers that are several of ours, or ours in other words. Each is one function on the engine's own verbs."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from quiesce.engine.control import GRAPHS, LEVELS
from quiesce.engine.errors import EngineError, InvalidRequest, TransitionConflict, shown
from quiesce.engine.outputs import AbortResult, Transition
from quiesce.engine.server.arguments import Take, anything, flag, mapping, names, optional, seconds, take, text, version, whole
from quiesce.engine.server.host import Host
from quiesce.engine.server.replies import envelope
from quiesce.spec.vocabulary import Policy

SCHEDULING = "scheduling"
"""vLLM's third tag: the hold of a level-0 sleep."""
HOW_TO_SEND = (
    "send safetensors: load_format='safetensors' (base64), 'shared_memory' (a segment's name), a folder, or a gloo group"
)


class NotHere(EngineError):
    """A call of a peer's that this engine has nothing behind."""

    http_status = 501


# ---- pause and sleep ------------------------------------------------------------------------------------------------------------


async def pause_generation(host: Host, mode: str) -> Transition:
    """SGLang's modes: `in_place` keeps what is computed, `retract` computes it anew."""
    known = {"abort": ("abort", True), "retract": ("keep", True), "in_place": ("keep", False)}
    if mode not in known:
        raise InvalidRequest("mode", f"must be one of {', '.join(known)}, not {shown(mode)}")
    ours, clears = known[mode]
    return await host.engine.pause(mode=ours, clear_cache=clears)


async def sleep(
    host: Host,
    level: int | None = None,
    tags: Any = None,
    mode: str | None = None,
    timeout: float | None = None,
    operation_id: str | None = None,
) -> Transition:
    """Level and tags together mean those tags under that level's policies."""
    if tags is not None and level is not None and not isinstance(tags, Mapping):
        if level not in LEVELS:
            raise InvalidRequest("level", f"must be 0, 1 or 2, not {shown(level)}")
        tags = {tag: str(LEVELS[level].get(tag, Policy.none)) for tag in tags if tag not in GRAPHS}
        level, tags = (0, None) if "none" in tags.values() else (None, tags)
    return await host.engine.sleep(level=level, tags=tags, mode=mode, timeout=timeout, operation_id=operation_id)


async def wake_up(host: Host, tags: Any = None, timeout: float | None = None, operation_id: str | None = None) -> Transition:
    """`scheduling` alone ends a sleep of level 0; beside other tags it says nothing: the gate opens by itself when all are back."""
    named = None if tags is None else [tag for tag in tags if tag != SCHEDULING]
    if named == [] and tags:
        status = host.status()
        if status.engine in ("sleeping", "partially_awake"):
            return Transition(status.engine, False, status.epoch)
        named = None
    return await host.engine.wake_up(named, timeout=timeout, operation_id=operation_id)


async def release_kv(host: Host, timeout: float | None) -> Transition:
    """As vLLM's: only of an engine that is paused, with nobody left in it."""
    status = host.status()
    if status.engine != "paused" or status.live:
        raise TransitionConflict(
            status.engine, "release_kv_cache_memory", ("pause",), "pause(mode='abort') first, and await it"
        )
    return await host.engine.sleep(tags={"kv_cache": "discard"}, mode="keep", timeout=timeout)


async def flush_cache(host: Host) -> Response | bool:
    """400 while anything is pending, as SGLang's: callers ask again until it is not."""
    if await host.engine.reset_prefix_cache():
        return True
    return JSONResponse(envelope(400, "requests are pending: nothing was flushed"), 400)


# ---- abort ----------------------------------------------------------------------------------------------------------------------


async def abort_all_if_none(host: Host, request_ids: Sequence[str] | None) -> AbortResult:
    """vLLM's: no ids are all."""
    return await (host.engine.abort(request_ids) if request_ids else host.engine.abort_all())


async def abort(host: Host, request_ids: Sequence[str] | None, abort_all: bool) -> AbortResult:
    """By id, or all where the caller says so."""
    if abort_all:
        return await host.engine.abort_all()
    if not request_ids:
        raise InvalidRequest("rid", "name requests, or abort_all")
    return await host.engine.abort(request_ids)


def aborted(result: AbortResult, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": "aborted",
        "aborted": len(result.aborted),
        "request_ids": list(result.aborted),
        "not_found": list(result.not_found),
    }


def aborted_by_name(result: AbortResult, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"status": "success", "result": {"aborted": list(result.aborted), "not_found": list(result.not_found)}}


# ---- sessions -------------------------------------------------------------------------------------------------------------------


async def open_session(host: Host) -> str:
    return (await host.engine.open_session()).id


async def close_session(host: Host, session_id: str | None) -> dict[str, bool]:
    if session_id is None:
        raise InvalidRequest("session_id", "is missing")
    return {"closed": await host.engine.close_session(session_id)}


# ---- weights --------------------------------------------------------------------------------------------------------------------

UPDATE: Final = (
    take("update_info", anything), take("model_path", text), take("serialized_named_tensors", anything),
    take("load_format", text), take("shm_name", text), take("finished", flag, True), Take("new_version", ("weight_version", "version"), version),
    take("timeout", seconds), take("rsync_config", mapping),
)  # fmt: skip
DISTRIBUTED: Final = (
    take("names", names, ()), take("dtypes", names, ()), take("shapes", anything, ()), take("group_name", text),
    Take("new_version", ("weight_version",), version), take("finished", flag, True),
)  # fmt: skip


async def update_from_disk(
    host: Host, model_path: str | None, version: int | str | None, abort_all_requests: bool, keep_pause: bool
) -> Transition:
    """One transaction from a folder or file. With `keep_pause` the engine stays paused afterwards."""
    if model_path is None:
        raise InvalidRequest("model_path", "is missing")
    mode = "abort" if abort_all_requests else "keep"
    if keep_pause:
        await host.engine.pause(mode=mode)
    try:
        return await host.engine.update_weights(model_path, version=version, mode=mode)
    except OSError as error:
        raise InvalidRequest("model_path", str(error)) from None


def from_disk(result: Transition, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "success": True,
        "message": f"weights of {asked.get('model_path')}",
        "num_paused_requests": len(result.kept),
        "changed": result.changed,
    }


async def update_weights(
    host: Host, update_info: Any, new_version: int | str | None, rsync_config: Any, **sent: Any
) -> Transition:
    """vLLM's chunk of an open update, LMDeploy's tensors, or FastDeploy's whole update, told apart by what they carry."""
    if rsync_config is not None:
        raise NotHere("rsync_config: there is no rsync here; send model_path")
    if sent["model_path"] is not None:
        return await update_from_disk(host, sent["model_path"], new_version, abort_all_requests=False, keep_pause=False)
    if update_info is None:
        return await update_from_tensors(host, update_info=None, new_version=new_version, rsync_config=None, **sent)
    result = None
    for part in update_info if isinstance(update_info, list) else [update_info]:
        result = await _chunk(host, mapping("update_info", part))
    if result is None:
        raise InvalidRequest("update_info", "is empty")
    return result


async def _chunk(host: Host, info: Mapping[str, Any]) -> Transition:
    """One chunk of an update that `start_weight_update` opened."""
    if "names" in info:
        dtypes = names("dtypes", info.get("dtype_names", info.get("dtypes")))
        group = optional(text, "group_name", info.get("group_name"))
        return await host.engine.load_weights(
            await _received(host, names("names", info["names"]), dtypes, info.get("shapes"), group)
        )
    return await host.engine.load_weights(
        _tensors(info.get("serialized_named_tensors"), info.get("load_format"), info.get("shm_name"))
    )


async def update_from_tensors(
    host: Host, serialized_named_tensors: Any, load_format: str | None, shm_name: str | None, finished: bool, new_version: int | str | None,
    **ignored: Any,
) -> Transition:  # fmt: skip
    """Tensors in the call itself, or in shared memory. An update that is not open yet is opened; `finished` ends it."""
    return await _loaded(host, _tensors(serialized_named_tensors, load_format, shm_name), finished, new_version)


async def update_from_group(
    host: Host,
    names: Sequence[str],
    dtypes: Sequence[str],
    shapes: Any,
    group_name: str | None,
    new_version: int | str | None,
    finished: bool,
) -> Transition:
    """Tensors that rank 0 of the group broadcasts, in this order."""
    return await _loaded(host, await _received(host, names, dtypes, shapes, group_name), finished, new_version)


async def _loaded(host: Host, tensors: Mapping[str, Any], finished: bool, new_version: int | str | None) -> Transition:
    opened_here = host.status().weights[1] != "updating"
    if opened_here:
        await host.engine.begin_weight_update()
    try:
        result = await host.engine.load_weights(tensors)
        return await host.engine.finish_weight_update(version=new_version) if finished else result
    except EngineError:
        if opened_here:
            await _undo(host)
        raise


async def _undo(host: Host) -> None:
    """Ends an update that the call itself opened; what it failed of is what its caller is told."""
    with contextlib.suppress(EngineError):
        await host.engine.abort_weight_update()


def _tensors(sent: Any, load_format: str | None, shm_name: str | None) -> Mapping[str, Any]:
    """What safetensors images hold, in base64 or in a segment of shared memory. Nothing that runs code when it is read."""
    from quiesce.engine.device.images import tensors_in  # the data plane's: only an update pays for it

    if load_format == "shared_memory":
        return tensors_in("shm_name", [_shared(shm_name)])
    if load_format != "safetensors":
        raise InvalidRequest(
            "load_format", f"{shown(load_format)} would be a pickle, which runs code when it is read; {HOW_TO_SEND}"
        )
    parts = [sent] if isinstance(sent, str) else sent
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise InvalidRequest("serialized_named_tensors", f"must be base64 texts, not {shown(sent)}")
    try:
        images = [base64.b64decode(part, validate=True) for part in parts]
    except binascii.Error as error:
        raise InvalidRequest("serialized_named_tensors", f"is no base64: {error}; {HOW_TO_SEND}") from None
    return tensors_in("serialized_named_tensors", images)


def _shared(name: str | None) -> bytes:
    if not name or "/" in name.lstrip("/") or "\0" in name:
        raise InvalidRequest("shm_name", f"must be the name of a segment of shared memory, not {shown(name)}")
    try:
        return (Path("/dev/shm") / name.lstrip("/")).read_bytes()
    except OSError as error:
        raise InvalidRequest("shm_name", f"{name!r}: {error.strerror}") from None


async def rename_version(host: Host, new_version: int | str | None, abort_all_requests: bool) -> Transition:
    """A new version with the same tensors: what runs is frozen, renamed and goes on, computed anew."""
    if new_version is None:
        raise InvalidRequest("new_version", "is missing")
    await host.engine.begin_weight_update(mode="abort" if abort_all_requests else "keep")
    try:
        return await host.engine.finish_weight_update(version=new_version)
    except EngineError:  # without whole weights there is nothing to rename
        await _undo(host)
        raise


async def weight_checker(host: Host, action: str, baseline: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Digests of what is loaded, or whether they are those of a baseline."""
    if action not in ("checksum", "compare"):
        raise NotHere(f"action: {shown(action)} is not here; checksum and compare are")
    found = {"rank0": await host.engine.weights_checksum()}
    if action == "checksum":
        return {"checksums": found}
    wrong = [rank for rank, digest in found.items() if (baseline or {}).get(rank) != digest]
    return {"match": not wrong, "mismatches": wrong}


async def may_update(host: Host) -> dict[str, Any]:
    """LMDeploy's question before an update: whether it may begin now, and what to call first."""
    status = host.status()
    away = [tag for tag, state in status.memory.items() if state != "resident"]
    ready = status.memory["weights"] in ("resident", "undefined") and status.weights[1] in ("stable", "undefined")
    ready = ready and status.engine in ("running", "paused", "partially_awake", "draining")
    first = (
        ""
        if ready
        else "finish or abort the open update"
        if status.weights[1] == "updating"
        else "wake_up(['weights']), and await it"
    )
    return {
        "ready": ready,
        "message": first,
        "is_sleeping": bool(away),
        "sleeping_tags": away,
        "worker_ranks": [0],
        "state": status.engine,
    }


# ---- a group of processes that send tensors -------------------------------------------------------------------------------------


GROUP: Final = (
    take("master_address", text, "127.0.0.1"), take("master_port", whole), take("rank_offset", whole, 1), take("world_size", whole, 2),
    take("group_name", text, "weight_update_group"), take("backend", text, "gloo"),
)  # fmt: skip


async def init_transfer(host: Host, init_info: Mapping[str, Any] | None) -> None:
    """vLLM's: the group's address and this engine's rank in it."""
    await init_group(host, **{one.parameter: one.of(init_info or {}) for one in GROUP})


async def init_group(
    host: Host, master_address: str, master_port: int | None, rank_offset: int, world_size: int, group_name: str, backend: str
) -> None:
    """Joins a gloo group whose rank 0 will send."""
    if backend != "gloo":
        raise NotHere(f"backend: {shown(backend)} needs a device that this engine does not have; gloo is here")
    if master_port is None:
        raise InvalidRequest("master_port", "is missing")
    await host.transfers.join(group_name, master_address, master_port, rank_offset, world_size)


async def destroy_group(host: Host) -> None:
    host.transfers.leave()


async def _received(
    host: Host, names: Sequence[str], dtypes: Sequence[str], shapes: Any, group_name: str | None
) -> Mapping[str, Any]:
    if not isinstance(shapes, list | tuple) or not len(names) == len(dtypes) == len(shapes) or not names:
        raise InvalidRequest("names", "names, dtypes and shapes must be lists of the same length, and not empty")
    return await host.transfers.receive(group_name, names, dtypes, shapes)
