"""What the process of a core does: `python -m quiesce.engine.link.core_process FOLDER`, told the rest on its standard input.

It runs passes when something was posted, lands or is due, and lives no longer than whoever started it: when the standard input ends it
clears its sockets away and is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from quiesce.engine import errors, logs
from quiesce.engine.answers import Answers, Nak
from quiesce.engine.config import EngineConfig
from quiesce.engine.core import Core
from quiesce.engine.inbox import Abort, Control, Detach, Event, Submit
from quiesce.engine.link import codec
from quiesce.engine.link.fronts import Front, owned, sort
from quiesce.engine.link.letters import STREAM_BITS, Beat, Bye, Hello, News, Over, Post, ToFront, Welcome
from quiesce.engine.link.weights import opened
from quiesce.engine.measures import Measured
from quiesce.engine.model import Model, make_device, open_model
from quiesce.engine.outputs import Status

logger = logging.getLogger("quiesce.core")
BEATS: Final = 5
"""Signs of life in the time after which a front end misses one."""
IDLE_TOLD_S: Final = 0.05
"""How often a front end that nothing happens to is told the counts."""
LAST_LETTER_MS: Final = 2000
PR_SET_PDEATHSIG: Final = 1


class CoreLoop:
    """A core, its front ends and its sockets."""

    def __init__(self, core: Core, model: Model, epoch: int, events: zmq.Socket[bytes], router: zmq.Socket[bytes]) -> None:
        self.core, self.model, self.epoch = core, model, epoch
        self.events, self.router = events, router
        self.fronts: dict[int, Front] = {}
        self._num_fronts = 0
        self._published: tuple[Status, Measured] | None = None
        self._entries: list[dict[str, Any]] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = zmq.Poller()
        for source in (events, router, self._wake):
            self._poller.register(source, zmq.POLLIN)
        core.device.bind(lambda: os.eventfd_write(self._wake, 1))
        core.deliver = self._deliver
        core.trace.watch(self._entries.append)

    def run(self) -> None:
        """Passes, until no further one can change anything."""
        self.core.device.load()
        while not self.core.finished_for_good:
            if self._wait():
                self.core.step()
            self._tell()

    def _wait(self) -> bool:
        """Waits for something to do, and takes what front ends have sent. Whether a pass is due."""
        now_s, due_s = self.core.clock(), self.core.next_deadline_s()
        next_s = min([front.told_s + front.lease_s / BEATS for front in self.fronts.values()], default=now_s + 1.0)
        until_s = next_s if due_s is None else min(due_s, next_s)
        ready = dict(self._poller.poll(math.ceil(max(until_s - now_s, 0.0) * 1e3)))
        is_due = due_s is not None and self.core.clock() >= due_s
        if self._wake in ready:
            os.eventfd_read(self._wake)
            is_due = True
        if self.router in ready:
            self._take_signs()
        if self.events in ready:
            is_due |= self._take_events()
        return self._drop_silent() or is_due

    # ---- front ends -------------------------------------------------------------------------------------------------------------

    def _take_signs(self) -> None:
        """Who is there, and who leaves."""
        while self.router.poll(0):
            address, data = self.router.recv_multipart()
            try:
                envelope = codec.for_core(data)
            except codec.WireError as error:
                logger.warning("a front end sent what is no letter: %s", error)
                continue
            front = self.fronts.get(envelope.front)
            if isinstance(envelope.letter, Hello) and envelope.epoch in (0, self.epoch):
                self._welcome(address, envelope.letter.lease_s)
            elif front is not None and front.address == address and envelope.epoch == self.epoch:
                front.heard_s = self.core.clock()
                if isinstance(envelope.letter, Bye):
                    self._drop(front)

    def _welcome(self, address: bytes, lease_s: float) -> None:
        self._num_fronts += 1
        front = Front(self._num_fronts, address, lease_s, self.core.clock())
        self.fronts[front.number] = front
        self._send(front, Welcome(front.number, os.getpid(), str(self.core.config.model), self.model.max_model_len))

    def _drop_silent(self) -> bool:
        """Takes front ends for dead whose lease is over. Whether there were any."""
        now_s = self.core.clock()
        silent = [front for front in self.fronts.values() if now_s > front.heard_s + front.lease_s]
        for front in silent:
            logger.warning("front end %d has given no sign of life for %g s: its requests end", front.number, front.lease_s)
            self._drop(front)
        return bool(silent)

    def _drop(self, front: Front) -> None:
        """Ends what is the front end's own. Operations go on to their declared end."""
        del self.fronts[front.number]
        for key in [key for key in self.core.by_stream if key >> STREAM_BITS == front.number]:
            self.core.inbox.post(Abort(key))
        for call in front.calls:
            self.core.inbox.post(Detach(call))

    # ---- events -----------------------------------------------------------------------------------------------------------------

    def _take_events(self) -> bool:
        """Posts what came. Whether anything did."""
        posted = False
        while self.events.poll(0):
            try:
                envelope = codec.for_core(self.events.recv())
            except codec.WireError as error:
                logger.warning("a front end sent what is no letter: %s", error)
                continue
            front = self.fronts.get(envelope.front)
            if front is None or envelope.epoch != self.epoch or not isinstance(envelope.letter, Post):
                continue  # of a front end or an epoch that is over
            event = owned(envelope.letter.event, front)
            if event is not None:
                posted |= self._post(event, front)
        return posted

    def _post(self, event: Event, front: Front) -> bool:
        if isinstance(event, Submit):
            try:
                self._check(event)
                self.core.inbox.post(event)
            except errors.EngineError as error:
                sort([Nak(event.stream, error)], self.fronts)
                return False
            return True
        if isinstance(event, Control) and event.source is not None:
            event = replace(event, source=opened(event.source))  # type: ignore[arg-type]  # the codec has put a parcel in its place
        self.core.inbox.post(event)
        return True

    def _check(self, submit: Submit) -> None:
        """Front ends check before they send; this one holds whoever else speaks to the socket to the same.

        Raises:
            InvalidRequest: the model cannot be asked this.
        """
        self.model.token_ids_of(submit.token_ids.tolist())
        self.model.check_params(submit.params)

    # ---- news -------------------------------------------------------------------------------------------------------------------

    def _deliver(self, answers: Answers) -> None:
        sort(answers.answers, self.fronts)

    def _tell(self) -> None:
        """Hands over what the pass has to say, and signs of life where it has nothing."""
        now_s, status = self.core.clock(), self.core.status
        entries, self._entries[:] = list(self._entries), []
        for front in list(self.fronts.values()):
            front.entries += entries
            if front.answers or self._is_news(front, status, now_s):
                measured = status.measured if front.status is None or front.status.measured is not status.measured else None
                news = News(status, measured, front.answers, front.entries)
                front.answers, front.entries, front.status = [], [], status
                self._send(front, news)
            elif now_s >= front.told_s + front.lease_s / BEATS:
                self._send(front, Beat())

    def _is_news(self, front: Front, status: Status, now_s: float) -> bool:
        """Whether a front end that waits for nothing should know: states at once, counts now and then."""
        old = front.status
        if status is old:
            return False
        if old is None or (status.engine, status.admission, status.memory, status.weights, status.pause_owners, status.operation) != (
            old.engine, old.admission, old.memory, old.weights, old.pause_owners, old.operation
        ):  # fmt: skip
            return True
        is_last = not status.steps_in_flight  # else another pass is sure to come
        return (is_last or now_s >= front.told_s + IDLE_TOLD_S) and status != old

    def _send(self, front: Front, letter: ToFront) -> None:
        front.told_s = self.core.clock()
        with contextlib.suppress(zmq.ZMQError):  # it is gone; its lease will say so
            number = 0 if isinstance(letter, Welcome) else front.number
            self.router.send_multipart([front.address, codec.encode(self.epoch, number, letter)])

    def end(self, cause: Exception | None) -> None:
        """The last letter to everybody."""
        for front in self.fronts.values():
            self._send(front, Over(cause))


# ---- the process ------------------------------------------------------------------------------------------------------------------


def _die_with_the_parent() -> None:
    """A last resort for a core that cannot even notice the end of its standard input: when the thread that started it is gone, the
    kernel sends SIGHUP, whose handler is the C library's `alarm`: after 1 s, its own number, SIGALRM ends the process. Until then
    `_watch_parent` may clear away."""
    library = ctypes.CDLL(None, use_errno=True)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGHUP), ctypes.cast(library.alarm, ctypes.c_void_p))
    library.prctl(PR_SET_PDEATHSIG, int(signal.SIGHUP), 0, 0, 0)


def _read(count: int) -> bytes:
    """So many bytes of standard input. Raises EOFError: whoever started us is gone."""
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _watch_parent(folder: Path) -> None:
    """Ends this process with whoever started it."""
    while os.read(0, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _bound(context: zmq.Context[zmq.Socket[bytes]], kind: int, address: Path) -> zmq.Socket[bytes]:
    made = context.socket(kind)
    made.setsockopt(zmq.SNDHWM, 0)  # what may be under way is bounded by what was accepted
    made.setsockopt(zmq.RCVHWM, 0)
    made.setsockopt(zmq.LINGER, LAST_LETTER_MS)
    made.bind(f"ipc://{address}")
    return made


def _serve(boot: dict[str, Any], events: zmq.Socket[bytes], router: zmq.Socket[bytes]) -> None:
    """Makes the core and runs it to its end. Raises whatever keeps it from being made, once everybody who has asked is told."""
    loop: CoreLoop | None = None
    cause: Exception | None = None
    try:
        config = EngineConfig(**boot["config"])
        model = open_model(config)
        device = make_device(config, model)
        core = Core(config, model.info, device, max_model_len=model.max_model_len, tokenizer=model.tokenizer)
        core.epoch, core.started_s = boot["epoch"], boot["started_s"]
        core.status = replace(core.status, epoch=core.epoch)
        loop = CoreLoop(core, model, boot["epoch"], events, router)
        loop.run()
    except Exception as error:
        logger.critical("the core died", exc_info=None if isinstance(error, errors.EngineError) else error)
        cause = error
        raise
    finally:
        if loop is not None:
            loop.end(cause)
        elif cause is not None and router.poll(LAST_LETTER_MS):
            address, _ = router.recv_multipart()
            router.send_multipart([address, codec.encode(boot["epoch"], 0, Over(cause))])


def main() -> int:
    """The process. Its exit status: 0 after a shutdown, 1 after anything else."""
    folder = Path(sys.argv[1])
    _die_with_the_parent()
    try:
        boot = msgspec.msgpack.decode(_read(int.from_bytes(_read(4), "little")))
    except EOFError:
        return 1
    threading.Thread(target=_watch_parent, args=(folder,), name="quiesce-watch", daemon=True).start()
    if boot["log_level"] is not None:
        name = logging.getLevelName(boot["log_level"]).lower()
        logs.set_up(name if name in logs.LEVELS else "warning")
    context = zmq.Context()
    events, router = _bound(context, zmq.PULL, folder / "events"), _bound(context, zmq.ROUTER, folder / "answers")
    status = 0
    try:
        _serve(boot, events, router)
    except Exception:  # noqa: BLE001  it is logged and told
        status = 1
    events.close()
    router.close()
    context.term()
    return status


if __name__ == "__main__":
    STATUS = main()
    logging.shutdown()
    os._exit(STATUS)  # nothing is left to be done, and taking torch down takes long
