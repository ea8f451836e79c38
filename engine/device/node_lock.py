"""One engine at a time moves the memory of a device: two that wake together could each take half of what either needs."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.01


def lock_file(device: str) -> Path:
    """The file that stands for a device on this machine, whoever runs the engines."""
    return Path(tempfile.gettempdir()) / f"quiesce-{device}.lock"


@contextmanager
def alone(device: str, go_on: Callable[[], None]) -> Iterator[None]:
    """Holds the device's lock. The system frees it when the process ends, however that happens.

    Args:
        device: its unique name, the same in every process.
        go_on: called while somebody else has it; what it raises ends the wait.

    Raises:
        OSError: the file cannot be opened.
    """
    try:  # it may be another user's, which need not be written to be locked
        fd = os.open(lock_file(device), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(lock_file(device), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                go_on()
                time.sleep(POLL_S)
        yield
    finally:
        os.close(fd)
