"""The process of one core, as its front end sees it: how it is started, how its end is noticed, and what is cleared away after it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from quiesce.engine.config import EngineConfig

logger = logging.getLogger("quiesce.front_end")
GRACE_S: Final = 5.0
"""How long a core that has said that it is over may take to be gone."""
MAX_FOLDER: Final = 60
"""Characters: a socket's path has at most 107, its own name included."""


def private_folder() -> Path:
    """A new folder that only this user can look into, with a path short enough for sockets."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=f"quiesce-{os.getpid()}-", dir=usual if len(usual) <= MAX_FOLDER else "/tmp"))


def boot_letter(config: EngineConfig, epoch: int, started_s: float, level: int | None) -> bytes:
    """What a core is told on its standard input before anything else: four bytes of length, then msgpack."""
    settings: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(config)}
    settings |= {"model": os.fspath(config.model), "trace_path": None}
    letter = msgspec.msgpack.encode({
        "config": settings, "epoch": epoch, "started_s": started_s, "log_level": level, "parent": os.getpid()
    })  # fmt: skip
    return len(letter).to_bytes(4, "little") + letter


class CoreProcess:
    """Starts a core. Its sockets are in a folder of its own, and both are gone after `reap`.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, config: EngineConfig, epoch: int, started_s: float) -> None:
        self.epoch = epoch
        self.is_over = False
        """It has said that it ends by itself."""
        self.folder = private_folder()
        self._context = zmq.Context()
        try:
            command = [sys.executable, "-P", "-m", "quiesce.engine.link.core_process", str(self.folder)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
            self.descriptor = os.pidfd_open(self._process.pid)
        except BaseException:
            self._context.term()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        root = logging.getLogger("quiesce")
        self._tell(boot_letter(config, epoch, started_s, root.getEffectiveLevel() if root.handlers else None))
        self.dealer = self._socket(zmq.DEALER, "answers")

    def _tell(self, letter: bytes) -> None:
        """The pipe stays open: its end tells the core that we are gone."""
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(OSError):  # it died already; its descriptor says so
                pipe.write(letter)
                pipe.flush()

    def _socket(self, kind: int, name: str) -> zmq.Socket[bytes]:
        """A socket connected to the core's of this name. Nothing is bounded by the socket itself: what may be sent is."""
        made = self._context.socket(kind)
        made.setsockopt(zmq.SNDHWM, 0)
        made.setsockopt(zmq.RCVHWM, 0)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RECONNECT_IVL, 20)
        made.connect(f"ipc://{self.folder}/{name}")
        return made

    def push(self) -> zmq.Socket[bytes]:
        """A socket for events, which whoever takes it closes."""
        return self._socket(zmq.PUSH, "events")

    @property
    def pid(self) -> int:
        return self._process.pid

    def how_it_ended(self) -> str:
        """For people, once it has."""
        status = self._process.poll()
        if status is None:
            return "is ending"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

    def reap(self, kill: bool) -> None:
        """Sees the process to its end, and clears away its folder and our ends of its sockets. Its events' socket is closed before."""
        if kill:
            self._process.kill()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        os.close(self.descriptor)
        self.dealer.close(linger=0)
        self._context.term()
        shutil.rmtree(self.folder, ignore_errors=True)
