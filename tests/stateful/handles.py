"""What an event loop queues: ready handles and timers, told apart and put in an order that is the same in every run."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from quiesce.stateful.reports import AnyTask

OF_TASKS = frozenset(dir(asyncio.Task))
"""Names of a task's methods."""


class Timer(asyncio.TimerHandle):
    """Orders coinciding timers by when they were set; stock handles leave that to the accident of the heap."""

    __slots__ = ("serial",)
    serial: int
    _scheduled: bool

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        assert isinstance(other, Timer)
        return (self.when(), self.serial) < (other.when(), other.serial)


def task_of(handle: asyncio.Handle) -> AnyTask | None:
    """The task whose step this handle runs. A task's public methods, as in `call_soon(task.cancel)`, are plain callbacks."""
    callback = getattr(handle, "_callback", None)
    owner = getattr(callback, "__self__", None)
    if not isinstance(owner, asyncio.Task):
        return None
    return None if getattr(callback, "__name__", None) in OF_TASKS else owner


def describe_option(option: Hashable) -> str:
    """An option of a choice, in a word or two."""
    if not isinstance(option, asyncio.Handle):
        return str(option)
    task = task_of(option)
    callback = getattr(option, "_callback", None)
    name = task.get_name() if task is not None else getattr(callback, "__qualname__", type(callback).__name__)
    return f"{name} at {option.when()}" if isinstance(option, Timer) else name
