"""A server as a user starts it: `quiesce serve` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from quiesce.engine.tiny import checkpoint_folder
from quiesce.stateful.processes import children_of

SMALL = str(checkpoint_folder("small"))
PATIENCE_S = 120


class ServerProcess:
    """The process and its address. Leaving the block ends it with SIGTERM, if it has not ended.

    Args:
        flags: of `quiesce serve`.
        model: folder of its checkpoint.

    Raises:
        RuntimeError: it does not say where it listens; carries what it wrote.
    """

    def __init__(self, *flags: str, model: str = SMALL) -> None:
        command = [sys.executable, "-m", "quiesce.stateful.probed", "serve", model, "--port", "0", "--served-model-name", "small", *flags]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.errors: list[str] = []
        """Lines of its standard error."""
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        self.url = self.next_line()
        if not self.url.startswith("http://"):
            self.process.wait(PATIENCE_S)
            self._close()
            raise RuntimeError(f"no address: {''.join(self.errors)}")

    def next_line(self) -> str:
        """The next line of its standard output; waits for it."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def held(self) -> dict[str, int]:
        """What the process holds: tasks, generators, streams, threads, files."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, int] = json.loads(self.next_line())
        return found

    @property
    def core_pid(self) -> int | None:
        """The one process that the server has started, if there is one."""
        return next(iter(children_of(self.process.pid)), None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors += self.process.stderr.readlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE_S)
        self._close()

    def _close(self) -> None:
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
