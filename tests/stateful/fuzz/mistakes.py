"""Calls that name something that cannot be. Each is refused with `InvalidRequest` before anything happens (S17)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from quiesce.engine.api import AsyncEngine

Mistake = tuple[str, Callable[[AsyncEngine], Coroutine[Any, Any, object]]]


async def _first(engine: AsyncEngine, prompt: Any, **given: Any) -> object:
    return await anext(engine.generate(prompt, **given))


MISTAKES: tuple[Mistake, ...] = (
    ("sleep(level=3)", lambda engine: engine.sleep(level=3)),
    ("sleep(tags=['typo'])", lambda engine: engine.sleep(tags=["typo"])),
    ("sleep(level=1, tags=['weights'])", lambda engine: engine.sleep(level=1, tags=["weights"])),
    ("sleep(tags={'weights': 'burn'})", lambda engine: engine.sleep(tags={"weights": "burn"})),
    ("wake_up(tags=['typo'])", lambda engine: engine.wake_up(tags=["typo"])),
    ("wake_up(tags=[])", lambda engine: engine.wake_up(tags=[])),
    ("pause(mode='gently')", lambda engine: engine.pause(mode="gently")),
    ("pause(owner='sleep')", lambda engine: engine.pause(owner="sleep")),
    ("resume(owner='update')", lambda engine: engine.resume(owner="update")),
    ("pause(ttl=-1)", lambda engine: engine.pause(ttl=-1)),
    ("update_weights({})", lambda engine: engine.update_weights({})),
    ("abort([])", lambda engine: engine.abort([])),
    ("abort('')", lambda engine: engine.abort("")),
    ("shutdown(timeout=-1)", lambda engine: engine.shutdown(timeout=-1)),
    ("generate([])", lambda engine: _first(engine, [])),
    ("generate(session_id='none')", lambda engine: _first(engine, [5], session_id="none")),
)
