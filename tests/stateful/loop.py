"""A deterministic asyncio event loop: virtual time, no threads, no sockets, and every open decision asked for and written down.

Tasks, futures, locks and timeouts are asyncio's own. `steered` holds the three seams that differ from the
stock loop. This file is what scenarios call; it also names things from counters and keeps account, so that a run repeats exactly
and leaves nothing behind.

Two modes. *Strict*: the ready queue is FIFO, as asyncio documents for `call_soon`, and only the environment chooses
(completions, timers that coincide, where an intrusion lands), so every failure is a true bug. *Adversarial*: any ready task
step may go first, which is more than asyncio promises today, and protects against other loops and eager tasks. Plain callbacks
keep their order in both.

Choice points: `turn` (what runs next: ready handles, then completions), `idle` (which completion, or else time passes), `timer`
(which of the timers that coincide), and those that a scenario makes with `choose`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Sequence
from typing import Any, Final, NoReturn, TypeVar

from quiesce.stateful.choices import FIFO, Strategy
from quiesce.stateful.ledger import AT_CREATION, Intrusion, WhichTask
from quiesce.stateful.outside import Offer
from quiesce.stateful.reports import (
    AnyTask,
    Deadlock,
    LeftOver,
    Livelock,
    describe_failure,
    describe_generator,
    describe_wait,
    is_open,
    unawaited_coroutines,
)
from quiesce.stateful.steered import SteeredLoop

__all__ = ["AT_CREATION", "Deadlock", "DeterministicLoop", "LeftOver", "Livelock"]

T = TypeVar("T")

DRAIN_TURNS: Final = 10_000  # what the clean-up of a finished run may take


class DeterministicLoop(SteeredLoop):
    """`DeterministicLoop(POS(seed)).run(main(...))`; one loop serves one run.

    With `timely=True` time passes only when nothing else can happen: what completes from outside is never late, no deadline is missed.
    """

    _asyncgens: weakref.WeakSet[AsyncGenerator[Any, Any]]

    def __init__(
        self, strategy: Strategy | None = None, *, adversarial: bool = False, timely: bool = False, max_turns: int = 1_000_000
    ) -> None:
        super().__init__(strategy, adversarial=adversarial, timely=timely, max_turns=max_turns)
        self._task_numbers = itertools.count(1)
        self._closers: list[
            AnyTask
        ] = []  # close async generators that were dropped; the generator is the error, not its closer
        self.set_exception_handler(lambda _, context: self._ledger.problems.append(describe_failure(context)))

    # ------------------------------------------------------------------------------------------------ for scenarios

    def choose(self, point: str, options: int | Sequence[Hashable]) -> int:
        """Leaves a decision of the scenario to the strategy: an index, 0 for the ordinary case."""
        return self._choose(point, range(options) if isinstance(options, int) else options)

    def mark(self, text: str) -> None:
        """Puts a word into the trace: two runs with one trace hash have passed the same marks between the same choices."""
        self.choices.mark(text)

    def offer(self, name: str, callback: Callable[[], object], *, channel: Hashable | None = None) -> None:
        """Lets `callback` happen from outside, once, before any turn from now on. Offers on one channel happen in order.

        It happens when nothing else can, at the latest: the environment is fair unless the name is held.
        """
        self._outside.add(Offer(name, callback, channel, self._round))

    def hold(self, name: str) -> None:
        """Stalls the offers of this name, made or yet to come, and what is queued behind them on their channels."""
        self._outside.hold(name)

    def release(self, name: str) -> None:
        self._outside.release(name, self._round)

    @property
    def offered(self) -> list[str]:
        """Names of what has not happened yet, oldest first."""
        return [offer.name for offer in self._outside]

    def pass_time(self, seconds: float) -> None:
        """The clock jumps, whatever is pending; timers that are due by then follow."""
        self._now += seconds

    def turn_fair(self) -> None:
        """From now on every choice is the ordinary one, and time passes only when nothing else can happen."""
        self.choices.strategy = FIFO()
        self._timely = True

    async def wait_settled(self) -> None:
        """Returns when nothing can happen but what is held back, or what waits for time to pass."""
        await self.wait_idle()
        while self._outside.open() or self._ready:  # a choice may have put something before the step that looks here
            if self._outside.open():
                turn: asyncio.Future[None] = self.create_future()
                self.offer("look whether all is settled", functools.partial(turn.set_result, None))
                await turn
            await self.wait_idle()

    async def wait_idle(self) -> None:
        """Returns when no task can run unless something completes from outside or time passes."""
        waiter: asyncio.Future[None] = self.create_future()
        self._idlers.append(waiter)
        await waiter

    def intrude_at(self, task: WhichTask, suspension: int, callback: Callable[[AnyTask], object]) -> Intrusion:
        """Calls `callback(task)` once, right after the step that ends in the task's suspension number `suspension`, from 0."""
        intrusion = Intrusion(task, suspension, callback)
        self._ledger.intrusions.append(intrusion)
        return intrusion

    def cancel_at(self, task: WhichTask, suspension: int) -> Intrusion:
        """Cancels the task at that await. `AT_CREATION` cancels it before it has run at all."""
        return self.intrude_at(task, suspension, lambda victim: victim.cancel())

    def count_suspensions(self, task: WhichTask | AnyTask) -> int:
        """How often the task has been suspended so far; where several match, the one that was most often.

        Raises:
            LookupError: no such task was ever created.
        """
        return self._ledger.count(task)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Runs `main` as the task "main" to its end, closes the loop, and returns what `main` returned.

        Raises:
            LeftOver: `main` ended (or was cancelled) and left tasks, exceptions, coroutines or async generators behind. If
            `main`
                raised another error, that one is raised, and carries what was left as notes.
        """
        with unawaited_coroutines(self._ledger.problems.append):
            try:
                result: T = self.run_until_complete(self.create_task(main, name="main"))
            except asyncio.CancelledError as error:
                if left := self.finish():
                    raise LeftOver(left) from error
                raise
            except BaseException as error:
                for item in self.finish():
                    if item not in str(error):  # a deadlock has told who waits
                        error.add_note(f"left behind: {item}")
                raise
            if left := self.finish():
                raise LeftOver(left)
            return result

    def finish(self) -> list[str]:
        """Ends a run: cancels and drains what is left, closes the loop, and tells what it was.

        `run` does it by itself. A run that is driven bit by bit, with `run_until_complete`, ends here; only `run`
        notices coroutines that were never awaited.
        """
        if self.is_closed():
            return []
        self._ledger.end_step()
        left = [describe_wait(task) for task in self._ledger.pending() if task not in self._closers]
        left += sorted(describe_generator(agen) for agen in self._asyncgens if is_open(agen))
        self._drain()
        left += [*self._ledger.unretrieved(), *self._ledger.problems]
        self.close()
        return left

    def _drain(self) -> None:
        self._draining = True
        self._turns_left = DRAIN_TURNS
        self._ledger.intrusions.clear()
        self._outside.clear()
        with contextlib.suppress(Deadlock, Livelock):  # of a task that will not be cancelled; it has been reported
            while pending := self._ledger.pending():
                for task in pending:
                    task.cancel()
                self.run_until_complete(asyncio.wait(pending))
            if self._asyncgens:
                self.run_until_complete(self.shutdown_asyncgens())

    # ------------------------------------------------------------------------------------------------ names and accounts

    def create_task(self, coro: Any, *, name: object = None, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, name=name or f"Task-{next(self._task_numbers)}", **options)
        self._ledger.enter(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        future = super().create_future()
        self._ledger.watch(future)
        return future

    def run_in_executor(self, executor: object, func: object, *args: object) -> NoReturn:
        raise RuntimeError("there are no threads on this loop; offer() what they would complete")

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        """As the stock loop's: a generator that was dropped half-way is closed soon after. Here that is an error besides."""
        self._ledger.problems.append(describe_generator(agen))
        self._asyncgens.discard(agen)
        if not self.is_closed():
            self._closers.append(self.create_task(agen.aclose()))
