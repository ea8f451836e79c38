"""Logging for commands: one handler on the logger `quiesce`. A library never calls this; an embedding program owns its handlers."""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO

FORMAT: Final = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
DATE_FORMAT: Final = "%m-%d %H:%M:%S"
LEVELS: Final = ("debug", "info", "warning", "error")


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment, so that lines pass above a live view and under a test's capture."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """The base class sets it once; there is nothing to keep."""


def set_up(level: str = "info") -> None:
    """Sends the engine's log lines to stderr as `LEVEL MM-DD HH:MM:SS [file:line] message`. Idempotent; the last level holds."""
    logger = logging.getLogger("quiesce")
    logger.setLevel(level.upper())
    logger.propagate = False
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
        logger.addHandler(handler)
