"""The door into the core: bounded for admissions, open for cleanup, in order, from any thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from quiesce.engine.errors import QueueFull
from quiesce.engine.inbox import Abort, AwaitReady, Control, Event, Inbox, Submit
from quiesce.engine.sampling_params import SamplingParams
from quiesce.spec.vocabulary import OperationKind


def submit(stream: int) -> Submit:
    return Submit(stream, f"r{stream}", np.array([5], np.int32), SamplingParams(), 0)


def test_events_are_taken_once_and_in_the_order_they_were_posted() -> None:
    inbox = Inbox(4)
    posted: list[Event] = [submit(1), Abort(1), submit(2), Control(7, OperationKind.shutdown, timeout_s=1.0), AwaitReady(8)]
    for event in posted:
        inbox.post(event)
    assert inbox.take() == posted
    assert inbox.take() == []


def test_admissions_beyond_the_capacity_are_refused_and_leave_nothing() -> None:
    inbox = Inbox(2)
    inbox.post(submit(1))
    inbox.post(submit(2))
    for _ in range(2):
        with pytest.raises(QueueFull, match="2 requests wait"):
            inbox.post(submit(3))
    assert [event.stream for event in inbox.take() if isinstance(event, Submit)] == [1, 2]


def test_taking_makes_room_again() -> None:
    inbox = Inbox(1)
    for stream in range(3):
        inbox.post(submit(stream))
        assert len(inbox.take()) == 1


def test_cleanup_is_never_refused_and_takes_no_place() -> None:
    inbox = Inbox(1)
    inbox.post(submit(1))
    cleanup: list[Event] = [Abort(1), Abort(1, call=3), Control(4, OperationKind.shutdown, timeout_s=0.0), AwaitReady(5)]
    for event in cleanup:
        inbox.post(event)
    assert inbox.take()[1:] == cleanup
    for event in cleanup:
        inbox.post(event)
    inbox.post(submit(2))


def test_every_post_wakes_the_core_after_the_event_can_be_taken_and_a_refused_one_does_not() -> None:
    inbox = Inbox(1)
    found: list[int] = []
    inbox.bind(lambda: found.append(len(inbox.take())))
    inbox.post(submit(1))
    inbox.post(Abort(1))
    assert found == [1, 1], "a wake before the event is there would be lost"
    inbox.bind(lambda: found.append(-1))
    inbox.post(submit(2))
    with pytest.raises(QueueFull):
        inbox.post(submit(3))
    assert found == [1, 1, -1]


def test_four_threads_lose_nothing_repeat_nothing_and_keep_their_own_order() -> None:
    inbox, wakes = Inbox(1000), threading.Semaphore(0)
    inbox.bind(wakes.release)
    count, taken = 200, list[Event]()
    start = threading.Barrier(5)

    def post(thread: int) -> None:
        start.wait()
        for number in range(count):
            inbox.post(submit(1000 * thread + number) if number % 2 else Abort(1000 * thread + number))

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    for _ in range(4 * count):
        assert wakes.acquire(timeout=60), "a wake was lost"
        taken += inbox.take()
    for thread in threads:
        thread.join()
    keys = [event.stream for event in taken if isinstance(event, (Submit, Abort))]
    assert sorted(keys) == sorted(1000 * sender + number for sender in range(4) for number in range(count))
    for sender in range(4):
        mine = [key for key in keys if key // 1000 == sender]
        assert mine == sorted(mine)


def test_four_threads_never_pass_the_bound() -> None:
    inbox, start, refused = Inbox(50), threading.Barrier(4), [0, 0, 0, 0]

    def post(thread: int) -> None:
        start.wait()
        for number in range(40):
            try:
                inbox.post(submit(1000 * thread + number))
            except QueueFull:
                refused[thread] += 1

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inbox.take()) == 50
    assert sum(refused) == 110
