"""Runs a schedule and says what was wrong with it. A run is a function of its schedule: the same in every process."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quiesce.engine import errors
from quiesce.stateful.choices import Choices, Replay, Strategy
from quiesce.stateful.fuzz.alphabet import MOVING, Action
from quiesce.stateful.fuzz.chronicle import Chronicle
from quiesce.stateful.fuzz.coverage import Coverage
from quiesce.stateful.fuzz.oracles import OUTSIDE, Listener, Oracles, Problem
from quiesce.stateful.fuzz.player import Player
from quiesce.stateful.fuzz.rig import Rig
from quiesce.stateful.fuzz.schedule import Schedule
from quiesce.stateful.fuzz.stock import check_balance, check_clients, check_engine, check_nothing_left, check_tokens
from quiesce.stateful.fuzz.strays import Strays
from quiesce.stateful.loop import Deadlock, DeterministicLoop, Livelock
from quiesce.stateful.reports import unawaited_coroutines


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    schedule: Schedule
    """As played, with the choices that were taken."""
    problems: tuple[Problem, ...]
    chronicle: Chronicle
    deviations: tuple[str, ...]
    """Choices that were not first in, first out, in words."""
    choices: Choices
    state: str
    """Of the engine, at the end."""

    @property
    def trace_hash(self) -> str:
        """Equal for runs that went the same way."""
        return self.choices.trace_hash()

    @property
    def problem(self) -> Problem | None:
        """What is told first: what somebody outside could see."""
        outside = [problem for problem in self.problems if problem.oracle in OUTSIDE]
        return next(iter((*outside, *self.problems)), None)


def rig_for(device: str) -> type[Rig]:
    """What a schedule of this device plays on.

    Raises:
        ValueError: there is no such device here.
    """
    if device == "ledger":
        return Rig
    if device == "cpu":
        from quiesce.stateful.fuzz.rig_cpu import CpuRig

        return CpuRig
    if device == "cuda":
        from quiesce.stateful.fuzz.rig_cuda import CudaRig

        return CudaRig
    if device == "boundary":
        from quiesce.stateful.fuzz.boundary_runs import BoundaryRig

        return BoundaryRig
    raise ValueError(f"there is no deterministic {device!r} device; ledger, cpu, cuda (on a dry platform) and boundary are")


class Production:
    """One run in the making: `act` and `finish`, or all of its schedule with `run`.

    `follow`: the oracle of the model is asked, too, which takes half as long again.
    """

    def __init__(
        self, folder: Path, schedule: Schedule, strategy: Strategy, *, coverage: Coverage | None = None,
        monitor: bool = True, told: bool = False, follow: bool = False,
    ) -> None:  # fmt: skip
        self.schedule = schedule
        self.loop = DeterministicLoop(strategy, adversarial=schedule.adversarial, timely=schedule.timely)
        self.chronicle = Chronicle(told)
        self.rig = rig_for(schedule.device)(folder, self.loop, schedule.config)
        engine = self.rig.engine
        self.oracles = Oracles(engine)
        self.listener = Listener()
        self.coverage = coverage
        if not monitor:
            engine._core.monitor.check = engine._front.monitor.check = lambda log: None  # type: ignore[method-assign]
            engine._core.gate.watch = None
        strays = Strays(engine, coverage)
        strays.watch()
        if coverage is not None:
            coverage.watch(engine)
        self.path = self.oracles.watch_passes() if follow else None
        self.oracles.watch_gates()
        self.oracles.watch_operations(lambda: self.rig.places, lambda: self.rig.launched)
        self.player = Player(self.loop, engine, self.rig, self.oracles, self.chronicle, strays)
        self.played: list[Action] = []
        self._coming: list[Action] = []
        self._begun = False

    def act(self, action: Action) -> None:
        """Plays an action; those that wait for nothing are kept until one lets the world move."""
        self._coming.append(action)
        if action.verb in MOVING:
            self._play_on()

    def _play_on(self) -> None:
        actions, self._coming = self._coming, []
        self.played += actions
        self._drive(self._play(actions))

    async def _play(self, actions: Sequence[Action]) -> None:
        if not self._begun:
            self._begun = True
            self.player.begin()
        for action in actions:
            await self.player.play(action)

    async def _end(self) -> None:
        """Turns the world fair and takes stock."""
        player, oracles, rig = self.player, self.oracles, self.rig
        await player.turn_fair()
        check_clients(player, rig, oracles)
        check_balance(player, rig, oracles)
        check_engine(player, rig, oracles)
        check_nothing_left(player, rig, oracles)
        with suppress(errors.EngineError):
            await rig.engine.shutdown(timeout=0)
        check_nothing_left(player, rig, oracles)

    def _drive(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs the loop until this is done, and turns whatever is raised into problems."""
        if self.loop.is_closed():
            work.close()
            return
        logger = logging.getLogger("quiesce")
        handlers, propagate = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [self.listener], False  # errors are asked for by the hundred
        try:
            with unawaited_coroutines(lambda text: self.oracles.found("left", text)):
                self.loop.run_until_complete(self.loop.create_task(work, name="main"))
        except (Deadlock, Livelock) as stuck:
            self._stop("hang", str(stuck))
        except Exception as error:  # noqa: BLE001  whatever it is
            self._stop("left", f"{type(error).__name__}: {error}")
        finally:
            logger.handlers, logger.propagate = handlers, propagate

    def _stop(self, oracle: str, text: str) -> None:
        self.oracles.found(oracle, text)
        self.loop.finish()

    def finish(self) -> Outcome:
        """Plays what is still to come, ends the run and judges it."""
        if self._coming or not self._begun:
            self._play_on()
        self._drive(self._end())
        for item in self.loop.finish():
            self.oracles.found("left", item)
        check_tokens(self.player, self.rig, self.oracles)
        self.rig.close()
        if not self.rig.fatal and not self.rig.core_is_dead:
            for line in self.listener.lines:
                self.oracles.expect("log", not line.startswith("engine failed"), line)
        return self.outcome()

    def run(self) -> Outcome:
        """Plays the whole schedule."""
        for action in self.schedule.actions:
            self.act(action)
        return self.finish()

    def outcome(self) -> Outcome:
        choices = self.loop.choices
        if self.coverage is not None:
            self.coverage.num_actions += len(self.played)
        played = replace(self.schedule, actions=tuple(self.played), choices=_trimmed(choices.indices))
        first = Outcome(
            played, tuple(self.oracles.problems), self.chronicle, tuple(self.loop.story), choices,
            self.rig.engine.status().engine,
        )  # fmt: skip
        if first.problem is None:
            return first
        return replace(first, schedule=replace(played, oracle=first.problem.oracle, failure=first.problem.text))


def _trimmed(indices: Sequence[int]) -> tuple[int, ...]:
    """Without the zeros at the end, which say nothing."""
    length = max((place + 1 for place, index in enumerate(indices) if index), default=0)
    return tuple(indices[:length])


def run(folder: Path, schedule: Schedule, strategy: Strategy | None = None, **options: Any) -> Outcome:
    """Runs a schedule: under a strategy, or as it was recorded."""
    made: Any = production_for(schedule.device)(folder, schedule, strategy or Replay(schedule.choices), **options)
    outcome: Outcome = made.run()
    return outcome


def production_for(device: str) -> Any:
    """How a schedule of this device is played: a `Production`, or one through a process boundary."""
    if device == "boundary":
        from quiesce.stateful.fuzz.boundary_runs import BoundaryProduction

        return BoundaryProduction
    return Production
