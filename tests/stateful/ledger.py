"""The loop's account of a run: its tasks and their suspensions, what is to happen at a suspension, and what went unnoticed."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from quiesce.stateful.reports import AnyTask, describe_wait, without_addresses

WhichTask = str | Callable[[AnyTask], bool]

AT_CREATION: Final = -1  # the suspension before the first step: the task exists and has not run


@dataclass(eq=False, slots=True)
class Intrusion:
    """Something done to a task while it is suspended. `where` tells the place once it has landed."""

    which: WhichTask
    suspension: int
    callback: Callable[[AnyTask], object]
    where: str = ""


def matches(task: AnyTask, which: WhichTask) -> bool:
    return task.get_name() == which if isinstance(which, str) else which(task)


class Ledger:
    def __init__(self) -> None:
        # Every task, oldest first. Holding them keeps the garbage collector from ending one at a moment of its choice.
        self.suspensions: dict[AnyTask, int] = {}
        self.stepping: AnyTask | None = None  # whose step ran last; what became of it is not entered yet
        self.intrusions: list[Intrusion] = []
        self.problems: list[str] = []  # told by the loop's exception handler and by the interpreter's hooks
        self._created: list[AnyTask] = []  # since the last step ended: their names may be set after their creation
        self._futures: list[weakref.ref[asyncio.Future[Any]]] = []

    def enter(self, task: AnyTask) -> None:
        self.suspensions[task] = 0
        self._created.append(task)

    def watch(self, future: asyncio.Future[Any]) -> None:
        self._futures.append(weakref.ref(future))

    @property
    def unentered(self) -> bool:
        """Whether the last step has left anything to enter."""
        return self.stepping is not None or bool(self._created)

    def end_step(self) -> None:
        """Enters what the last step did: tasks it created, its suspension unless it finished. Called before any other runs."""
        while self._created:
            self._intrude(self._created.pop(0), AT_CREATION)
        task, self.stepping = self.stepping, None
        if task is None or task.done():
            return
        suspension = self.suspensions.get(task, 0)
        self.suspensions[task] = suspension + 1
        if self.intrusions:
            self._intrude(task, suspension)

    def _intrude(self, task: AnyTask, suspension: int) -> None:
        for intrusion in self.intrusions:
            if intrusion.suspension == suspension and not intrusion.where and matches(task, intrusion.which):
                intrusion.where = describe_wait(task)
                intrusion.callback(task)

    def count(self, which: WhichTask | AnyTask) -> int:
        self.end_step()
        if isinstance(which, asyncio.Task):
            return self.suspensions[which]
        counts = [count for task, count in self.suspensions.items() if matches(task, which)]
        if not counts:
            raise LookupError(
                f"no task matches {which!r}; there were: {', '.join(task.get_name() for task in self.suspensions)}"
            )
        return max(counts)

    def pending(self) -> list[AnyTask]:
        return [task for task in self.suspensions if not task.done()]

    def unretrieved(self) -> list[str]:
        """Exceptions nobody asked for, on what is still alive. (What is gone has told the exception handler by itself.)"""
        futures = (future for reference in self._futures if (future := reference()) is not None)
        items = []
        for owner in (*self.suspensions, *futures):
            if getattr(owner, "_log_traceback", False):
                error = owner.exception()  # and with this it is retrieved: it is told once
                name = f"task {owner.get_name()}" if isinstance(owner, asyncio.Task) else "a future"
                items.append(without_addresses(f"{name} failed and nobody asked: {error!r}"))
        return items
