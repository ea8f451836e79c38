"""The flags of `quiesce serve`: the server's own, and every field of `EngineConfig`. Imports no server."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from quiesce.engine.config import EngineConfig
from quiesce.engine.server.settings import Settings

OURS: Final = ("model", "trace_path")
"""Fields of `EngineConfig` that are not flags of the same name and type."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The server's own flags, then every field of `EngineConfig` with dashes."""
    serving = command.add_argument_group("server")
    serving.add_argument("--host", default="127.0.0.1", help="address to listen on; loopback by default")
    serving.add_argument("--port", type=int, default=8000, help="0 takes a free one, which is printed")
    serving.add_argument("--served-model-name", metavar="NAME", help="what clients call the model; default: MODEL")
    serving.add_argument("--api-key", metavar="KEY", help="asked of generating calls as Authorization: Bearer")
    serving.add_argument(
        "--shutdown-timeout", type=float, default=30.0, metavar="SECONDS", help="that running requests have after SIGTERM"
    )
    serving.add_argument("--enable-admin", action="store_true", help="control routes for everybody; accepted on loopback only")
    serving.add_argument("--admin-token", metavar="TOKEN", help="control routes for whoever sends it as Authorization: Bearer")
    serving.add_argument(
        "--admin-port", type=int, metavar="PORT", help="control routes on a port of their own, and nowhere else"
    )
    engine = command.add_argument_group("engine", "the fields of EngineConfig")
    engine.add_argument("--trace-path", type=Path, metavar="FILE", help="writes every transition and step to this file")
    kinds = get_type_hints(EngineConfig)
    for field in fields(EngineConfig):
        if field.name not in OURS:
            engine.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **_flag(kinds[field.name]))


def _flag(kind: Any) -> dict[str, Any]:
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if isinstance(kind, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return {"type": kind}


def configured(asked: argparse.Namespace) -> tuple[EngineConfig, Settings]:
    """What the flags say.

    Raises:
        InvalidRequest: a value cannot be; names the field.
    """
    config = EngineConfig(**{field.name: getattr(asked, field.name) for field in fields(EngineConfig)})
    settings = Settings(
        host=asked.host, port=asked.port, served_model_name=asked.served_model_name or str(asked.model), api_key=asked.api_key,
        enable_admin=asked.enable_admin, admin_token=asked.admin_token, admin_port=asked.admin_port,
        shutdown_timeout_s=asked.shutdown_timeout,
    )  # fmt: skip
    return config, settings
