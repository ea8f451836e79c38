"""Hunts: seeds are drawn, played and judged, one after the other; what fails is made small and written down.

A seed says everything: program, configuration, mode and strategy. Strategies take turns, as a portfolio: each finds what others miss.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from quiesce.stateful.choices import Strategy
from quiesce.stateful.fuzz.alphabet import (
    CONFIG,
    SCHEDULE,
    STRATEGIES,
    VERBS,
    Action,
    Nouns,
    drawn_action,
    drawn_actions,
    drawn_values,
)
from quiesce.stateful.fuzz.corpus import CONFIGS, PROGRAMS, corpus, parse
from quiesce.stateful.fuzz.coverage import Coverage, declared_cells
from quiesce.stateful.fuzz.runs import Outcome, rig_for, run
from quiesce.stateful.fuzz.schedule import Schedule
from quiesce.stateful.fuzz.shrink import Shrinker

TELL_EVERY_S = 10.0
FROM_CORPUS = 0.15
"""Of all programs, those that are one of the corpus, disturbed."""
COLLECT_AFTER = 20_000
"""New objects between two looks of the garbage collector: runs leave cycles, and what they share is large."""


def drawn_schedule(seed: int, device: str = "ledger") -> tuple[Schedule, Strategy]:
    """The run that a seed stands for."""
    rng = random.Random(seed)
    actions = disturbed(rng) if rng.random() < FROM_CORPUS else drawn_actions(rng)
    schedule = Schedule(
        tuple(actions), (), drawn_values(CONFIG, rng.choice), **drawn_values(SCHEDULE, rng.choice), device=device
    )
    if device == "boundary":
        from quiesce.stateful.fuzz.boundary_runs import with_losses

        schedule = with_losses(schedule, rng)
    return schedule, STRATEGIES[seed % len(STRATEGIES)](seed)


def disturbed(rng: random.Random) -> list[Action]:
    """A program of the corpus with other actions between."""
    nouns = Nouns()
    actions = parse(rng.choice(tuple(PROGRAMS.values())), nouns)
    for verb in rng.choices(tuple(VERBS), k=rng.choice((1, 2, 4, 8))):
        action = drawn_action(verb, rng.choice, nouns)
        if action is not None:
            actions.insert(rng.randint(0, len(actions)), action)
    return actions


@dataclass(slots=True)
class Finding:
    """One kind of failure."""

    seed: int
    schedule: Schedule
    """Made small."""
    num_runs: int
    """That it took to make it small."""
    path: Path | None = None


@dataclass(slots=True)
class Report:
    """What a hunt did."""

    num_runs: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    coverage: Coverage = field(default_factory=Coverage)
    findings: list[Finding] = field(default_factory=list)
    left: tuple[str, ...] = ()
    """Threads and file descriptors that were not there before."""

    @property
    def line(self) -> str:
        """One line of progress."""
        coverage, seconds, cpu_s = self.coverage, max(self.seconds, 1e-9), max(self.cpu_s, 1e-9)
        return (
            f"{self.num_runs} runs, {coverage.num_actions} operations, {coverage.num_actions / seconds:.0f}/s, "
            f"{coverage.num_actions / cpu_s:.0f} per CPU second; "
            f"cells {coverage.num_cells} of {len(declared_cells())} ({coverage.num_own_cells} without strays), pairs {len(coverage.pairs)}, states {len(coverage.states)}; "
            f"{coverage.num_transitions} transitions checked; {len(self.findings)} kinds of failure"
        )


class Hunt:
    """Plays seeds from `first` on.

    Args:
        folder: the checkpoint of the ledger device.
        out: where failures are written; None: nowhere.
        progress: where the progress line goes.
        device: `ledger`, or `cpu` for the real one.
        follow_every: the oracle of the model is asked in each so many runs; 0: never.
    """

    def __init__(
        self,
        folder: Path,
        out: Path | None = None,
        progress: IO[str] | None = None,
        device: str = "ledger",
        follow_every: int = 5,
    ) -> None:
        self.folder, self.out, self.progress, self.device, self.follow_every = folder, out, progress, device, follow_every
        self.report = Report()
        self._kinds: set[str] = set()

    def play(self, seed: int) -> Outcome:
        schedule, strategy = drawn_schedule(seed, self.device)
        return self._judge(seed, run(self.folder, schedule, strategy, coverage=self.report.coverage, follow=self._follows()))

    def play_corpus(self) -> None:
        """The programs of the corpus as they are; the losses through the boundary of a process."""
        for text, config, device in corpus(self.device):
            schedule = Schedule(tuple(parse(text)), (), config, device=device)
            self._judge(-1, run(self.folder, schedule, coverage=self.report.coverage, follow=config == CONFIGS[0]))

    def _follows(self) -> bool:
        return self.follow_every > 0 and self.report.num_runs % self.follow_every == 0

    def _judge(self, seed: int, outcome: Outcome) -> Outcome:
        self.report.num_runs += 1
        if outcome.problem is not None and (kind := kind_of(outcome)) not in self._kinds:
            self._kinds.add(kind)
            self._keep(seed, outcome)
        return outcome

    def _keep(self, seed: int, outcome: Outcome) -> None:
        follow = outcome.schedule.oracle == "model"
        shrinker = Shrinker(lambda schedule: run(self.folder, schedule, follow=follow), outcome.schedule)
        finding = Finding(seed, shrinker.shrink(), shrinker.num_runs)
        if self.out is not None:
            finding.path = finding.schedule.save(self.out / f"{finding.schedule.oracle}-{seed}.json")
        self.report.findings.append(finding)

    def for_seconds(self, seconds: float, first: int = 0) -> Report:
        return self._through(self._until(time.monotonic() + seconds, first))

    def for_seeds(self, first: int, count: int) -> Report:
        return self._through(iter(range(first, first + count)))

    def _until(self, end_s: float, first: int) -> Iterator[int]:
        seed = first
        while time.monotonic() < end_s:
            yield seed
            seed += 1

    def _through(self, seeds: Iterator[int]) -> Report:
        gc.collect()
        before, began, cpu_s = _belongings(), time.monotonic(), time.process_time()
        told = began
        with _rarely_collected():
            for seed in seeds:
                self.play(seed)
                now = time.monotonic()
                self.report.seconds, self.report.cpu_s = now - began, time.process_time() - cpu_s
                if self.progress is not None and now - told >= TELL_EVERY_S:
                    told = now
                    print(self.report.line, file=self.progress, flush=True)
        rig_for(self.device).close_all()
        gc.collect()
        self.report.left = tuple(sorted(_belongings() - before))
        return self.report


@contextmanager
def _rarely_collected() -> Generator[None]:
    """What was there before is not looked through again and again."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def kind_of(outcome: Outcome) -> str:
    """Failures that read alike but for names and numbers are one kind."""
    problem = outcome.problem
    return "" if problem is None else f"{problem.oracle}: {re.sub(r'[0-9]+', 'N', problem.text)[:60]}"


def _belongings() -> set[str]:
    """Threads and open files of this process."""
    files = {f"fd {name}" for name in os.listdir("/proc/self/fd")} if sys.platform == "linux" else set()
    return files | {f"thread {thread.name}" for thread in threading.enumerate()}


def told(report: Report) -> str:
    """The report of a hunt, for people."""
    lines = [report.line]
    for finding in report.findings:
        schedule = finding.schedule
        lines += [
            f"seed {finding.seed}, {schedule.oracle}: {schedule.failure}",
            f"  {len(schedule.actions)} operations, {schedule.num_deviations} deviations, after {finding.num_runs} runs"
            + (f"; quiesce replay {finding.path}" if finding.path else ""),
            *(f"    {action.verb} {json.dumps(dict(action.given))}" for action in schedule.actions),
        ]
    if report.left:
        lines.append(f"left over: {', '.join(report.left)}")
    return "\n".join(lines)
