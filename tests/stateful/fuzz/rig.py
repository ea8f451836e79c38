"""What a run plays on: the engine and its device, the faults of the device, and what is true of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quiesce.engine.api import AsyncEngine
from quiesce.engine.core import Core
from quiesce.engine.messages import Moved, StepOutput
from quiesce.engine.tensor_files import expected_tensors
from quiesce.spec.vocabulary import Tag
from quiesce.stateful.driver import VOCAB_SIZE, ledger_config, ledger_engine
from quiesce.stateful.fuzz.clients import Truth, ledger_truth
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.loop import DeterministicLoop

MOVES = (*(f"{move} {tag}" for tag in Tag for move in ("unmap", "map")), "zero kv_cache", "load_weights", "load")
"""What the ledger device calls its work on memory."""
STEP_TIMEOUT_S = 1e6
"""Of the watchdog: beyond all other times, so that it bites only where a step was told to hang."""


class Rig:
    """A real engine over the ledger device."""

    def __init__(self, folder: Path, loop: DeterministicLoop, config: Mapping[str, Any]) -> None:
        self.loop = loop
        settings = {"step_timeout_s": STEP_TIMEOUT_S, **config}
        self.engine = self._make(folder, settings)
        self.fatal: list[str] = []
        """Names of the errors of faults that the engine may not survive."""
        self.faulty = False
        """A fault was asked for that a request does not survive."""
        self.core_is_dead = False
        self._held: list[str] = []
        self._hangs = False
        self.numbers: dict[int | str, int] = {0: 0}
        """Names of weight versions -> the number that steps carry."""
        self.truth: Truth = ledger_truth(self.numbers)
        self._tensors = expected_tensors(self.engine.model.info)
        self.follow(self.engine._core)

    def follow(self, core: Core) -> None:
        """Takes note of the versions that this core makes."""
        new_version, deadline = core.operations.update.new_version, core.next_deadline_s

        def noted() -> None:
            new_version()
            self.numbers[core.world.weights.version] = core.version_number

        core.operations.update.new_version = noted  # type: ignore[method-assign]
        core.next_deadline_s = lambda: deadline() if self._hangs else core.operations.next_deadline_s()  # type: ignore[method-assign]

    def _make(self, folder: Path, settings: Mapping[str, Any]) -> AsyncEngine:
        engine, self.device = ledger_engine(self.loop, ledger_config(folder, **settings))
        return engine

    # ---- what clients and operators bring -------------------------------------------------------------------------------------

    def prompt(self, length: int, first: int) -> list[int]:
        return [3 + (7 * first + 11 * place) % (VOCAB_SIZE - 3) for place in range(length)]

    def stop_ids(self, prompt: list[int], place: int) -> list[int]:
        """The request's token at this place under the first weights."""
        return true_tokens(prompt, place + 1, VOCAB_SIZE)[-1:]

    def weights(self, what: str) -> Any:
        """Weights for a call, by a word."""
        values = self._values()
        some = list(values.items())
        match what:
            case "full":
                return values
            case "pairs":
                return iter(some)
            case "partial":
                return iter(some[:3])
            case "misshapen":
                return iter([*some[:3], (some[0][0], np.zeros((1, 2, 3), np.float32))])
            case "unknown":
                return iter([("no.such.tensor", np.zeros(3, np.float32))])
        return _broken(some)

    def _values(self) -> dict[str, Any]:
        return {name: np.full(shape, 0.5, np.float32) for name, shape in self._tensors.items()}

    # ---- faults ---------------------------------------------------------------------------------------------------------------

    def fail(self, what: str, tag: str, to: str, after: int) -> None:
        """Asks for a fault, `after` as many steps where it is one of a step."""
        device = self.device
        if what == "write":
            device.fail_write = OSError("no write")
        elif what == "fetch":
            device.fail_fetch = OSError("no fetch")
        elif what == "step":
            device.fail_at[len(device.steps) + 1 + after] = OSError("no step")
            self.fatal.append("OSError")
        elif what == "row":
            device.fault_at.add((len(device.steps) + 1 + after, 0))
            self.faulty = True
        elif what == "core":
            self._kill_core()
        elif what == "hang":
            self._hang()
        elif what == "load":
            device.load_error = OSError("no weights")
            self.fatal.append("OSError")
        elif what == "echo step":
            if device.repeat(StepOutput):
                self.fatal.append("RuntimeError")  # the device cannot be believed
        elif what == "echo move":
            device.repeat(Moved)
        elif what == "move":
            device.fail_move.add((tag, to))
            if to == "zeroed":  # nothing is known of it then
                self.fatal.append("OSError")

    def _hang(self) -> None:
        """The next work of the device never completes: the watchdog is to notice."""
        self._hangs = True
        self.stall()
        self.fatal.append("TimeoutError")

    def _kill_core(self) -> None:
        """The core ends in the middle of nowhere, as a process that is killed."""
        self.core_is_dead = True

        def die() -> None:
            raise RuntimeError("the core was killed")

        self.engine._core.step = die  # type: ignore[method-assign]

    def stall(self, what: str = "step") -> None:
        """Work does not complete, nor what is asked of the device behind it: the step in flight, or else the next; or every `move`."""
        for name in self._work(what):
            self._held.append(name)
            self.loop.hold(name)

    def _work(self, what: str) -> tuple[str, ...]:
        """What the loop calls the work that is to stall."""
        if what == "move":
            return MOVES
        launched = self.device.launched
        return (f"step {launched[-1].step if launched else len(self.device.steps) + 1}",)

    def go_on(self) -> None:
        for name in self._held:
            self.loop.release(name)
        self._held.clear()

    def heal(self) -> None:
        """No fault is left to come. A step that was told to hang for good meets the watchdog first."""
        if self._hangs and self.launched:
            self.loop.pass_time(STEP_TIMEOUT_S + 1)
        else:
            self.go_on()
        self._heal_device()

    def _heal_device(self) -> None:
        self.device.fail_move.clear()
        self.device.fail_write = self.device.fail_fetch = None

    def close(self) -> None:
        """Gives back what a run that went wrong has left; the ledger has nothing."""

    @classmethod
    def close_all(cls) -> None:
        """Gives back what runs share; those of the ledger share nothing."""

    @property
    def stalls(self) -> bool:
        """Whether something on the device was told not to complete."""
        return bool(self._held)

    @property
    def places(self) -> Mapping[str, str]:
        return self.device.places

    @property
    def launched(self) -> int:
        return len(self.device.launched)


def _broken(pairs: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    yield from pairs[:2]
    raise OSError("the source is gone")
