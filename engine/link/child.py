"""The process of one core, as its front end sees it: how it is started, how its end is noticed, and what is cleared away after it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import InvalidRequest, shown

logger = logging.getLogger("quiesce.front_end")
GRACE_S: Final = 5.0
"""How long a core that has said that it is over may take to be gone."""
LAST_LETTER_MS: Final = 500
SCHEME: Final = "ipc://"
MAX_FOLDER: Final = 60
"""Characters: a socket's path has at most 107, its own name included."""


def private_folder() -> Path:
    """A new folder that only this user can look into, with a path short enough for sockets."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=f"quiesce-{os.getpid()}-", dir=usual if len(usual) <= MAX_FOLDER else "/tmp"))


def boot_letter(config: EngineConfig, epoch: int, started_s: float, level: int | None) -> bytes:
    """What a core is told on its standard input before anything else: four bytes of length, then msgpack."""
    settings: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(config)}
    settings |= {"model": os.fspath(config.model), "trace_path": None}  # the front end writes the trace, of both
    letter = msgspec.msgpack.encode({
        "config": settings, "epoch": epoch, "started_s": started_s, "log_level": level, "parent": os.getpid()
    })  # fmt: skip
    return len(letter).to_bytes(4, "little") + letter


class CoreSockets:
    """Our ends of a core's sockets, which are in its folder."""

    descriptor: int | None = None
    """Of its process: readable once it is gone."""

    def __init__(self, folder: Path, epoch: int) -> None:
        self.folder, self.epoch = folder, epoch
        self.is_over = False
        """It has said that it ends by itself."""
        self._context = zmq.Context()
        self.dealer = self._socket(zmq.DEALER, "answers")

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

    def close(self, linger_ms: int = 0) -> None:
        """Gives our ends back, with so much time for what was sent last. Nobody uses them any more."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        self._context.destroy(linger_ms)

    def welcomed(self, epoch: int, pid: int) -> None:
        """It has answered. Raises OSError: and is gone since."""

    @property
    def pid(self) -> int | None:
        raise NotImplementedError

    def how_it_ended(self) -> str:
        """For people, once it has."""
        raise NotImplementedError

    def reap(self, kill: bool) -> None:
        """The front end is done with it."""
        raise NotImplementedError


class CoreProcess(CoreSockets):
    """Starts a core. Its sockets are in a folder of its own, and both are gone after `reap`.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, config: EngineConfig, epoch: int, started_s: float) -> None:
        super().__init__(private_folder(), epoch)
        try:
            command = [sys.executable, "-P", "-m", "quiesce.engine.link.core_process", str(self.folder)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
            self.descriptor = os.pidfd_open(self._process.pid)
        except BaseException:
            self.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        root = logging.getLogger("quiesce")
        self._tell(boot_letter(config, epoch, started_s, root.getEffectiveLevel() if root.handlers else None))

    def _tell(self, letter: bytes) -> None:
        """The pipe stays open: its end tells the core that we are gone."""
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(OSError):  # it died already; its descriptor says so
                pipe.write(letter)
                pipe.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def how_it_ended(self) -> str:
        status = self._process.poll()
        if status is None:
            return "is ending"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

    def reap(self, kill: bool) -> None:
        """Sees the process to its end, and clears away its folder and our ends of its sockets."""
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
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class AttachedCore(CoreSockets):
    """A core that another front end has started, and that only that one kills."""

    def __init__(self, address: str) -> None:
        super().__init__(Path(address.removeprefix(SCHEME)), 0)
        self._pid: int | None = None

    def welcomed(self, epoch: int, pid: int) -> None:
        self.descriptor = os.pidfd_open(pid)
        self.epoch, self._pid = epoch, pid

    @property
    def pid(self) -> int | None:
        return self._pid

    def how_it_ended(self) -> str:
        return "has ended"

    def reap(self, kill: bool) -> None:
        self.close(LAST_LETTER_MS)


def check_address(address: str) -> None:
    """Raises InvalidRequest: it is no private folder of this user in which a core has its sockets."""
    folder = Path(address.removeprefix(SCHEME))
    try:
        found = folder.stat()
    except OSError as error:
        raise InvalidRequest("connect", f"{address}: there is no core: {error.strerror}") from None
    if not address.startswith(SCHEME) or not stat.S_ISDIR(found.st_mode):
        raise InvalidRequest("connect", f"must be an engine's `address`, {SCHEME}/folder, not {shown(address)}")
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InvalidRequest("connect", f"{address}: others than this user may look into it")
