"""How a run that went wrong is told: where each task waits, and what a finished run left behind."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, TextIO

AnyTask = asyncio.Task[Any]


class Deadlock(RuntimeError):
    """Nothing can ever run again, and somebody still waits."""

    def __init__(self, tasks: Iterable[AnyTask], held: list[str]) -> None:
        lines = [describe_wait(task) for task in tasks if not task.done()]
        if held:
            lines.append(f"held back: {', '.join(held)}")
        super().__init__(
            "nothing can run, no timer is set and nothing is offered; waiting:\n  " + "\n  ".join(lines or ["nobody"])
        )


class Livelock(RuntimeError):
    """The run takes turns without end."""


class LeftOver(AssertionError):
    """The main coroutine is done but the run did not clean up after itself. `items` lists what it left, one sentence each."""

    def __init__(self, items: list[str]) -> None:
        self.items = items
        super().__init__("the run left behind:\n  " + "\n  ".join(items))


def describe_wait(task: AnyTask) -> str:
    """One line: the task, the coroutines it is in, outermost first, and the object that it waits for."""
    places = []
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        places.append(f"{coroutine.__qualname__} ({PurePath(frame.f_code.co_filename).name}:{frame.f_lineno})")
        coroutine = coroutine.cr_await
    awaited = _describe_future(getattr(task, "_fut_waiter", None))
    return f"{task.get_name()} in {' > '.join(places) or 'no coroutine'}, for {awaited}"


def _describe_future(awaited: object) -> str:
    if awaited is None:
        return "its turn"
    if isinstance(awaited, asyncio.Task):
        return f"task {awaited.get_name()}"
    return without_addresses(repr(awaited))


def describe_generator(agen: Any) -> str:
    return f"async generator {agen.__qualname__} was not closed"


def is_open(agen: Any) -> bool:
    """Whether an async generator has neither run to its end nor been closed."""
    return agen.ag_frame is not None


def without_addresses(text: str) -> str:
    """Addresses differ from run to run; a report must not."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def describe_failure(context: dict[str, Any]) -> str:
    """What the loop's exception handler is told: a callback that raised, an exception that nobody asked for."""
    error = context.get("exception")
    return without_addresses(context["message"] + (f": {error!r}" if error is not None else ""))


@contextmanager
def unawaited_coroutines(note: Callable[[str], None]) -> Generator[None]:
    """Tells `note` of each coroutine that is thrown away unawaited meanwhile. Other warnings go where they always go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="coroutine .* was never awaited", category=RuntimeWarning)
        show = warnings.showwarning

        def divert(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category is RuntimeWarning and "was never awaited" in str(message):
                note(str(message).splitlines()[0])
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = divert
        yield
