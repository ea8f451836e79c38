"""How a front end reaches a core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from quiesce.engine.answers import Answers
from quiesce.engine.inbox import Event
from quiesce.engine.outputs import Status


class Link(Protocol):
    """The way to a core."""

    def start(self, deliver: Callable[[Answers], None], ended: Callable[[BaseException | None], None]) -> None:
        """Starts the core. `deliver` and `ended` are called in the front end's loop; `ended` once, last, with what killed the core, if so."""

    def post(self, event: Event) -> None:
        """Sends an event to the core.

        Raises:
            QueueFull: an admission, and the inbox is full.
        """

    def status(self) -> Status:
        """The last status the core published."""

    def join(self) -> None:
        """Gives back what carried the core, once it has ended."""
