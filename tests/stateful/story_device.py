"""The real CPU device for stories: each piece of work waits until the story lets it go, and ends as the story says."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.messages import Completion, Moved, StepInput, StepOutput, WeightsWritten
from quiesce.engine.model import Model
from quiesce.spec.vocabulary import Policy, Tag
from quiesce.statemachine.effects import LoadWeights, Map, Unmap

PATIENCE_S = 30.0
STOP = 2
"""The token with which a story's requests end; a row that samples it by itself is given another."""
OTHER = 3
ZERO = "zero kv_cache"


class DeviceLost(RuntimeError):
    """What a story's device reports when it breaks."""


@dataclass(slots=True)
class Outcome:
    """How the next piece of work ends."""

    error: Exception | None = None
    stops: Sequence[int] = ()
    """Rows of the step that sample their last token."""
    faults: Sequence[int] = ()
    """Rows of the step whose own work fails."""


class Turnstile:
    """Where the device's thread waits before each piece of work, until somebody wants it.

    `other` does the next piece that was asked for, while the present one still waits: what is wanted may be behind it.
    """

    def __init__(self, other: Callable[[], None]) -> None:
        self._changed = threading.Condition()
        self._other = other
        self._wanted: str | None = None
        self._num_done = 0
        self._is_open = False

    def wait(self, name: str) -> None:
        """Called by the device's thread."""
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._is_open or self._wanted is not None, PATIENCE_S):
                    raise TimeoutError(f"nobody let {name} go")
                if self._is_open or self._wanted == name:
                    self._wanted = None
                    return
            self._other()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Returns when the device's thread has told, and it is so.

        Raises:
            TimeoutError: it never is.
        """
        with self._changed:
            if not self._changed.wait_for(is_so, PATIENCE_S):
                raise TimeoutError("the device has not come so far")

    def tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def done(self) -> None:
        """Called by the device's thread: something was reported."""
        with self._changed:
            self._num_done += 1
            self._changed.notify_all()

    def let(self, name: str) -> None:
        """Lets the work of this name go, and returns when it is reported.

        Raises:
            TimeoutError: it never comes, or never ends.
        """
        with self._changed:
            before, self._wanted = self._num_done, name
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._num_done > before, PATIENCE_S):
                raise TimeoutError(f"{name} never ends")

    def open(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


class StoryDevice(CpuDevice):
    """The real device, on its own thread. `pending` names what it has been asked for, oldest first; `let` makes it happen.

    Moves of the two tags may end in another order than they were asked for, as they do where each has a queue of its own.
    """

    def __init__(self, config: EngineConfig, model: Model) -> None:
        super().__init__(config, model.info, model.num_blocks, progress=False)
        self.pending: deque[str] = deque()
        self.lost: Exception | None = None
        """Raised at the next look at what has completed: the device as a whole is gone."""
        self._turnstile = Turnstile(self._do_other)
        self._outcome = Outcome()
        self._zeroed: list[Completion] = []

    def let(self, name: str, outcome: Outcome | None = None) -> None:
        """Does a piece of work, which ends like this."""
        self._outcome = outcome or Outcome()
        self.pending.remove(name)
        if name == ZERO:
            self._turnstile.wait_until(lambda: bool(self._zeroed))
            super()._report(self._zeroed.pop())
        else:
            self._turnstile.let(name)

    def _do_other(self) -> None:
        work = self._work.get()
        if work is None:  # it closes; whoever waits is let go, and finds this again
            self._work.put(None)
            return
        completion = work()
        if completion is not None:
            self._report(completion)

    # ---- what is asked ------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        self.pending.append("load")
        super().load()

    def launch(self, effect: Any, step: StepInput) -> None:
        super().launch(effect, step)
        self.pending.append(f"step {step.step}")

    def unmap(self, effect: Unmap, tag: str, policy: str, blocks: Sequence[int]) -> None:
        super().unmap(effect, tag, policy, blocks)
        self.pending.append(f"unmap {tag}")

    def map(self, effect: Map, tag: str, policy: str) -> None:
        super().map(effect, tag, policy)
        self.pending.append(f"map {tag}")

    def fetch(self, ticket: int, source: Any) -> None:
        super().fetch(ticket, source)
        self.pending.append("fetch")

    def load_weights(self, effect: LoadWeights, pairs: Sequence[tuple[str, Any]]) -> None:
        super().load_weights(effect, pairs)
        self.pending.append("write")

    def checksum(self, ticket: int) -> None:
        super().checksum(ticket)
        self.pending.append("checksum")

    def poll(self) -> list[Completion]:
        if self.lost is not None:
            lost, self.lost = self.lost, None
            raise lost
        return super().poll()

    def close(self) -> None:
        self._turnstile.open()
        super().close()

    # ---- what is done, on the device's thread ---------------------------------------------------------------------------------

    def _report(self, completion: Completion) -> None:
        """That the KV is zeroed is reported when the story says so."""
        if isinstance(completion, Moved) and completion.to == "zeroed" and not self._closing:
            self._zeroed.append(completion)
            self._turnstile.tell()
            return
        is_discarded_kv = isinstance(completion, Moved) and (completion.tag, completion.to) == (Tag.kv_cache, "restored")
        if is_discarded_kv and completion.error is None and self._policies[Tag.kv_cache] is Policy.discard:
            self.pending.append(ZERO)
        super()._report(completion)
        self._turnstile.done()

    def _load(self) -> Any:
        self._turnstile.wait("load")
        return super()._load()

    def _step(self, step: StepInput) -> StepOutput:
        self._turnstile.wait(f"step {step.step}")
        outcome, output = self._outcome, super()._step(step)
        if outcome.error is not None or output.error is not None:
            return replace(output, error=outcome.error or output.error)
        tokens = np.where(output.token_ids == STOP, OTHER, output.token_ids)
        tokens[list(outcome.stops)] = STOP
        return replace(
            output, token_ids=tokens, faults=(*output.faults, *((row, "the story says so") for row in outcome.faults))
        )

    def _unmap(self, tag: Tag, policy: Policy, blocks: Any) -> Moved:
        self._turnstile.wait(f"unmap {tag}")
        error = self._outcome.error
        return super()._unmap(tag, policy, blocks) if error is None else Moved(tag, "released", error=error)

    def _map(self, tag: Tag, policy: Policy) -> Moved:
        self._turnstile.wait(f"map {tag}")
        error = self._outcome.error
        return super()._map(tag, policy) if error is None else Moved(tag, "restored", error=error)

    def _fetch(self, ticket: int, source: Any) -> Any:
        self._turnstile.wait("fetch")
        return super()._fetch(ticket, source)

    def _write(self, pairs: Sequence[tuple[str, Any]]) -> WeightsWritten:
        self._turnstile.wait("write")
        error = self._outcome.error
        if error is None:
            return super()._write(pairs)
        super()._write(pairs[: len(pairs) // 2])  # half of it is written when it fails
        return WeightsWritten(error)

    def _checksum(self, ticket: int) -> Any:
        self._turnstile.wait("checksum")
        return super()._checksum(ticket)
