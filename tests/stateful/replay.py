"""`quiesce replay FILE`: the real engine over the real CPU device is driven along a story, and held against the model at every step.

What is demanded, precisely:

* Every action of the story takes place, in the story's order as far as clients, operators, timers, the device, the environment and
  the scheduler go. These are caused. Boundary actions are the core's own: it does them in the pass in which they become possible
  (rule R1), and no later than the story names them; they may come earlier than the story has them, and there may be others.
* The engine fails only where the story says so.
* Everything the engine does, as its own trace has it, is a path of the model: `trace_path.Follower`.
* After each action all records, mapped by `proofs/refinement.py`, are in the state in which the model is, and `status()` says so.

A story that the engine cannot follow is told apart from one that it contradicts: `Verdict`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path as FilePath

from quiesce.engine import errors
from quiesce.proofs.path import Call, NotAPath, Path, Tables
from quiesce.proofs.refinement import abstract, difference, projected
from quiesce.proofs.trace_path import MODELLED, Follower, NoPath, follow_file
from quiesce.proofs.world import World
from quiesce.spec import CATALOG
from quiesce.spec.language import Machine, Owner
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.stage import CannotCause, Cause, Stage
from quiesce.stateful.story import Story, StoryError
from quiesce.statemachine.trace import VERSION as TRACE_VERSION
from quiesce.statemachine.trace import spec_hash

UPDATES = ("commit", "commit_keep")
UPDATE_ENDS = (*UPDATES, "rollback", "fail")
WITHDRAWN_BY = {
    "sleep": "withdraw_sleep", "begin_update": "withdraw_update", "shutdown": "shutdown_deadline", "load": "load_failed",
}  # fmt: skip
"""A call -> what happens where its deadline passes before it acts, or where its write fails."""


class Verdict(StrEnum):
    """What came of a story."""

    agrees = "agrees"
    disagrees = "disagrees"
    """The engine does what the model does not allow, or does not do what it must: a defect of one of them."""
    cannot = "cannot be driven"
    """The story asks for what no engine does, or for what the engine's own pace does not leave room for."""


@dataclass(frozen=True, slots=True)
class Moment:
    """After an action of the story."""

    action: str
    took_place: tuple[str, ...]
    """What the engine did, as actions of the model, in its order."""
    state: Mapping[str, str]
    """What differs from the initial state of the model, read from the engine's records."""


@dataclass(slots=True)
class Replayed:
    """A story, as the engine went through it."""

    story: Story
    moments: list[Moment] = field(default_factory=list)
    verdict: Verdict = Verdict.agrees
    at: int = -1
    """Number of the action, from 0, at which the story ended early."""
    reason: str = ""
    failure: Exception | None = None
    """What failed the engine, if it failed."""
    left: str = ""
    """What was left at the end, after a shutdown: blocks, requests, streams."""

    @property
    def agrees(self) -> bool:
        return self.verdict is Verdict.agrees

    def told(self) -> str:
        """In words, for people."""
        lines = [f"{number:3}  {moment.action}" for number, moment in enumerate(self.moments, 1)]
        if self.agrees:
            return "\n".join([*lines, f"{len(self.moments)} actions: engine and model agree after each"])
        action = self.story.actions[self.at] if 0 <= self.at < len(self.story.actions) else "the end"
        return "\n".join([*lines, f"{self.at + 1:3}  {action}: {self.verdict}: {self.reason}"])


class Ends(Exception):
    """A story cannot go on."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict, self.reason = verdict, reason


def replay(
    story: Story,
    machines: Mapping[str, Machine] | None = None,
    prepare: Callable[[Stage], None] = lambda stage: None,
) -> Replayed:
    """Drives a real engine along a story.

    Args:
        machines: tables in place of the project's own, for the engine's gate and for the model alike.
        prepare: called with the stage before the engine starts, to change something about it.

    Raises:
        StoryError: an action is none of the model's world.
    """
    tables = Tables(_world(story), {**CATALOG.machines, **(machines or {})})
    calls, replayed = _checked(story, tables), Replayed(story)
    loop = DeterministicLoop(timely=True)

    async def main() -> None:
        is_empty = any(call.event == "ready_empty" for call in calls)
        stage = Stage(loop, story.capacity or story.requests, is_empty, machines)
        prepare(stage)
        player = Player(stage, Path(tables))
        await stage.start()
        try:
            await _play(player, calls, replayed)
        finally:
            replayed.failure = stage.core.failure
            try:
                await stage.finish()
            except AssertionError as error:
                replayed.left = str(error)
        if replayed.left and replayed.agrees:
            replayed.verdict, replayed.at, replayed.reason = Verdict.disagrees, len(calls), f"left behind: {replayed.left}"

    loop.run(main())
    return replayed


def _world(story: Story) -> World:
    return World.engine(story.requests, story.capacity)


def _checked(story: Story, tables: Tables) -> list[Call]:
    for number, call in enumerate(story.calls, 1):
        try:
            if not tables.actions(call):
                raise NotAPath(f"{call} never happens in this world")
        except (NotAPath, KeyError) as error:
            raise StoryError(f"action {number}: {error}") from error
    return story.calls


async def _play(player: Player, calls: Sequence[Call], replayed: Replayed) -> None:
    for number in range(len(calls)):
        try:
            took_place = await player.act(calls, number)
        except Ends as end:
            replayed.verdict, replayed.at, replayed.reason = end.verdict, number, end.reason
            return
        state = player.path.tables.model.show(player.path.at)
        replayed.moments.append(Moment(replayed.story.actions[number], tuple(took_place), state))


class Player:
    """Makes actions happen on a stage, and follows in the model what came of them."""

    def __init__(self, stage: Stage, path: Path) -> None:
        self.stage, self.path = stage, path
        self.follower = Follower(path)
        self.happened: Counter[str] = Counter()
        """Actions that took place and that the story has not come to yet."""

    async def act(self, calls: Sequence[Call], number: int) -> list[str]:
        """The story's action of this number takes place, or has; what else did since the one before.

        Raises:
            Ends: the story ends here.
        """
        if self.happened[str(calls[number])]:
            self.happened[str(calls[number])] -= 1
            return []
        return await self.make(cause_of(calls, number))

    async def make(self, cause: Cause) -> list[str]:
        """An action takes place now; what else did.

        Raises:
            Ends: it cannot, or the engine contradicts the model.
        """
        call = cause.call
        event = self.path.tables.machines[call.machine].event(call.event)
        if self.path.tables.enabled(call, self.path.at) is None:
            raise Ends(
                Verdict.cannot, f"the model has come elsewhere by what the core does by itself: {self.path.why_not(call)}"
            )
        if event.boundary:
            raise Ends(Verdict.disagrees, "the model allows it, and the engine has not done it by itself")
        try:
            await self.stage.cause(cause)
        except CannotCause as reason:
            raise Ends(Verdict.cannot, str(reason)) from reason
        took_place = self.look()
        if "engine.fail" in took_place and call.event != "fail":
            raise Ends(Verdict.disagrees, f"the engine failed: {self.stage.core.failure!r}")
        if not self.happened[str(call)]:
            raise self._did_not(call, event.owner)
        self.happened[str(call)] -= 1
        return took_place

    def look(self) -> list[str]:
        """What the engine has done since the last look, followed in the model; then both are compared.

        Raises:
            Ends: they differ.
        """
        entries = [entry for entry in self.stage.news() if entry["machine"] in MODELLED]
        self.follower.reserved = {key: slot for slot, key in self.stage.slots.items()}
        try:
            took_place = self.follower.follow(entries)
        except NoPath as error:
            raise Ends(Verdict.disagrees, f"the engine has done what is no move of the model: {error.reason}") from error
        self.happened.update(took_place)
        self.compare()
        return took_place

    def compare(self) -> None:
        """Holds records and status against the model's state.

        Raises:
            Ends: they differ.
        """
        tables, expected = self.path.tables, self.path.at
        slots = {slot: key for key, slot in self.follower.slots.items()}
        if found := difference(tables, expected, abstract(self.stage.core.world, tables, slots)):
            raise Ends(Verdict.disagrees, found)
        status = self.stage.engine.status()
        said = {
            "engine": status.engine, "memory": dict(status.memory), "weights": status.weights[1], "requests": dict(status.requests),
            "pause_owners": dict(status.pause_owners), "steps_in_flight": status.steps_in_flight,
        }  # fmt: skip
        for name, wanted in projected(tables, expected).items():
            if said[name] != wanted:
                raise Ends(Verdict.disagrees, f"status() says {name} {said[name]}; the model says {wanted}")

    def _did_not(self, call: Call, owner: Owner) -> Ends:
        """Why something that the model allows did not happen."""
        if owner in (Owner.client, Owner.operator) and self.stage.calls:
            error = self.stage.answer(self.stage.last_call)
            if isinstance(error, errors.EngineError):
                return Ends(Verdict.disagrees, f"the model allows it, and the call is refused: {type(error).__name__}: {error}")
            if not self.stage.last_call.done():
                return Ends(Verdict.cannot, "the call waits for an operation in front of it (spec/operation.py)")
        if owner is Owner.core:
            return Ends(Verdict.cannot, "the engine's scheduler does not choose it here")
        return Ends(Verdict.disagrees, "the model allows it, and it did not happen")


def cause_of(calls: Sequence[Call], number: int) -> Cause:
    """An action, with what the stage must know of what comes after it."""
    call, rest = calls[number], calls[number + 1 :]
    if call.machine == "step" and call.event == "land":
        end = next(
            (n for n, other in enumerate(rest) if other.machine == "step" and other.event in ("retire", "land")), len(rest)
        )
        return Cause(call, [other for other in rest[:end] if other.event in ("eos", "device_fault")])
    if call.machine == "step" and call.event == "plan":
        others = [other for other in rest if (other.machine, other.instance, other.event) == ("step", call.instance, "plan")]
        end = next((n for n, other in enumerate(rest) if other.event != "plan"), len(rest))
        return Cause(call, [other for other in others if other in rest[:end]])
    later = [other.event for other in rest]
    commits = [event for event in later if event in UPDATES]
    return Cause(call, (), _is_withdrawn(call.event, later), bool(commits) and commits[0] == "commit_keep")


def _is_withdrawn(event: str, later: Sequence[str]) -> bool:
    """Whether what withdraws the call comes before what ends it otherwise."""
    withdraws = WITHDRAWN_BY.get(event)
    if withdraws not in later:
        return False
    others = (event, *(UPDATE_ENDS if event == "load" else ()))
    return not set(others) & set(later[: later.index(withdraws)])


# ---- the command ------------------------------------------------------------------------------------------------------------


def is_trace(path: FilePath) -> bool:
    with path.open(encoding="utf-8") as lines:
        return f'"quiesce_trace": {TRACE_VERSION}' in lines.readline()


def run(path: FilePath) -> int:
    """Replays a story, or follows a trace; prints what came of it. 0: engine and model agree."""
    if is_trace(path):
        try:
            followed = follow_file(path)
        except ValueError as error:
            print(f"{path}: {error}")
            return 1
        print(f"{path}: {followed.num_actions} actions are a path of the model with {followed.path.tables.world.size}")
        return 0
    story = Story.read(path)
    if story.spec and story.spec != spec_hash():
        print(f"{path}: made for the declaration {story.spec}; this one is {spec_hash()}")
    logger = logging.getLogger("quiesce")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # a story may fail the engine, which is not news
    try:
        replayed = replay(story)
    finally:
        logger.setLevel(level)
    print(replayed.told())
    return 0 if replayed.agrees else 1
