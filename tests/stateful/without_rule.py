"""The real engine without a rule: its gate follows edited tables along a story, then everything may happen; what does an outsider see?

Signs, the plainest first: the engine fails (its monitor, or its own accounts, found something that cannot be); a caller is never
answered, though the device has done all it was asked; blocks, requests or the engine's thread are left when it is shut down; or the
trace that the engine wrote is no path of the declaration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from quiesce.proofs.edits import Edit, edited
from quiesce.proofs.path import Path, Tables
from quiesce.proofs.rules import Without, oldest_is_first
from quiesce.proofs.trace_path import MODELLED, Follower, NoPath
from quiesce.proofs.without import FOR_EVER, breaks
from quiesce.proofs.world import World
from quiesce.stateful.front_stage import signs
from quiesce.stateful.loop import LeftOver
from quiesce.stateful.replay import Replayed, replay
from quiesce.stateful.stage import Stage
from quiesce.stateful.story import Story
from quiesce.stateful.story_device import STOP, DeviceLost

MOST_PASSES = 600
"""More than any of these stories needs to come to rest."""


class NeverEnds(AssertionError):
    """The engine makes passes for ever and does not come to rest."""


@dataclass(slots=True)
class Seen:
    """What an outsider sees of an engine that was driven along a story."""

    failure: str = ""
    waiting: tuple[str, ...] = ()
    """Calls that are never answered."""
    left: str = ""
    refused: str = ""
    """Why the trace is no path of the declaration."""
    tokens: str = ""
    """What a client was told instead of what a quiet engine says."""
    replayed: Replayed | None = None

    def told(self) -> str:
        """The plainest sign; empty if there is none."""
        if self.failure:
            return f"the engine fails: {self.failure}"
        if self.tokens:
            return f"other tokens: {self.tokens}"
        if self.waiting:
            return f"never answered: {', '.join(self.waiting)}"
        return f"left behind: {self.left}" if self.left else f"its trace is refused: {self.refused}" if self.refused else ""


@dataclass
class _Witness:
    """Sits beside the stage."""

    stage: Stage
    entries: list[Mapping[str, Any]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    num_passes: int = 0

    def __post_init__(self) -> None:
        stage = self.stage
        self._news, self._finish, self._step = stage.news, stage.finish, stage.link.step
        stage.news, stage.finish, stage.link.step = self.news, self.finish, self.step  # type: ignore[method-assign]

    def news(self) -> list[dict[str, Any]]:
        found = self._news()
        self.entries += found
        return found

    def step(self) -> None:
        self.num_passes += 1
        if self.num_passes > MOST_PASSES:
            raise NeverEnds(f"more than {MOST_PASSES} passes")
        self._step()

    async def finish(self) -> None:
        """All that can happen happens; then who waits is asked after, and the engine is shut down."""
        try:
            await self._come_to_rest()
            self.waiting += self._who_waits()
            await self._finish()
        finally:
            self.news()
            self.stage.device.close()
            for task in self.stage.calls:
                task.cancel()
            await asyncio.gather(*self.stage.calls, return_exceptions=True)

    async def _come_to_rest(self) -> None:
        stage = self.stage
        stage.steering.choice = None
        quiet = 0
        while quiet < 3 and not stage.link.is_over:
            if stage.device.pending:
                stage.device.let(stage.device.pending[0])
            stage.link.step()
            await stage.loop.wait_idle()
            quiet = 0 if stage.device.pending or self.news() else quiet + 1

    def _who_waits(self) -> list[str]:
        """Calls that somebody should have answered by now: not those of requests that a closed gate holds, unless their end was asked for."""
        engine = self.stage.core.world.engine.state
        aborted = {call.instance for call in self.stage.calls.values() if (call.machine, call.event) == ("request", "abort")}
        found = []
        for task, call in self.stage.calls.items():
            is_held = call.event == "submit" and engine not in ("running", "failed", "stopped") and call.instance not in aborted
            if not task.done() and not is_held:
                found.append(str(call))
        return found


def told(rule: Without) -> str:
    """What an outsider sees of an engine without the rule; empty if nothing."""
    if rule.world.name != "engine":
        return next(iter(signs(rule.edits, once(breaks(rule)))), "")
    if rule.stage is not None and rule.stage.story:
        return drive(rule.edits, rule.stage.world, rule.stage.story).told()
    staged = rule
    if rule.stage is not None:
        staged = replace(rule, world=rule.stage.world, breaks=rule.stage.breaks, base=oldest_is_first)
    for as_engine in (False, True) if not staged.breaks.startswith("L") else (False,):
        story = once(breaks(staged, as_engine))
        if sign := drive(rule.edits, staged.world, story).told() if story else "":
            return sign
    return ""


def once(story: Sequence[str]) -> Sequence[str]:
    """What happens before something goes on for ever."""
    return story[: story.index(FOR_EVER)] if FOR_EVER in story else story


def drive(edits: Sequence[Edit], world: World, actions: Sequence[str]) -> Seen:
    """Drives an engine with edited tables along a story, as far as it goes."""
    tables, witnesses = edited(edits), list[_Witness]()
    seen = Seen()
    try:
        seen.replayed = replay(
            Story(tuple(actions), len(world.instances["request"]), world.capacity),
            {name: tables[name] for name in world.instances},
            lambda stage: witnesses.append(_Witness(stage)),
        )
        failure, seen.left = seen.replayed.failure, seen.replayed.left
    except LeftOver as error:
        failure, seen.left = witnesses[0].stage.core.failure, str(error)
    if failure is not None and not isinstance(failure, DeviceLost):
        seen.failure = f"{type(failure).__name__}: {failure}"
    for client in witnesses[0].stage.clients:
        said = client.outputs[-1].token_ids if client.outputs else ()
        quiet = truth()[: len(said)]
        if any(mine != true for mine, true in zip(said, quiet, strict=True) if mine != STOP):
            seen.tokens = f"{client.name} is told {list(said)[:8]} for {list(quiet)[:8]}"
    seen.waiting = tuple(witnesses[0].waiting)
    seen.refused = refusal(witnesses[0].entries, world)
    return seen


@cache
def truth() -> tuple[int, ...]:
    """What a quiet engine says to every client of these stories."""
    found = list[Stage]()
    replay(Story(("engine.ready", "request[0].submit")), None, lambda stage: found.append(_Witness(stage).stage))
    return found[0].clients[0].outputs[-1].token_ids


def refusal(entries: Sequence[Mapping[str, Any]], world: World) -> str:
    """Why what an engine wrote is no path of the declaration; empty if it is one."""
    declared = World.engine(len(world.instances["request"]), world.capacity)
    try:
        Follower(Path(Tables(declared))).follow([entry for entry in entries if entry["machine"] in MODELLED])
    except NoPath as error:
        return error.reason
    return ""
