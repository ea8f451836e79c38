"""Quiesce: an LLM inference engine whose every lifecycle is declared once, as data, as an explicit finite state machine.

Names are imported when first used, so that `quiesce.spec` and `quiesce.statemachine` load without the engine, and nothing loads torch
before an engine is made.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quiesce.engine import errors as errors
    from quiesce.engine.api import AsyncEngine as AsyncEngine
    from quiesce.engine.blocking import Engine as Engine
    from quiesce.engine.config import EngineConfig as EngineConfig
    from quiesce.engine.outputs import AbortResult as AbortResult
    from quiesce.engine.outputs import Blocks as Blocks
    from quiesce.engine.outputs import CompletionOutput as CompletionOutput
    from quiesce.engine.outputs import RequestOutput as RequestOutput
    from quiesce.engine.outputs import Status as Status
    from quiesce.engine.outputs import Transition as Transition
    from quiesce.engine.sampling_params import SamplingParams as SamplingParams

__version__ = "0.1.0"

_HOMES = {
    "AsyncEngine": "api",
    "Engine": "blocking",
    "EngineConfig": "config",
    "SamplingParams": "sampling_params",
    "AbortResult": "outputs",
    "Blocks": "outputs",
    "CompletionOutput": "outputs",
    "RequestOutput": "outputs",
    "Status": "outputs",
    "Transition": "outputs",
}
__all__ = [*sorted(_HOMES), "errors"]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("quiesce.engine.errors")
    if name in _HOMES:
        return getattr(importlib.import_module(f"quiesce.engine.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'quiesce' has no attribute {name!r}")
