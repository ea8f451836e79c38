"""Makes a failing schedule small: fewer actions, fewer choices that are not first in, first out, and ordinary values.

ddmin, three times over: the actions, the choices, and what each action carries. What remains still fails by the same oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from quiesce.stateful.choices import minimal, reduce_choices
from quiesce.stateful.fuzz.alphabet import CONFIG, VERBS, Action
from quiesce.stateful.fuzz.runs import Outcome
from quiesce.stateful.fuzz.schedule import Schedule

T = TypeVar("T")
Run = Callable[[Schedule], Outcome]


class Shrinker:
    """Args:
    run: plays a schedule as it is written down.
    failing: one that fails.
    limit: runs in all; what is reached by then is the result.
    """

    def __init__(self, run: Run, failing: Schedule, limit: int = 2000) -> None:
        self._run, self._limit = run, limit
        self.best = failing
        self.num_runs = 0

    def fails(self, candidate: Schedule) -> bool:
        """Whether it fails in the same way; if so it is the best so far."""
        if self.num_runs >= self._limit:
            return False
        self.num_runs += 1
        found = self._run(candidate)
        if not any(problem.oracle == self.best.oracle for problem in found.problems):
            return False
        text = next(problem.text for problem in found.problems if problem.oracle == self.best.oracle)
        self.best = replace(candidate, oracle=self.best.oracle, failure=text)
        return True

    def shrink(self) -> Schedule:
        before: Schedule | None = None
        while before != self.best and self.num_runs < self._limit:
            before = self.best
            self.fails(replace(self.best, choices=()))
            self._fewer_actions()
            self._fewer_choices()
            self._plainer()
        return self.best

    def _fewer_actions(self) -> None:
        base = self.best
        places = list(range(len(base.actions)))
        if places and self.fails(replace(base, actions=())):
            return

        def still(kept: Sequence[int]) -> bool:
            return self.fails(replace(base, actions=tuple(base.actions[place] for place in kept)))

        minimal(places, still)

    def _fewer_choices(self) -> None:
        base = self.best
        if not base.choices or self.num_runs + 2 > self._limit or not self.fails(base):
            return
        reduce_choices(base.choices, lambda indices: self.fails(replace(base, choices=tuple(indices))))

    def _plainer(self) -> None:
        """Each value that an action carries becomes the ordinary one, where that still fails; so do the mode and the configuration."""
        for place, action in enumerate(self.best.actions):
            for name, options in VERBS[action.verb].items():
                self._set(place, name, options[0])
            if "operation_id" in action.given:
                self._set(place, "operation_id", None)
        for name in self.best.config:
            if name in CONFIG and self.best.config[name] != CONFIG[name][0]:
                self.fails(replace(self.best, config={**self.best.config, name: CONFIG[name][0]}))
        if self.best.adversarial:
            self.fails(replace(self.best, adversarial=False))
        if not self.best.timely:
            self.fails(replace(self.best, timely=True))

    def _set(self, place: int, name: str, value: object) -> None:
        action = self.best.actions[place]
        if action.given.get(name) != value:
            plainer = Action(action.verb, {**action.given, name: value})
            self.fails(replace(self.best, actions=(*self.best.actions[:place], plainer, *self.best.actions[place + 1 :])))
