"""A dry platform that does its work as late as a GPU may: when somebody waits for it."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable

from torch import Tensor

from quiesce.engine.device.dry_platform import DryPlatform
from quiesce.engine.device.platform import Event


class LazyPlatform(DryPlatform):
    """Pinned memory that is written too early, or read too early, shows."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._queue: deque[Callable[[], object]] = deque()
        self.num_given = self.num_done = 0

    def copy(self, out: Tensor, source: Tensor) -> None:
        self.run(functools.partial(out.copy_, source))

    def run(self, work: Callable[[], object]) -> None:
        with self._lock:
            self._queue.append(work)
            self.num_given += 1

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        self.synchronize()
        return super().captured(work)

    def event(self) -> Event:
        return _Point(self)

    def synchronize(self) -> None:
        self.do_until(self.num_given)

    def settle(self) -> None:
        self.synchronize()

    def do_until(self, number: int) -> None:
        """Does work, in order, until so much of it is done."""
        with self._lock:
            while self.num_done < number:
                self._queue.popleft()()
                self.num_done += 1


class _Point:
    def __init__(self, platform: LazyPlatform) -> None:
        self._platform, self._place = platform, 0

    def record(self) -> None:
        self._place = self._platform.num_given

    def synchronize(self) -> None:
        self._platform.do_until(self._place)
