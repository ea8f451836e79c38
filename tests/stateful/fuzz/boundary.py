"""A core behind a process boundary without the process: the letters are the real bytes, the sockets lie in the deterministic loop.

Both ends are the engine's own code: `ProcessLink` decides what a front end does with a letter, a loss and a restart, `CoreLoop` what a core
does with them. Here is only what carries letters, when each arrives, what is lost with a core that dies, and what comes again too late.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

from quiesce.engine.answers import Answers
from quiesce.engine.config import EngineConfig
from quiesce.engine.core import Core
from quiesce.engine.inbox import Abort, Control, Event, Submit
from quiesce.engine.link import codec
from quiesce.engine.link.core_process import CoreLoop
from quiesce.engine.link.fronts import Front
from quiesce.engine.link.letters import Feed, Hello, News, Over, Welcome
from quiesce.engine.link.process import Loss, ProcessLink
from quiesce.engine.model import Model
from quiesce.stateful.ledger_device import LedgerDevice
from quiesce.stateful.loop import DeterministicLoop
from quiesce.statemachine.trace import Trace

ADDRESS: Final = b"front"
REMEMBERED: Final = 3
"""Letters of a lost core that may come again."""
TO_CORE, TO_FRONT = "letter to the core", "letter to the front end"
"""What the loop calls them; held by these names they are late."""


class Mouth:
    """What the front end pushes letters into."""

    def __init__(self, carry: Callable[[bytes], None]) -> None:
        self.send = carry

    def close(self, linger: int = 0) -> None:
        """What was sent is under way all the same."""


class Mailbox:
    """What has arrived at the core and was not taken."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._letters: deque[Any] = deque()
        self._say = say

    def put(self, letter: object) -> None:
        self._letters.append(letter)

    def poll(self, timeout: int = 0) -> int:
        return len(self._letters)

    def recv(self) -> Any:
        return self._letters.popleft()

    recv_multipart = recv

    def send_multipart(self, parts: list[bytes]) -> None:
        self._say(parts[1])


class LoopedCore(CoreLoop):
    """A core process: its passes, its letters and its death happen when the loop chooses."""

    def __init__(self, link: BoundaryLink, core: Core, device: LedgerDevice, model: Model, epoch: int) -> None:
        self.link, self.loop, self.device = link, link.loop, device
        core.clock = link.loop.time
        self.inbound, self.signs = Mailbox(lambda data: None), Mailbox(self.say)
        super().__init__(core, model, epoch, cast("Any", self.inbound), cast("Any", self.signs))
        os.close(self._wake)  # the loop wakes it
        core.device.bind(self.wake)
        self.is_alive, self.is_over, self.is_silent = True, False, False
        self.number = 0
        """What it calls the front end; 0 until its welcome has arrived."""
        self.under_way: deque[bytes | None] = deque()
        """Letters to the front end that have not arrived; None: died with the core."""
        self.told: deque[bytes] = deque(maxlen=REMEMBERED)
        self.num_arrived = self.num_posted = 0
        """Letters sent to this core, and those that it took for such."""
        self._is_due = False
        self._timer: Any = None

    def wake(self) -> None:
        if not self._is_due and self.is_alive and not self.is_over:
            self._is_due = True
            self.loop.offer("pass", self._pass, channel=f"core {self.epoch}")

    def _pass(self) -> None:
        self._is_due = False
        if not self.is_alive or self.is_over or self.is_silent:
            return
        cause: Exception | None = None
        try:
            self._take_signs()
            self._take_events()
            if self.num_posted > self.num_arrived:
                self.link.found(f"core {self.epoch} took a letter that was sent to another")
            self._drop_silent()
            self.core.step()
            self._tell()
        except Exception as error:  # noqa: BLE001  as in `_serve`: whoever waits must learn of it
            cause = error
        if cause is not None or self.core.finished_for_good:
            self.is_over = True
            self.end(cause)
        self._set_timer()
        self.link.watch(self)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.core.next_deadline_s()
        if due is not None and self.is_alive and not self.is_over:
            self._timer = self.loop.call_at(due, self.wake)

    def _post(self, event: Event, front: Front) -> bool:
        """A source of weights is beside the letter, as it is in life."""
        self.num_posted += 1
        source: Any = event.source if isinstance(event, Control) else None
        if isinstance(source, Feed):
            self.core.inbox.post(replace(cast("Control", event), source=self.link.sources.pop(source.socket)))
            return True
        return super()._post(event, front)

    def say(self, data: bytes) -> None:
        """A letter leaves for the front end. In order, as in a socket."""
        self.told.append(data)
        self.under_way.append(data)
        self.loop.offer(TO_FRONT, self._arrive, channel=f"to front {self.epoch}")

    def _arrive(self) -> None:
        data = self.under_way.popleft()
        if data is not None:
            self.link.take(self, data)

    def die(self, num_lost: int = 0) -> None:
        """Ends in the middle of nowhere; its last letters die with it."""
        self.is_alive = False
        if self._timer is not None:
            self._timer.cancel()
        for place in range(len(self.under_way) - min(num_lost, len(self.under_way)), len(self.under_way)):
            self.under_way[place] = None


class BoundaryLink(ProcessLink):
    """`ProcessLink` whose thread and sockets are the deterministic loop's.

    Args:
        make_core: a core and its device, as the child process would make them.
        reorders: letters about different streams and calls overtake each other.
    """

    def __init__(
        self, loop: DeterministicLoop, config: EngineConfig, model: Model, trace: Trace,
        make_core: Callable[[], tuple[Core, LedgerDevice]], reorders: bool,
    ) -> None:  # fmt: skip
        super().__init__(config, model, trace, lambda function, *args: loop.call_soon(function, *args))
        os.close(self._wake)
        self.loop, self._model, self._make_core, self._reorders = loop, model, make_core, reorders
        self.started_s = 0.0
        self.sources: dict[str, Iterator[tuple[str, Any]]] = {}
        self._num_sources = 0
        self.cores: list[LoopedCore] = []
        self.num_losses = 0
        self.has_final_loss = False
        self.when_started: Callable[[LoopedCore], None] = lambda core: None
        self.dies_when: Callable[[LoopedCore], bool] | None = None
        """The protocol point at which the core is to be killed, if it is."""
        self._sent: deque[bytes] = deque(maxlen=REMEMBERED)
        self._sent_before: tuple[bytes, ...] = ()
        self.problems: list[str] = []
        self._channel = ""
        self.spawn(1)

    @property
    def core(self) -> LoopedCore:
        """The present one, or the last."""
        return self.cores[-1]

    def spawn(self, epoch: int) -> None:
        """Makes what the child process makes.

        Raises:
            RuntimeError: there is another one: two cores would have one place.
        """
        if any(core.is_alive and not core.is_over for core in self.cores):
            raise RuntimeError("a new core is started while the old one lives")
        core, device = self._make_core()
        core.epoch, core.started_s = epoch, self.started_s
        core.status = replace(core.status, epoch=epoch)
        self.cores.append(LoopedCore(self, core, device, self._model, epoch))

    def drop_mailboxes(self) -> None:
        self.num_losses += 1
        super().drop_mailboxes()

    # ---- what the thread does in life ---------------------------------------------------------------------------------------------

    def start(self, deliver: Callable[[Answers], None], ended: Callable[[BaseException | None], None]) -> None:
        self._deliver = deliver
        self.loop.offer("the core starts", partial(self._begin, self.core), channel="process")

    def join(self) -> None:
        """There is no thread to wait for."""

    def _begin(self, core: LoopedCore) -> None:
        if not core.is_alive:
            return
        core.core.device.load()
        self._sign(core, codec.encode(core.epoch, 0, Hello(self.config.heartbeat_timeout_s)))
        self.watch(core)

    def _sign(self, core: LoopedCore, data: bytes) -> None:
        def arrive() -> None:
            core.signs.put([ADDRESS, data])
            core.wake()

        self.loop.offer(TO_CORE, arrive, channel=f"signs {core.epoch}")

    def _order(self, word: str, epoch: int | None) -> None:
        if word == "kill":
            if self.core.is_alive and not self.core.is_over:
                self.core.die()
        elif word == "start" and epoch is not None:
            self.loop.offer("the next core starts", partial(self._next, epoch), channel="process")
        else:
            self.loop.offer("all is given back", self._gone, channel="process")

    def _next(self, epoch: int) -> None:
        if epoch == self._epoch:
            self._sent_before = tuple(self._sent)
            self.spawn(epoch)
            self.when_started(self.core)
            self._begin(self.core)
            self._repeat("while the next core starts")

    def _repeat(self, when: str) -> None:
        """What the core before wrote or was written comes once more: it is nobody's."""
        old, core = self.cores[-2], self.core
        if old.told and self.loop.choose(f"an old letter comes to the front end {when}", 2):
            before, envelope = (self._status, self._num_posted), codec.for_front(old.told[-1])
            if isinstance(envelope.letter, News):
                self._news(envelope.epoch, envelope.letter)
            self.take(core, old.told[-1])
            if (self._status, self._num_posted) != before:
                self.found("a letter of a lost core has changed something")
        if self._sent_before and self.loop.choose(f"an old letter comes to the next core {when}", 2):
            core.inbound.put(self._sent_before[-1])
            core.wake()

    def found(self, text: str) -> None:
        """Something is wrong."""
        self.problems.append(text)

    @property
    def is_up_to_date(self) -> bool:
        """Whether the front end knows what the core would say, and waits for nothing."""
        core = self.core.core.status
        return self._num_posted == 0 and replace(self._status, measured=core.measured) == core

    # ---- letters ------------------------------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        key = event.stream if isinstance(event, (Submit, Abort)) else event.call
        self._channel = f" {key}" if self._reorders else ""
        super().post(event)

    def _parcel(self, source: Iterator[tuple[str, Any]]) -> Feed:
        """A source of weights goes beside the letter."""
        name = f"source {self._num_sources}"
        self._num_sources += 1
        self.sources[name] = source
        return Feed(name)

    def _carry(self, core: LoopedCore, data: bytes) -> None:
        """A letter leaves for the core."""
        self._sent.append(data)

        def arrive() -> None:
            core.inbound.put(data)
            core.num_arrived += 1
            self.watch(core)
            core.wake()

        self.loop.offer(TO_CORE, arrive, channel=f"to core {core.epoch}{self._channel}")

    def take(self, core: LoopedCore, data: bytes) -> None:
        """A letter has come from a core: what `_hear` does with it."""
        envelope = codec.for_front(data)
        if envelope.epoch != core.epoch or envelope.front not in (0, core.number):
            return
        letter = envelope.letter
        if isinstance(letter, Welcome) and not core.number:
            core.number = letter.number
            self._call_in_loop(self._welcomed, core.epoch, letter.number, Mouth(partial(self._carry, core)))
            if core.epoch > 1:
                self._call_in_loop(self._repeat, "that was welcomed")
        elif isinstance(letter, News):
            self._call_in_loop(self._news, core.epoch, letter)
        elif isinstance(letter, Over):
            self.lost(core, Loss(letter.cause, is_final=letter.cause is None or not core.number))

    def lost(self, core: LoopedCore, loss: Loss) -> None:
        self.has_final_loss |= loss.is_final
        self._call_in_loop(self._report_loss, core.epoch, loss)

    # ---- faults -------------------------------------------------------------------------------------------------------------------

    def watch(self, core: LoopedCore) -> None:
        """After each pass and each letter: whether this is the protocol point at which the core dies."""
        if core.is_alive and self.dies_when is not None and self.dies_when(core):
            self.dies_when = None
            self.kill(core)

    def kill(self, core: LoopedCore) -> None:
        """As `kill -9`: letters that it had not got rid of are gone, and its descriptor says so behind those that it had."""
        if core.is_alive and not core.is_over:
            core.die(self.loop.choose("letters that die with the core", 3))
            dead = Loss(RuntimeError("its process was killed by SIGKILL"), is_dead=True)
            self.loop.offer("the core is found dead", partial(self.lost, core, dead), channel=f"to front {core.epoch}")

    def cut(self, core: LoopedCore) -> None:
        """The connection drops, or the core hangs: nothing is heard of it, and it is taken for dead while it lives."""
        if core.is_alive and not core.is_over:
            core.is_silent = bool(self.loop.choose("the core hangs", 2))
            silent = Loss(TimeoutError("no sign of life"))
            self.loop.offer("the core is taken for dead", partial(self.lost, core, silent))
