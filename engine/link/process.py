"""A core in a process of its own, and the thread that looks after it.

    loop: post -> push ---------------- ipc ----------------> core: pull -> inbox -> passes
    loop: deliver <- this thread <- dealer <---- ipc ---- core: router <- answers, status, trace

The thread starts the process, hears it, and says when it is lost: dead (its process descriptor says so), silent for too long, or over
by its own word. What follows is decided in the front end's loop (`engine/link/connection.py`) and ordered from there; the thread then
waits for the old process to be gone before it starts another.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

import zmq

from quiesce.engine import errors
from quiesce.engine.answers import Ack, Answers, Nak
from quiesce.engine.config import EngineConfig
from quiesce.engine.inbox import Control, Event, Submit
from quiesce.engine.link import codec
from quiesce.engine.link.child import SCHEME, AttachedCore, CoreProcess, CoreSockets, check_address, private_folder
from quiesce.engine.link.connection import Connection
from quiesce.engine.link.letters import Beat, Bye, Envelope, Feed, Files, Hello, News, Over, Post, Welcome
from quiesce.engine.link.weights import Feeder
from quiesce.engine.model import Model
from quiesce.engine.outputs import Blocks, Status
from quiesce.engine.weight_source import FilePairs
from quiesce.spec.vocabulary import EngineState, Tag
from quiesce.statemachine.trace import Trace

logger = logging.getLogger("quiesce.front_end")
START_TIMEOUT_S: Final = 300.0
"""A core that has not answered for so long after it was started is killed."""
BEATS: Final = 5
"""Signs of life in the time after which one is missed."""
LAST_WORDS_MS: Final = 50
FEEDER_S: Final = 1.0
LETTERS: Final = 256
"""Taken in one go, so that our own signs of life are sent, however much there is to hear."""
NOTHING: Final = MappingProxyType[str, Any]({})


@dataclass(frozen=True, slots=True)
class Loss:
    """How a core was lost."""

    cause: BaseException | None
    """None: it was told to stop."""
    is_dead: bool = False
    is_final: bool = False
    """Another one would fare no better."""


class ProcessLink:
    """`Link` and `Supervisor` of a core that this front end starts.

    Args:
        trace: takes the core's entries.
        call_in_loop: runs a function in the front end's loop, from any thread.
    """

    def __init__(self, config: EngineConfig, model: Model, trace: Trace, call_in_loop: Callable[..., object]) -> None:
        self.config, self.model, self.trace, self._call_in_loop = config, model, trace, call_in_loop
        if config.connect is not None:
            check_address(config.connect)
        self.started_s = time.monotonic()
        self._epoch = 1 if config.connect is None else 0  # 0: not known yet
        self.address = config.connect
        """Where other front ends find the core."""
        self._pid: int | None = None
        self._number = 0
        self._push: zmq.Socket[bytes] | None = None
        self._num_posted = 0
        """Admissions that the core has not answered."""
        self._status = _nothing_yet(model, self._epoch)
        self._measured = self._status.measured
        self._feeders: set[Feeder] = set()
        self._orders: queue.SimpleQueue[tuple[str, int | None]] = queue.SimpleQueue()
        self._lock, self._has_ended = threading.Lock(), False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._deliver: Callable[[Answers], None]
        self._connection: Connection
        self._gone: Callable[[], None]

    # ---- in the front end's loop ------------------------------------------------------------------------------------------------

    def bind(self, connection: Connection, gone: Callable[[], None]) -> None:
        """Names whose link this is, and what is called in the loop when all is given back."""
        self._connection, self._gone = connection, gone

    def start(self, deliver: Callable[[Answers], None], ended: Callable[[BaseException | None], None]) -> None:
        self._deliver = deliver
        self._thread = threading.Thread(target=self._run, name="quiesce-supervisor", daemon=True)
        self._thread.start()

    def post(self, event: Event) -> None:
        if isinstance(event, Submit):
            if self._num_posted >= self.config.max_queue:
                raise errors.QueueFull(f"{self._num_posted} requests wait to be looked at")
            self._num_posted += 1
        elif isinstance(event, Control) and event.source is not None:
            event = replace(event, source=self._parcel(event.source))  # type: ignore[arg-type]  # it stands for the source until it arrives
        try:
            data = codec.encode(self._epoch, self._number, Post(event))
        except errors.InvalidRequest:
            self._num_posted -= isinstance(event, Submit)
            raise
        if self._push is not None:
            self._push.send(data)

    def _parcel(self, source: Iterator[tuple[str, Any]]) -> Files | Feed:
        """What goes to the core instead of a source of weights."""
        if isinstance(source, FilePairs):
            return Files({str(path): list(names) for path, names in source.files.items()})
        feeder = Feeder(source, self.model.info, private_folder(), self._feeders.discard)
        self._feeders.add(feeder)
        return feeder.address

    def status(self) -> Status:
        return self._status

    @property
    def core_pid(self) -> int | None:
        return self._pid

    def join(self) -> None:
        """Waits for the threads: the supervisor has said that it ended; a caller's own source of weights may still hold its feeder."""
        if self._thread is not None:
            self._thread.join()
        for feeder in list(self._feeders):
            feeder.join(FEEDER_S)

    def drop_mailboxes(self) -> None:
        if self._push is not None:
            self._push.close(linger=0)
            self._push = None
        for feeder in list(self._feeders):
            feeder.close()
        self._num_posted = 0
        self._status = after_loss(self._status)

    def kill_core(self) -> None:
        self._order("kill", None)

    def start_core(self) -> None:
        self._epoch = self._status.epoch + 1
        self._status = replace(
            self._status, engine=str(EngineState.starting), epoch=self._epoch, accepted=0, rejected=0, finished=NOTHING
        )
        self._order("start", self._epoch)

    def leave(self, is_stopped: bool) -> None:
        if is_stopped:
            self._status = replace(self._status, engine=str(EngineState.stopped))
        self._order("leave", None)

    def _order(self, word: str, epoch: int | None) -> None:
        with self._lock:  # the thread may end with this order, and closes what wakes it
            self._orders.put((word, epoch))
            if not self._has_ended:
                os.eventfd_write(self._wake, 1)

    def _welcomed(self, epoch: int, number: int, push: zmq.Socket[bytes]) -> None:
        if self._epoch not in (0, epoch) or not self._connection.is_starting:
            push.close(linger=0)  # it came too late: nobody waits for this core any more
            return
        self._epoch, self._number, self._push = epoch, number, push
        self._connection.connect()

    def _news(self, epoch: int, news: News) -> None:
        """Takes what a pass has to say: its status is published before its answers are delivered."""
        if epoch != self._epoch or self._push is None:
            return  # of a lost core
        for entry in news.entries:
            self.trace.add(entry)
        self._measured = news.measured or self._measured
        if news.status is not None:
            self._status = replace(news.status, measured=self._measured)
        self._num_posted -= sum(isinstance(answer, (Ack, Nak)) for answer in news.answers)
        if news.answers:
            self._deliver(Answers(self._status, news.answers))
        self._connection.look(self._status.engine)

    def _report_loss(self, epoch: int, loss: Loss) -> None:
        if epoch == self._epoch:
            self._connection.lose(loss.cause, loss.is_dead, loss.is_final)

    # ---- the thread -------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            epoch: int | None = self._epoch
            while epoch is not None:
                epoch = self._look_after(epoch)
            self._call_in_loop(self._gone)
        except RuntimeError:
            logger.debug("the front end's loop is closed; nobody listens")
        finally:
            with self._lock:
                self._has_ended = True
                os.close(self._wake)

    def _look_after(self, epoch: int) -> int | None:
        """One core, from its start until it is gone. The epoch of the next, if there is to be one."""
        try:
            core = self._core(epoch)
        except OSError as error:
            self._call_in_loop(self._report_loss, epoch, Loss(error, is_dead=True))
            return self._next_epoch(None)
        self._pid, self.address = core.pid, f"{SCHEME}{core.folder}"
        try:
            loss = self._hear(core)
            if loss is not None:
                self._call_in_loop(self._report_loss, core.epoch, loss)
            return self._next_epoch(core)
        except BaseException:  # the loop is closed: the core is nobody's any more
            core.reap(kill=True)
            raise

    def _core(self, epoch: int) -> CoreSockets:
        if self.config.connect is not None:
            return AttachedCore(self.config.connect)
        return CoreProcess(self.config, epoch, self.started_s)

    def _next_epoch(self, core: CoreSockets | None) -> int | None:
        """Does what the loop orders, until it wants another core (its epoch) or none."""
        while True:
            word, epoch = self._orders.get()
            if core is not None:
                self._pid = self.address = None
                core.reap(kill=word == "kill" and not core.is_over)
                core = None
            if word != "kill":
                return epoch

    def _hear(self, core: CoreSockets) -> Loss | None:
        """Takes the core's letters until it is lost; None: the loop wants no more of it."""
        poller = zmq.Poller()
        for source in (core.dealer, core.descriptor, self._wake):
            if source is not None:
                poller.register(source, zmq.POLLIN)
        lease_s = self.config.heartbeat_timeout_s
        core.dealer.send(codec.encode(core.epoch, 0, Hello(lease_s)))
        patience_s = START_TIMEOUT_S if self.config.connect is None else lease_s
        number, heard_s = 0, time.monotonic()
        beat_s = heard_s + lease_s / BEATS
        while True:
            due_s = min(beat_s, heard_s + patience_s) - time.monotonic()
            ready = dict(poller.poll(math.ceil(max(due_s, 0.0) * 1e3)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if not self._orders.empty():
                core.dealer.send(codec.encode(core.epoch, number, Bye()))
                return None
            is_gone = core.descriptor in ready
            for envelope in islice(letters_in(core.dealer, is_gone), None if is_gone else LETTERS):
                heard_s = time.monotonic()
                letter = envelope.letter
                if isinstance(letter, Welcome) and not number:
                    loss = self._misfit(letter)
                    if loss is not None:
                        return loss
                    try:
                        core.welcomed(envelope.epoch, letter.process)
                    except OSError as error:  # another front end's core, gone since it wrote
                        return Loss(error, is_dead=True)
                    poller.register(core.descriptor, zmq.POLLIN)
                    number, patience_s, self._pid = letter.number, lease_s, core.pid
                    self._call_in_loop(self._welcomed, core.epoch, number, core.push())
                elif envelope.epoch != core.epoch or envelope.front not in (0, number):
                    continue
                elif isinstance(letter, News):
                    self._call_in_loop(self._news, core.epoch, letter)
                elif isinstance(letter, Over):
                    core.is_over = True
                    return Loss(letter.cause, is_final=letter.cause is None or not number)
            if is_gone:
                return Loss(RuntimeError(f"its process {core.how_it_ended()}"), is_dead=True)
            now_s = time.monotonic()
            if now_s >= heard_s + patience_s:
                return Loss(TimeoutError(f"no sign of life for {patience_s:g} s"))
            if now_s >= beat_s:
                beat_s = now_s + lease_s / BEATS
                core.dealer.send(codec.encode(core.epoch, number, Beat()))
                self._call_in_loop(_nothing)  # raises where the loop is closed: then there is nobody to have a core for

    def _misfit(self, welcome: Welcome) -> Loss | None:
        """Another front end's core may serve another model."""
        mine = (os.fspath(self.config.model), self.model.max_model_len)
        if (welcome.model, welcome.max_model_len) == mine:
            return None
        reason = f"the core serves {welcome.model!r} with a context of {welcome.max_model_len}, not {mine[0]!r} with one of {mine[1]}"
        return Loss(errors.InvalidRequest("connect", reason), is_final=True)


def _nothing() -> None:
    pass


def letters_in(socket: zmq.Socket[bytes], last: bool) -> Iterator[Envelope]:
    """What has come. `last`: whoever sends it is dead, so that what is under way is waited for."""
    while socket.poll(LAST_WORDS_MS if last else 0):
        try:
            yield codec.for_front(socket.recv(zmq.NOBLOCK))
        except codec.WireError as error:
            logger.warning("the core sent what is no letter: %s", error)


def _nothing_yet(model: Model, epoch: int) -> Status:
    """Of a core that has not said anything."""
    blocks = Blocks(model.num_blocks, model.num_blocks, 0, 0, 0)
    memory = MappingProxyType({tag.value: "resident" for tag in Tag})
    return Status("starting", "queue", memory, (0, "stable"), NOTHING, None, NOTHING, 0, 0, 0, blocks, epoch, 0, 0)


def after_loss(status: Status) -> Status:
    """Of a core that was lost: what it held is gone, and what lived in it has ended with an error."""
    finished = dict(status.finished)
    if status.live:
        finished["error"] = finished.get("error", 0) + status.live
    memory, blocks = (
        MappingProxyType(dict.fromkeys(status.memory, "undefined")),
        Blocks(status.blocks.total, status.blocks.total, 0, 0, 0),
    )
    return replace(
        status, engine="stopped" if status.engine == "stopped" else "failed", admission="reject", memory=memory,
        weights=(status.weights[0], "undefined"), pause_owners=NOTHING, operation=None, requests=NOTHING, steps_in_flight=0, blocks=blocks,
        finished=MappingProxyType(finished),
    )  # fmt: skip
