"""The only door into the core: events from clients and operators, in order, bounded.

Admissions are bounded by `capacity`; what ends or looks (aborts, shutdown) is bounded by the number of streams and callers, and is
never refused: cleanup is not gated.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.errors import QueueFull
from quiesce.engine.sampling_params import SamplingParams

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


@dataclass(frozen=True, slots=True)
class Abort:
    """End the request of this stream. `call` is answered with whether it was live, if given."""

    stream: int
    call: int | None = None


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Drain until `timeout_s` from now, then abort what is left, then stop."""

    call: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Answered when loading has ended, one way or the other."""

    call: int


Event = Submit | Abort | Shutdown | AwaitReady


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
        with self._lock:
            events = list(self._events)
            self._events.clear()
            self._num_submits = 0
        return events
