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
            InvalidRequest: it holds what cannot be sent.
        """

    def status(self) -> Status:
        """The last status the core published."""

    def join(self) -> None:
        """Gives back what carried the core, once it has ended."""


class Supervisor(Protocol):
    """What can be done to a core that may be lost: one in a process of its own. Everything is called in the front end's loop."""

    @property
    def core_pid(self) -> int | None:
        """The process of the core, while there is one."""

    @property
    def address(self) -> str | None:
        """Where further front ends find it."""

    def drop_mailboxes(self) -> None:
        """Nothing that this core has sent is delivered from now on, and nothing is sent to it."""

    def kill_core(self) -> None:
        """Ends its process, whatever it does; one that has said that it is over may end by itself."""

    def start_core(self) -> None:
        """Starts a new core, under a new epoch, once the old one is gone."""

    def leave(self, is_stopped: bool) -> None:
        """No further core will be wanted. `is_stopped`: because it was told to stop."""
