"""A core in a thread of this process. The thread runs passes; it sleeps until something is posted, lands or is due."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from quiesce.engine.answers import Answers
from quiesce.engine.core import Core
from quiesce.engine.inbox import Event
from quiesce.engine.outputs import Status

logger = logging.getLogger("quiesce.core")


class ThreadLink:
    """Owns a core and its thread. `call_in_loop(function, *args)` runs a function in the front end's loop, from any thread."""

    def __init__(self, core: Core, call_in_loop: Callable[..., object]) -> None:
        self.core = core
        self._call_in_loop = call_in_loop
        self._news = threading.Event()
        self._thread: threading.Thread | None = None
        core.inbox.bind(self._news.set)
        core.device.bind(self._news.set)

    def start(self, deliver: Callable[[Answers], None], ended: Callable[[BaseException | None], None]) -> None:
        self.core.deliver = lambda answers: self._tell(deliver, answers)
        self._thread = threading.Thread(target=self._run, args=(ended,), name="quiesce-core", daemon=True)
        self._thread.start()

    def post(self, event: Event) -> None:
        self.core.inbox.post(event)

    def status(self) -> Status:
        return self.core.status

    def join(self) -> None:
        """Waits for the thread, which has said that it ended."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, ended: Callable[[BaseException | None], None]) -> None:
        cause: BaseException | None = None
        try:
            self.core.device.load()
            while not self.core.finished_for_good:
                due = self.core.next_deadline_s()
                self._news.wait(None if due is None else max(due - self.core.clock(), 0.0))
                self._news.clear()
                self.core.step()
        except BaseException as error:
            logger.critical("the core died", exc_info=error)
            cause = error
            self.core.device.close()
        self._tell(ended, cause)

    def _tell(self, function: Callable[..., None], argument: object) -> None:
        try:
            self._call_in_loop(function, argument)
        except RuntimeError:
            logger.debug("the front end's loop is closed; nobody listens")
