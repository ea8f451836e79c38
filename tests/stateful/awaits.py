"""Tries a scenario with a cancellation, or anything else, at every single await of one task."""

from __future__ import annotations

from collections.abc import Callable

from quiesce.stateful.ledger import AT_CREATION, WhichTask
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.reports import AnyTask, LeftOver


class FailedAtAwaits(AssertionError):
    """The scenario fails when disturbed at some awaits. `failures` maps each of these to its error."""

    def __init__(self, failures: dict[int, BaseException], places: dict[int, str], num_awaits: int) -> None:
        self.failures = failures
        lines = [f"{k}: {type(error).__name__}: {error}\n     at {places[k]}" for k, error in failures.items()]
        super().__init__(f"disturbed at {len(failures)} of {num_awaits} awaits, the scenario fails:\n  " + "\n  ".join(lines))


def for_every_await(
    scenario: Callable[[DeterministicLoop], object],
    task: WhichTask,
    *,
    intrude: Callable[[AnyTask], object] = lambda victim: victim.cancel(),
    make_loop: Callable[[], DeterministicLoop] = DeterministicLoop,
    from_creation: bool = False,
) -> int:
    """Runs `scenario(loop)` once to count the awaits of `task`, then once for each of them with `intrude(task)` landing there.

    The scenario builds everything anew, runs the loop and checks its own invariants: whatever it raises is a failure,
    `CancelledError` too, since a scenario that was itself cut short has checked nothing. `from_creation` adds the run in which
    the task is disturbed before its first step. Returns the number of awaits.

    Raises:
        FailedAtAwaits: the invariants did not hold in some of the runs; the first error is the cause.
        LookupError: the task is never created, or never awaits, so there would be nothing to try.
    """
    undisturbed = make_loop()
    _run(scenario, undisturbed)
    num_awaits = undisturbed.count_suspensions(task)
    if num_awaits == 0:
        raise LookupError(f"task {task!r} never awaits")

    failures: dict[int, BaseException] = {}
    places: dict[int, str] = {}
    for k in range(AT_CREATION if from_creation else 0, num_awaits):
        loop = make_loop()
        intrusion = loop.intrude_at(task, k, intrude)
        try:
            _run(scenario, loop)
            assert intrusion.where, "the await was not reached again: the scenario is not deterministic"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  # collected, and raised together below
            failures[k] = error
        places[k] = intrusion.where or "no place"
    if failures:
        raise FailedAtAwaits(failures, places, num_awaits) from next(iter(failures.values()))
    return num_awaits


def _run(scenario: Callable[[DeterministicLoop], object], loop: DeterministicLoop) -> None:
    try:
        scenario(loop)
    finally:
        left = loop.finish()
    if left:
        raise LeftOver(left)
