"""Sessions: several turns with one history, in the front end. A turn's prompt is what is new; what came before is put in front of it.

The KV of an idle session is ordinary prefix cache: it is given up when others need the blocks, and computed anew by the next turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from quiesce.engine import errors
from quiesce.engine.operations import error_for
from quiesce.spec.vocabulary import FinishReason, SessionEvent, SessionState
from quiesce.statemachine.effects import Effect
from quiesce.statemachine.gate import Gate, RefusedTransition
from quiesce.statemachine.records import SessionRecord, World

logger = logging.getLogger("quiesce.front_end")
FINISHED = (FinishReason.stop, FinishReason.length)
"""Reasons that make a turn part of the history; after any other the session is as it was before the turn."""


class Session(SessionRecord):
    """One conversation. `id` is what `generate` and `close_session` take."""

    __slots__ = ("history", "stream", "timer", "waiters")

    def __init__(self, world: World, key: int) -> None:
        super().__init__(world, key)
        self.history: tuple[int, ...] = ()
        """Token ids of all finished turns, prompts and answers."""
        self.stream: int | None = None
        """The stream of the turn in hand, once it is open."""
        self.waiters: list[asyncio.Future[None]] = []
        """Turns that wait for the last fence of the one before."""
        self.timer: asyncio.TimerHandle | None = None

    @property
    def id(self) -> str:
        return self.name


class Sessions:
    """All sessions of one front end.

    Args:
        limit: how many may be open.
        idle_timeout_s: seconds after which an idle one is closed.
        abort: ends the stream with this key.
    """

    def __init__(self, world: World, gate: Gate, limit: int, idle_timeout_s: float, abort: Callable[[int], None]) -> None:
        self.world, self.gate = world, gate
        self.limit, self.idle_timeout_s = limit, idle_timeout_s
        self._abort = abort
        self._by_stream: dict[int, Session] = {}
        self._num_sessions = 0

    # ---- calls ----------------------------------------------------------------------------------------------------------------

    def open(self) -> Session:
        """A new session, idle.

        Raises:
            QueueFull: as many are open as may be.
            Unavailable: there is no engine to talk to.
        """
        if len(self.world.sessions) >= self.limit:
            raise errors.QueueFull(f"{self.limit} sessions are open; close one")
        self._num_sessions += 1
        session = Session(self.world, self._num_sessions)
        self._fire(session, SessionEvent.open)
        self._wait_for_the_next_turn(session)
        return session

    async def begin_turn(self, session_id: object) -> Session:
        """Makes a turn the session's own; one called while the last one's blocks are on their way home waits for them.

        Raises:
            InvalidRequest: there is no such session.
            TransitionConflict: a turn is in hand, which is untouched; or the session is closing.
        """
        session = self._find(session_id)
        while True:
            was_idle = session.state == SessionState.idle
            self._fire(session, SessionEvent.turn)
            if was_idle:
                if session.timer is not None:
                    session.timer.cancel()
                return session
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            session.waiters.append(waiter)
            try:
                await waiter
            finally:
                session.waiters.remove(waiter)

    def close(self, session_id: object) -> bool:
        """Ends a session and its turn in hand, at once and in every state of the engine. Whether there was one."""
        session = self.world.sessions.get(session_id) if isinstance(session_id, str) else None
        if not isinstance(session, Session):
            return False
        self._close(session)
        self._look(session)
        return True

    def _close(self, session: Session) -> None:
        self._fire(session, SessionEvent.close)

    def _find(self, session_id: object) -> Session:
        session = self.world.sessions.get(session_id) if isinstance(session_id, str) else None
        if not isinstance(session, Session):
            raise errors.InvalidRequest("session_id", f"{errors.shown(session_id)} is no open session; open_session")
        return session

    # ---- what becomes of a turn -----------------------------------------------------------------------------------------------

    def carry(self, session: Session, stream: int) -> None:
        """The turn has this stream, in the same instant in which it began: nobody can have closed the session between."""
        session.stream = stream
        self._by_stream[stream] = session

    def stream_closed(self, stream: int, history: tuple[int, ...] | None, accepted: bool) -> None:
        """The turn's client has its terminal, or has left. `history`: all tokens, if it finished; not `accepted`: the core knows no request of it."""
        session = self._by_stream.get(stream)
        if session is not None:
            if history is not None:
                session.history = history
            self._no_stream(session)
            if not accepted:
                self._ended(session)
            self._look(session)

    def request_ended(self, stream: int) -> None:
        """Nothing of the turn's request is left in the core."""
        session = self._by_stream.get(stream)
        if session is not None:
            self._ended(session)
            self._look(session)

    def never_opened(self, session: Session) -> None:
        """The turn was refused; unless its stream was there to say so, it ends here."""
        if session.state not in (SessionState.active, SessionState.closing):
            return
        self._no_stream(session)
        self._ended(session)
        self._look(session)

    def _no_stream(self, session: Session) -> None:
        self._fire(session, SessionEvent.stream_closed)

    def _ended(self, session: Session) -> None:
        self._fire(session, SessionEvent.request_ended)

    def core_ended(self, is_final: bool = True) -> None:
        """The core is over, and every turn in hand with it; where it was the last, every session, too."""
        for session in list(self.world.sessions.values()):
            if isinstance(session, Session):
                if is_final:
                    self._close(session)
                if session.stream is not None:
                    self.request_ended(session.stream)
                self._look(session)

    def _look(self, session: Session) -> None:
        """Fires the rows that need no caller: a turn that is over, a session that is closed."""
        if session.state == SessionState.active and self.gate.fire(session, SessionEvent.turn_over).moved:
            self._leave(session)
            self._wait_for_the_next_turn(session)
        elif session.state == SessionState.closing and self.gate.fire(session, SessionEvent.closed).moved:
            self._leave(session)
            if session.timer is not None:
                session.timer.cancel()
        for waiter in session.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _leave(self, session: Session) -> None:
        if session.stream is not None:
            self._by_stream.pop(session.stream, None)
            session.stream = None

    def _wait_for_the_next_turn(self, session: Session) -> None:
        session.timer = asyncio.get_running_loop().call_later(self.idle_timeout_s, self._idle_too_long, session)

    def _idle_too_long(self, session: Session) -> None:
        logger.info("%s was idle for %g s and is closed", session.id, self.idle_timeout_s)
        self.close(session.id)

    def _fire(self, session: Session, event: SessionEvent) -> None:
        try:
            effects = self.gate.fire(session, event).effects
        except RefusedTransition as refusal:
            raise error_for(refusal, str(self.world.link.state)) from refusal
        for effect in effects:
            self.do_abort_turn(effect)

    def do_abort_turn(self, effect: Effect) -> None:
        stream = next((session.stream for session in self._by_stream.values() if session.key == effect.subject), None)
        if stream is not None:
            self._abort(stream)
