"""The front end's side of its link: the machine of `spec/link.py`, who is told of a loss, and whether a new core is started.

A loss is decided in one go, in the front end's loop: the old core's letters are dropped, every stream and call is answered, the core is
killed, and only then is there a new one, or none for good (R35).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Protocol

from quiesce.engine import errors
from quiesce.engine.link import Supervisor
from quiesce.spec.vocabulary import EngineState, LinkEvent, LinkState
from quiesce.statemachine.effects import DropMailboxes, Effect, KillCore, StartCore
from quiesce.statemachine.gate import Gate, Outcome
from quiesce.statemachine.records import World

logger = logging.getLogger("quiesce.front_end")
RETRY_AFTER_S = 1.0
"""What callers are told while a new core starts."""


class Owner(Protocol):
    """Whoever has streams and calls on the link."""

    world: World
    gate: Gate

    @property
    def num_calls(self) -> int:
        """Calls that wait for an answer."""

    def answer_everybody(self, cause: BaseException | None, is_retryable: bool) -> None:
        """Ends every stream and call."""

    def account(self) -> None:
        """Holds what happened against the declaration."""


class Connection:
    """One front end's link, over all the cores it has had.

    Args:
        supervisor: what starts and kills cores; None for a core in a thread, which is over when it says so.
        max_restarts: how many cores may follow the first.
    """

    def __init__(self, owner: Owner, supervisor: Supervisor | None, max_restarts: int) -> None:
        self._owner, self._supervisor = owner, supervisor
        self.record = owner.world.link
        self.restarts_left = max_restarts
        self.when_down: Callable[[], None] = lambda: None
        """Called once no core will come any more."""
        self._has_run = False
        """The present core."""
        self._waiting: list[asyncio.Future[None]] = []
        self._perform: dict[type[Effect], Callable[[], None]] = {
            DropMailboxes: self.do_drop_mailboxes,
            KillCore: self.do_kill_core,
            StartCore: self.do_start_core,
        }

    @property
    def is_up(self) -> bool:
        return bool(self.record.state == LinkState.up)

    @property
    def core_pid(self) -> int | None:
        """The process of the core, while there is one."""
        return os.getpid() if self._supervisor is None else self._supervisor.core_pid

    @property
    def address(self) -> str | None:
        """Where further front ends find the core, while there is one in a process of its own."""
        return None if self._supervisor is None else self._supervisor.address

    @property
    def is_starting(self) -> bool:
        return self.record.state in (LinkState.connecting, LinkState.restarting)

    async def reached(self, restarted: bool = False) -> bool:
        """Waits while the first core is being started, or, with `restarted`, any. Whether one can be called then."""
        while self.record.state == LinkState.connecting or (restarted and self.record.state == LinkState.restarting):
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            try:
                await waiting
            finally:
                self._waiting.remove(waiting)
        return self.is_up

    def refusal(self, state: str) -> errors.Unavailable:
        """What a call is told that cannot be made now."""
        if self.is_starting:
            return errors.Unavailable(state, "the core is being started; start() waits until it serves", RETRY_AFTER_S)
        return errors.EngineDead(state, "start a new engine")

    def dead(self, state: str, cause: BaseException | None, reason: str = "") -> errors.EngineDead:
        """What a call is told that the core has taken with it. It may be made again where `retry_after` is a number."""
        error = errors.EngineDead(state, reason, RETRY_AFTER_S if self.record.budget == "some" else None)
        error.__cause__ = cause
        return error

    # ---- events ---------------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """The core answers."""
        self._fire(self._owner.gate.fire(self.record, LinkEvent.connect))
        self._tell()

    def will_replace(self, engine_state: str) -> bool:
        """Whether a core in this state is taken for lost and another started: one that ran and has failed, where restarts are left."""
        return bool(engine_state == EngineState.failed) and self._has_run and self.restarts_left > 0

    def look(self, engine_state: str) -> None:
        """Notices how the engine is, after its answers are delivered."""
        if self.will_replace(engine_state):
            self.lose(RuntimeError("the engine failed"))
        self._has_run |= engine_state == EngineState.running

    def lose(self, cause: BaseException | None, is_dead: bool = False, is_final: bool = False) -> None:
        """The core is dead or taken for dead: answers everybody, kills it, and starts another where one may be.

        Args:
            cause: what killed it; None: it was told to stop.
            is_dead: its process is gone; else it is too slow to be told from dead, or has said that it ends.
            is_final: no other core shall follow.
        """
        record, gate = self.record, self._owner.gate
        if record.state in (LinkState.lost, LinkState.down):
            return
        if self._supervisor is not None and cause is not None:
            logger.error("the core is lost: %r; %d restarts are left", cause, 0 if is_final else self.restarts_left)
        record.budget = "none" if is_final or not self.restarts_left else "some"
        if is_dead:
            gate.fire(record, LinkEvent.crash)
            self._fire(gate.fire(record, LinkEvent.detect))
        else:
            self._fire(gate.fire(record, LinkEvent.lose))
        self._owner.answer_everybody(cause, record.budget == "some")
        record.control = "pending" if self._owner.num_calls else "idle"
        self._has_run = False
        self._fire(gate.fire(record, LinkEvent.kill))
        self._fire(gate.fire(record, LinkEvent.restart))
        if record.state == LinkState.lost and self._fire(gate.fire(record, LinkEvent.give_up)):
            if self._supervisor is not None:
                self._supervisor.leave(is_stopped=cause is None)
            self.when_down()
        self._owner.account()
        self._tell()

    def _tell(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    # ---- effects --------------------------------------------------------------------------------------------------------------

    def _fire(self, outcome: Outcome) -> bool:
        for effect in outcome.effects:
            self._perform[type(effect)]()
        return outcome.moved

    def do_drop_mailboxes(self) -> None:
        if self._supervisor is not None:
            self._supervisor.drop_mailboxes()

    def do_kill_core(self) -> None:
        if self._supervisor is not None:
            self._supervisor.kill_core()

    def do_start_core(self) -> None:
        self.restarts_left -= 1
        if self._supervisor is not None:
            self._supervisor.start_core()
