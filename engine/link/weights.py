"""Weights for a core elsewhere. Files are named; what a caller hands over is fed tensor by tensor, when the core's device asks for it.

    core: one byte, "more" ------> front end: the next pair is pulled from the caller's source
    core: a header, then bytes <-- front end

Every feed has a Unix socket of its own in a folder that only this user can look into. Whoever is done closes: an update that was refused,
a core that died and a front end that left all end a feed the same way, and nothing of it is left.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from quiesce.engine import errors
from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.link.letters import Feed, Files
from quiesce.engine.weight_source import FilePairs, check_pairs, dtype_name

logger = logging.getLogger("quiesce.front_end")
MORE: Final = b"+"
LENGTH: Final = 4
"""Bytes of a header's own length, little-endian."""
MAX_HEADER: Final = 2**16
END: Final = object()


class Header(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What comes next: a tensor, the end (no name), or what went wrong."""

    name: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    num_bytes: int = 0
    field: str = ""
    error: str = ""


class Feeder:
    """The front end's side of one feed. Its thread ends with the feed.

    Args:
        source: the caller's pairs, pulled on the feeder's thread.
        folder: where the socket is put; removed with it.
        over: called, from that thread, when the feed has ended.
    """

    def __init__(
        self, source: Iterator[tuple[str, Any]], info: ModelInfo, folder: Path, over: Callable[[Feeder], None]
    ) -> None:
        self._source, self._info, self._over = source, info, over
        self._folder = folder
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(folder / "weights"))
        self._listening.listen(1)
        self._core: socket.socket | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="quiesce-weights", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Feed:
        return Feed(str(self._folder / "weights"))

    def close(self) -> None:
        """Ends the feed, from any thread, without waiting for a source that is being pulled."""
        with self._lock:
            self._closed = True
            for one in (self._listening, self._core):
                if one is not None:
                    with contextlib.suppress(OSError):  # it is closed, or was never connected
                        one.shutdown(socket.SHUT_RDWR)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            core, _ = self._listening.accept()
            with core:
                with self._lock:
                    self._core = core
                while not self._closed and core.recv(1):
                    self._feed(core)
        except OSError as error:
            logger.debug("a feed of weights ended: %s", error)
        finally:
            with self._lock:
                self._closed, self._core = True, None
                self._listening.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._source = iter(())
            self._over(self)

    def _feed(self, core: socket.socket) -> None:
        """Pulls one pair and sends it. What is wrong with it is told instead; the core's update decides what that means."""
        header, data = Header(), memoryview(b"")
        try:
            pair: Any = next(self._source, END)
            if pair is not END:
                check_pairs([pair], self._info)
                name, tensor = pair
                data = _bytes_of(tensor)
                header = Header(name, dtype_name(tensor), tuple(tensor.shape), len(data))
        except errors.InvalidRequest as error:
            header = Header(field=error.field, error=error.reason)
        except Exception as error:  # noqa: BLE001  the caller's own code ran here
            header = Header(field="source", error=f"{type(error).__name__}: {error}")
        line = msgspec.msgpack.encode(header)
        core.sendall(len(line).to_bytes(LENGTH, "little") + line)
        core.sendall(data)


def _bytes_of(tensor: Any) -> memoryview:
    if isinstance(tensor, np.ndarray):
        native = tensor.dtype if tensor.dtype.isnative else tensor.dtype.newbyteorder("=")
        return np.ascontiguousarray(tensor, native).reshape(-1).view(np.uint8).data
    from quiesce.engine.device.arrivals import bytes_of  # whoever has a tensor of torch has torch

    return bytes_of(tensor)


class FedPairs(Iterator[tuple[str, Any]]):
    """The core's side of a feed: connected at once, asked when it is pulled, closed when nobody has it any more.

    Raises:
        OSError: there is no such feed any more.
    """

    def __init__(self, feed: Feed) -> None:
        self._is_over = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(feed.socket)
        except OSError:
            self._socket.close()
            raise

    def __next__(self) -> tuple[str, Any]:
        if self._is_over:
            raise StopIteration
        try:
            return self._next()
        except BaseException:  # it ended, one way or the other
            self._is_over = True
            self._socket.close()
            raise

    def _next(self) -> tuple[str, Any]:
        self._socket.sendall(MORE)
        size = int.from_bytes(self._read(LENGTH), "little")
        if size > MAX_HEADER:
            raise errors.InvalidRequest("source", "the feed is broken")
        header = msgspec.msgpack.decode(self._read(size), type=Header)
        if header.error:
            raise errors.InvalidRequest(header.field, header.error)
        if not header.name:
            raise StopIteration
        from quiesce.engine.device.arrivals import tensor_of  # on the device's worker

        return header.name, tensor_of(self._read(header.num_bytes), header.dtype, header.shape)

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise errors.InvalidRequest("source", "the front end that feeds it is gone")
            view = view[got:]
        return data

    def __del__(self) -> None:
        self._socket.close()


def opened(parcel: Files | Feed) -> Iterator[tuple[str, Any]]:
    """In the core: the pairs that a parcel stands for."""
    if isinstance(parcel, Files):
        return FilePairs({Path(path): names for path, names in parcel.files.items()})
    try:
        return FedPairs(parcel)
    except OSError as error:
        return map(_refuse, [error])


def _refuse(error: OSError) -> tuple[str, Any]:
    raise errors.InvalidRequest("source", f"the feed is gone: {error}")
