"""What tests of sleeping memory look at and bring about: pages of the process, its open files, refusals of the system."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


def rss() -> int:
    """Bytes of anonymous memory that this process has in hand, by the system's own count. Pages of files (libraries) come and go."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def open_files() -> list[str]:
    """What this process has open, the pipe that lists it aside."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(name for name in found if not name.startswith("/proc/"))


def nameless_files() -> int:
    return sum(name.startswith(os.environ["TMPDIR"]) and name.endswith("(deleted)") for name in open_files())


@contextmanager
def locked(address: int, num_bytes: int) -> Iterator[None]:
    """Pages that the system will not take: what a real refusal of `madvise` comes from."""
    page = address - address % mmap.PAGESIZE
    assert LIBC.mlock(ctypes.c_void_p(page), ctypes.c_size_t(num_bytes)) == 0
    try:
        yield
    finally:
        LIBC.munlock(ctypes.c_void_p(page), ctypes.c_size_t(num_bytes))


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk on which no file can grow beyond this: space that runs out, as far as a writer can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
