"""The peer's process, seen from here: orders out, answers in, and never two sides computing at once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

NEEDS: Final = ("torch", "transformers")
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class PeerError(Exception):
    """The peer could not do what it was told, or is gone."""


def missing(*further: str) -> str:
    """What the peer needs and this environment lacks, as a sentence; empty if nothing."""
    lacking = [name for name in (*NEEDS, *further) if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(lacking)} (pip install {' '.join(lacking)})" if lacking else ""


class PeerProcess:
    """`python -m quiesce.engine.bench.peer` on a checkpoint folder. It works only between an order and its answer, so that taking turns
    is fair: the other side is idle then."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quiesce.engine.bench.peer", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """The answer to an order.

        Raises:
            PeerError: it failed, or is gone.
        """
        if self._process.stdin is None or self._process.stdout is None or self._process.stdin.closed:
            raise PeerError("the peer is gone")
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            raise PeerError(f"the peer is gone: {error}") from error
        if not line:
            raise PeerError(f"the peer ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer
