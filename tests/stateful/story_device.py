"""The real CPU device for stories: each piece of work waits until the story lets it go, and ends as the story says."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
from quiesce.engine.messages import Completion, Moved, StepInput, StepOutput, WeightsWritten
from quiesce.engine.model import Model
from quiesce.spec.vocabulary import Policy, Tag
from quiesce.statemachine.effects import LoadWeights, Map, Unmap

PATIENCE_S = 60.0
STOP = 2
"""The token with which a story's requests end; a row that samples it by itself is given another."""
OTHER = 3


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
    """Where the device's thread waits before each piece of work."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at: str | None = None
        self._permits = self._num_done = 0
        self._is_open = False

    def wait(self, name: str) -> None:
        """Called by the device's thread."""
        with self._changed:
            self._at = name
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._is_open or self._permits > 0, PATIENCE_S):
                raise TimeoutError(f"nobody let {name} go")
            self._permits -= not self._is_open
            self._at = None

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
            if not self._changed.wait_for(lambda: self._at == name, PATIENCE_S):
                raise TimeoutError(f"the device waits at {self._at}, not at {name}")
            before = self._num_done
            self._permits += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._num_done > before, PATIENCE_S):
                raise TimeoutError(f"{name} never ends")

    def open(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


class StoryDevice(CpuDevice):
    """The real device, on its own thread. `pending` names what it has been asked for, oldest first; `let` makes it happen."""

    def __init__(self, config: EngineConfig, model: Model) -> None:
        super().__init__(config, model.info, model.num_blocks, progress=False)
        self.pending: deque[str] = deque()
        self.lost: Exception | None = None
        """Raised at the next look at what has completed: the device as a whole is gone."""
        self._turnstile = Turnstile()
        self._outcome = Outcome()

    def let(self, outcome: Outcome | None = None) -> None:
        """Does the oldest piece of work, which ends like this."""
        self._outcome = outcome or Outcome()
        self._turnstile.let(self.pending.popleft())

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
        is_mapped = isinstance(completion, Moved) and completion.to == "restored" and completion.error is None
        super()._report(completion)
        if is_mapped and completion.tag == Tag.kv_cache and self._policies[Tag.kv_cache] is Policy.discard:  # type: ignore[union-attr]
            self.pending.appendleft("zero kv_cache")
            self._turnstile.done()
            self._turnstile.wait("zero kv_cache")
        else:
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
