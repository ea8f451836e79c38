"""Processes as the system tells of them."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children_of(pid: int) -> set[int]:
    """The processes that this one has started and not seen to their end, whichever of its threads did."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            _, _, facts = (process / "stat").read_text().rpartition(")")
            if int(facts.split()[1]) == pid:
                found.add(int(process.name))
    return found
