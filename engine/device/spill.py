"""Where the content of an arena waits while its memory is away: a file without a name, so that it dies with the process."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence

Span = tuple[int, int]
"""Bytes [begin, end) of an arena."""
CHUNK_BYTES = 32 * 2**20
"""Copied at once: between two chunks a copy can be called off."""


def spill_folder() -> str:
    """`TMPDIR` where it is set, else /var/tmp: what is in /tmp may be kept in memory, which would save none (file-hierarchy(7))."""
    named = os.environ.get("TMPDIR")
    if named:
        return named
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()


class Spill:
    """Spans of an arena, one after the other in a file.

    Read and written, never mapped: the file's pages are the system's, not this process's, and a full disk is an error, not a signal.

    Args:
        memory: the arena.
        spans: what to keep of it.
        go_on: called before each chunk; what it raises ends the copy.

    Raises:
        OSError: no such folder, no space, a failing disk. Nothing is left behind.
    """

    __slots__ = ("_file", "_spans")

    def __init__(self, memory: memoryview, spans: Sequence[Span], go_on: Callable[[], None]) -> None:
        self._spans = tuple(spans)
        folder, num_bytes = spill_folder(), sum(end - begin for begin, end in self._spans)
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  it is open for as long as the memory is away
            try:
                _reserve(self._file.fileno(), num_bytes)
                for offset, begin, end in self._chunks():
                    go_on()
                    _write(self._file.fileno(), memory[begin:end], offset)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            reason = f"{error.strerror}, for {num_bytes} bytes of content in {folder} (TMPDIR names another folder)"
            raise OSError(error.errno, reason) from error

    def read_back(self, memory: memoryview, go_on: Callable[[], None]) -> None:
        """Copies everything to where it was.

        Raises:
            OSError: the file cannot be read. It stays, and the copy may be tried again.
        """
        for offset, begin, end in self._chunks():
            go_on()
            _read(self._file.fileno(), memory[begin:end], offset)

    def close(self) -> None:
        """Drops the file. Idempotent."""
        self._file.close()

    def _chunks(self) -> Iterator[tuple[int, int, int]]:
        """(place in the file, begin, end) of each piece."""
        offset = 0
        for start, stop in self._spans:
            for begin in range(start, stop, CHUNK_BYTES):
                end = min(begin + CHUNK_BYTES, stop)
                yield offset, begin, end
                offset += end - begin


def _reserve(fd: int, num_bytes: int) -> None:
    """Takes the space first: a copy that cannot end fails before it begins."""
    if not num_bytes:
        return
    try:
        os.posix_fallocate(fd, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot; then the writes will tell
            raise


def _write(fd: int, memory: memoryview, offset: int) -> None:
    while len(memory):
        count = os.pwrite(fd, memory, offset)
        if not count:
            raise OSError(errno.EIO, "the file takes no more")
        memory, offset = memory[count:], offset + count


def _read(fd: int, memory: memoryview, offset: int) -> None:
    while len(memory):
        count = os.preadv(fd, [memory], offset)
        if not count:
            raise OSError(errno.EIO, "the file ends early")
        memory, offset = memory[count:], offset + count
