"""Runs a schedule and says what was wrong with it. A run is a function of its schedule: the same in every process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quiesce.engine import errors
from quiesce.stateful.choices import Replay, Strategy
from quiesce.stateful.fuzz.alphabet import Action
from quiesce.stateful.fuzz.chronicle import Chronicle
from quiesce.stateful.fuzz.coverage import Coverage
from quiesce.stateful.fuzz.oracles import OUTSIDE, Listener, Oracles, Problem
from quiesce.stateful.fuzz.player import Player
from quiesce.stateful.fuzz.rig import Rig
from quiesce.stateful.fuzz.schedule import Schedule
from quiesce.stateful.fuzz.stock import check_balance, check_clients, check_engine, check_nothing_left
from quiesce.stateful.loop import Deadlock, DeterministicLoop, LeftOver, Livelock


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    schedule: Schedule
    """As played, with the choices that were taken."""
    problems: tuple[Problem, ...]
    chronicle: Chronicle
    deviations: tuple[str, ...]
    """Choices that were not first in, first out, in words."""
    trace_hash: str
    state: str
    """Of the engine, at the end."""

    @property
    def problem(self) -> Problem | None:
        """What is told first: what somebody outside could see."""
        outside = [problem for problem in self.problems if problem.oracle in OUTSIDE]
        return next(iter((*outside, *self.problems)), None)


class Production:
    """One run in the making: actions may be played one by one, or all at once with `run`."""

    def __init__(
        self, folder: Path, schedule: Schedule, strategy: Strategy, *, coverage: Coverage | None = None,
        monitor: bool = True, told: bool = False, make_rig: Callable[..., Rig] = Rig,
    ) -> None:  # fmt: skip
        self.schedule = schedule
        self.loop = DeterministicLoop(strategy, adversarial=schedule.adversarial, timely=schedule.timely)
        self.chronicle = Chronicle(told)
        self.rig = make_rig(folder, self.loop, schedule.config)
        engine = self.rig.engine
        self.oracles = Oracles(engine, coverage)
        self.listener = Listener()
        self.coverage = coverage
        if not monitor:
            engine._core.monitor.check = engine._front.monitor.check = lambda log: None  # type: ignore[method-assign]
            engine._core.gate.watch = None
        if coverage is not None:
            coverage.watch(engine)
        self.oracles.watch_gates()
        self.oracles.watch_operations(lambda: self.rig.places, lambda: self.rig.launched)
        self.player = Player(self.loop, engine, self.rig, self.oracles, self.chronicle)
        self.played: list[Action] = []

    async def begin(self) -> None:
        """Starts the core; it loads while the first actions are played."""
        self.rig.engine._start()

    async def play(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self.played.append(action)
            await self.player.play(action)

    async def end(self) -> None:
        """Turns the world fair and takes stock."""
        player, oracles, rig = self.player, self.oracles, self.rig
        engine = rig.engine
        await player.turn_fair()
        check_clients(player, rig, oracles)
        check_balance(player, rig, oracles)
        check_engine(player, rig, oracles)
        with suppress(errors.EngineError):
            await engine.shutdown(timeout=0)
        check_nothing_left(player, rig, oracles)

    async def _main(self) -> None:
        await self.begin()
        await self.play(self.schedule.actions)
        await self.end()

    def run(self) -> Outcome:
        """Plays the whole schedule."""
        return self.guarded(lambda: self.loop.run(self._main()))

    def guarded(self, work: Callable[[], object]) -> Outcome:
        """Does what plays the rest of the run, and turns whatever it raises into problems."""
        logger = logging.getLogger("quiesce")
        logger.addHandler(self.listener)
        propagate, logger.propagate = logger.propagate, False
        try:
            work()
        except (Deadlock, Livelock) as stuck:
            self.oracles.found("hang", str(stuck))
        except LeftOver as left:
            self.oracles.found("left", str(left))
        except Exception as error:  # noqa: BLE001  whatever it is
            self.oracles.found("left", f"{type(error).__name__}: {error}")
        finally:
            logger.removeHandler(self.listener)
            logger.propagate = propagate
        if not self.rig.fatal and not self.rig.core_is_dead and not self.oracles.problems:
            for line in self.listener.lines:
                self.oracles.expect("log", not line.startswith("engine failed"), line)
        return self.outcome()

    def outcome(self) -> Outcome:
        choices = self.loop.choices
        if self.coverage is not None:
            self.coverage.num_actions += len(self.played)
        played = replace(self.schedule, actions=tuple(self.played), choices=_trimmed(choices.indices))
        first = Outcome(
            played, tuple(self.oracles.problems), self.chronicle, tuple(self.loop.story), choices.trace_hash(),
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
    return Production(folder, schedule, strategy or Replay(schedule.choices), **options).run()
