"""The three seams at which the deterministic loop differs from asyncio's, and what it decides there.

`time()` is a virtual clock; between two rounds, instead of polling files, the world moves (a completion from outside, the next timer) or
`Deadlock` is raised; which ready handle is next is asked for.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextvars import Context
from typing import Final, TypeVarTuple

from quiesce.stateful.choices import Choices, Strategy
from quiesce.stateful.handles import Timer, describe_option, task_of
from quiesce.stateful.ledger import Ledger
from quiesce.stateful.outside import Offer, Outside
from quiesce.stateful.reports import Deadlock, Livelock, describe_wait

Args = TypeVarTuple("Args")

# Fairness. No strategy may put something off for ever; the bounds are far above what a search needs to reach an ordering.
READY_PATIENCE: Final = 1_000  # turns that the head of the ready queue lets others go first
OFFER_PATIENCE: Final = 200  # rounds that a completion is put off while tasks spin
TIME_PATIENCE: Final = 10_000  # rounds that time stands still while tasks spin: more than any honest run of ready work


class SteeredLoop(asyncio.BaseEventLoop):
    """Runs; `DeterministicLoop` adds what scenarios call."""

    _scheduled: list[Timer]  # of the stock loop: a heap
    _timer_cancelled_count: int
    _stopping: bool

    def __init__(
        self, strategy: Strategy | None = None, *, adversarial: bool = False, timely: bool = False, max_turns: int = 1_000_000
    ) -> None:
        super().__init__()
        self.choices = Choices(strategy)
        self.story: list[str] = []  # the choices that were not FIFO, in words
        self._adversarial = adversarial
        self._timely = timely
        self._turns_left = max_turns
        self._ready: deque[asyncio.Handle] = deque()
        self._clock_resolution = 1e-9
        self._now = 0.0
        self._round = 0
        self._time_moved = 0  # the round in which it last did
        self._head_waited = 0  # turns that others took before the head of the ready queue
        self._decided = False  # the head of the ready queue is the outcome of a choice: not to be asked about again
        self._draining = False
        self._outside = Outside()
        self._ledger = Ledger()
        self._idlers: deque[asyncio.Future[None]] = deque()
        self._timer_serials = itertools.count()

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._now

    def _run_once(self) -> None:
        """One round, as the stock loop's, less what is not there: files, signals, and slow callbacks to tell of."""
        self._select()
        for _ in range(len(self._ready)):
            handle = self._next_turn()
            if not handle.cancelled():
                handle._run()

    def _select(self) -> None:
        """Between two rounds of ready handles: makes due timers ready, and when there is nothing to run, moves the world."""
        if self._ledger.unentered:
            self._ledger.end_step()
        self._round += 1
        timer = None
        if self._scheduled:
            self._wake_due_timers()
            timer = self._next_timer()
        if timer is None:
            self._time_moved = self._round  # there is nothing that time could keep waiting
        if self._stopping:
            return
        outside = self._outside.open() if self._outside else []
        longest = min([offer.since for offer in outside]) if outside else self._round
        if self._round - longest > OFFER_PATIENCE:
            self._happen(next(offer for offer in outside if offer.since == longest))
        elif timer is not None and self._round - self._time_moved > TIME_PATIENCE:
            self._pass_time_until(timer)
        elif not self._ready:
            self._idle(outside, timer)

    def _idle(self, outside: list[Offer], timer: Timer | None) -> None:
        while self._idlers:
            if not (waiter := self._idlers.popleft()).done():
                waiter.set_result(None)
                return
        late = timer is not None and not (self._timely and outside)
        options: list[Offer | Timer] = [*outside, *([timer] if late and timer else [])]
        if not options:
            raise Deadlock(self._ledger.pending(), self._outside.held())
        chosen = options[self._choose("idle", options)]
        if isinstance(chosen, Offer):
            self._happen(chosen)
        else:
            self._pass_time_until(chosen)

    def _next_turn(self) -> asyncio.Handle:
        """The handle that runs next, taken out of the ready queue. What the last step left behind is dealt with first."""
        ledger = self._ledger
        if ledger.unentered:
            ledger.end_step()
        self._turns_left -= 1
        if self._turns_left < 0:
            raise Livelock(
                f"no end in sight at time {self._now}; tasks:\n  " + "\n  ".join(map(describe_wait, self._ledger.pending()))
            )
        ready = self._ready
        head = ready[0]
        is_open = not self._decided and (self._outside or (self._adversarial and len(ready) > 1))
        if is_open and not head.cancelled() and self._head_waited < READY_PATIENCE:
            options: list[asyncio.Handle | Offer] = [*self._movable(), *self._outside.open()]
            chosen = options[self._choose("turn", options)]
            if isinstance(chosen, Offer):
                self._happen(chosen)
            elif chosen is not head:
                ready.remove(chosen)
                ready.appendleft(chosen)
        self._decided = False
        self._head_waited = self._head_waited + 1 if ready[0] is not head else 0
        handle = ready.popleft()
        ledger.stepping = None if handle.cancelled() else task_of(handle)
        return handle

    def _movable(self) -> list[asyncio.Handle]:
        """The handles that may go first: the head; in adversarial mode also every task step, and the first plain callback."""
        if not self._adversarial or len(self._ready) == 1:
            return [self._ready[0]]
        movable = []
        plain_seen = False
        for handle in self._ready:
            is_plain = task_of(handle) is None
            if not handle.cancelled() and not (is_plain and plain_seen):
                movable.append(handle)
                plain_seen = plain_seen or is_plain
        return movable

    # ------------------------------------------------------------------------------------------------ moving the world

    def _choose(self, point: str, options: Sequence[Hashable]) -> int:
        if self._draining or len(options) == 1:
            return 0
        index = self.choices.choose(point, options)
        if index:
            self.story.append(f"{point}: {describe_option(options[index])} instead of {describe_option(options[0])}")
        return index

    def _happen(self, offer: Offer) -> None:
        """Makes the completion the very next thing that runs, so that nothing can overtake it on its channel."""
        self._outside.take(offer)
        self._ready.appendleft(asyncio.Handle(offer.callback, (), self))
        self._decided = True

    def _next_timer(self) -> Timer | None:
        while self._scheduled and self._scheduled[0].cancelled():
            self._timer_cancelled_count -= 1
            heapq.heappop(self._scheduled)._scheduled = False
        return self._scheduled[0] if self._scheduled else None

    def _pass_time_until(self, timer: Timer) -> None:
        self._now = timer.when()
        self._time_moved = self._round
        self._wake_due_timers()

    def _wake_due_timers(self) -> None:
        due: list[Timer] = []
        while (timer := self._next_timer()) is not None and timer.when() < self._now + self._clock_resolution:
            heapq.heappop(self._scheduled)._scheduled = False
            due.append(timer)
        while due:
            coinciding = [timer for timer in due if timer.when() < due[0].when() + self._clock_resolution]
            self._ready.append(due.pop(self._choose("timer", coinciding)))

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self.is_closed():
            raise RuntimeError("the loop is closed")
        timer = Timer(when, callback, args, self, context)
        timer.serial = next(self._timer_serials)
        timer._scheduled = True
        heapq.heappush(self._scheduled, timer)
        return timer

    def _write_to_self(self) -> None:
        """Wakes the selector of a stock loop from another thread; here there is only one."""
