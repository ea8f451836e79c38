"""The only door into the core: events from clients and operators, in order, bounded.

Admissions are bounded by `capacity`; what ends or looks (aborts, shutdown) is bounded by the number of streams and callers, and is
never refused: cleanup is not gated.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.errors import QueueFull
from quiesce.engine.sampling_params import SamplingParams
from quiesce.spec.vocabulary import Mode, OperationKind, Policy

NOBODY = 0
"""As a call's number: nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class Submit:
    """A new request. `stream` is the key of the stream that waits for it; the answer is an ack or a nak."""

    stream: int
    request_id: str
    token_ids: NDArray[np.int32]
    params: SamplingParams
    priority: int
    in_session: bool = False
    """Whether the front end is to be told when nothing is left of the request."""


@dataclass(frozen=True, slots=True)
class Abort:
    """End the request of this stream. `call` is answered with whether it was live, if given."""

    stream: int
    call: int | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """A control call. It is answered once, when its operation is done, failed or superseded."""

    call: int
    kind: OperationKind
    operation_id: str | None = None
    """A retry with the same one is given the first one's answer."""
    timeout_s: float | None = None
    """How long it may wait and drain; a shutdown that takes longer aborts what is left."""
    owner: str = ""
    mode: Mode | None = None
    """None: as strong as the strongest that is held, else abort."""
    weights: Policy = Policy.none
    kv_cache: Policy = Policy.none
    tags: str = "both"
    """What to wake: `weights`, `kv_cache` or `both`."""
    clear_cache: bool = False
    ttl_s: float | None = None
    """How long the token is held, or an update may stay open, before the engine ends it by itself."""
    keep_kv: bool = False
    version: int | str | None = None
    source: Iterator[tuple[str, Any]] | None = None
    """Names and tensors of new weights."""


@dataclass(frozen=True, slots=True)
class Detach:
    """The caller of this call has left; the operation runs to its declared end."""

    call: int


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Answered when loading has ended, one way or the other."""

    call: int


Event = Submit | Abort | Control | Detach | AwaitReady


class Inbox:
    """A bounded queue of events; `post` from any thread, `take` from the core's."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._events: deque[Event] = deque()
        self._num_submits = 0
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = lambda: None

    def bind(self, wake: Callable[[], None]) -> None:
        """Names the function to call when there is something to take."""
        self._wake = wake

    def post(self, event: Event) -> None:
        """Appends an event and wakes the core.

        Raises:
            QueueFull: too many admissions wait to be looked at; nothing is posted.
        """
        with self._lock:
            if isinstance(event, Submit):
                if self._num_submits >= self.capacity:
                    raise QueueFull(f"{self.capacity} requests wait to be looked at")
                self._num_submits += 1
            self._events.append(event)
        self._wake()

    def take(self) -> list[Event]:
        """Everything posted so far, in order."""
        if not self._events:  # what is posted just now wakes the core once more
            return []
        with self._lock:
            events = list(self._events)
            self._events.clear()
            self._num_submits = 0
        return events
