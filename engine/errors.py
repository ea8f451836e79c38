"""Every error a caller can meet, as one tree.

    EngineError                     base; `http_status` is what the server answers
    ├── InvalidRequest        400   the call names something that cannot be: refused before any effect (also a ValueError)
    ├── DuplicateRequest      409   the request id is in use
    ├── TransitionConflict    409   illegal in this state; says the state, the event, what is allowed and what to call first
    ├── QueueFull             429   the bounded queue is full; retry later
    ├── DeadlineExceeded      504   the operation did not act before its deadline and was withdrawn
    └── Unavailable           503   not admitting now; retry after `retry_after` seconds
        └── EngineDead        503   failed or stopped for good; start a new engine

Two families stay apart: these answer a caller. A broken promise of our own (`statemachine.gate.IllegalTransition`,
`ConformanceError`) is a defect: it fails the engine, and every live request is answered `error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class EngineError(Exception):
    """Base of all errors that callers see."""

    http_status: ClassVar[int] = 500

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries whole, whatever their constructor takes."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[EngineError], args: tuple[object, ...], attributes: dict[str, object]) -> EngineError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


def shown(value: object) -> str:
    """A value in a message: short, and never an error of its own (an integer can be too long to print)."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  whatever a caller's object does, the message must be built
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


class InvalidRequest(EngineError, ValueError):
    """A value cannot be; `field` names it. Nothing has happened."""

    http_status = 400

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class DuplicateRequest(EngineError):
    """The request id is in use; it is free again once its terminal is delivered."""

    http_status = 409

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request_id: {request_id!r} is live; wait for its terminal or choose another id")
        self.request_id = request_id


class TransitionConflict(EngineError):
    """The call is illegal in the present state."""

    http_status = 409

    def __init__(
        self, state: str, event: str, allowed: Sequence[str] = (), how_to: str = "", superseded_by: str | None = None
    ) -> None:
        self.state, self.event, self.allowed, self.how_to, self.superseded_by = (
            state,
            event,
            tuple(allowed),
            how_to,
            superseded_by,
        )
        text = f"{event} is not legal while {state}"
        if superseded_by:
            text = f"{event} was superseded by {superseded_by}"
        if self.allowed:
            text += f"; legal here: {', '.join(self.allowed)}"
        super().__init__(f"{text}; {how_to}" if how_to else text)


class QueueFull(EngineError):
    """The bounded queue has no place; nothing was accepted."""

    http_status = 429


class DeadlineExceeded(EngineError):
    """The deadline passed before the operation acted; it was withdrawn."""

    http_status = 504


class Unavailable(EngineError):
    """The engine admits nothing now."""

    http_status = 503

    def __init__(self, state: str, how_to: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"the engine is {state}" + (f"; {how_to}" if how_to else ""))
        self.state, self.retry_after = state, retry_after


class EngineDead(Unavailable):
    """The engine has failed or stopped; it will not serve again."""
