"""Edge tours: the real engine over the real CPU device takes every edge of an abstraction of the model, and is asked whatever is refused.

`proofs/tours.py` plans the tours; here they are driven, turn by turn, each held against the model as a story is (`replay`). In every
settled state that a tour comes through, each call that the tables refuse there is made once for each cell (state, event, entry): its
caller must be told the declared error, and nothing may have changed. A call that the operations layer would rather keep until what is
in its way has ended (`spec/operation.py`) is made with a deadline of 0 and must be withdrawn without a trace.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from quiesce.engine import errors
from quiesce.proofs.path import Call, Path, Tables
from quiesce.proofs.refinement import abstract
from quiesce.proofs.search import State, compile_assigns, compile_guard
from quiesce.proofs.tours import ENDS, Abstraction, Edge, cause_of, find_tours, kind_of
from quiesce.proofs.world import CARRIED, NARROWED, World
from quiesce.spec.language import Owner, Refused
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.replay import Ends, Player, Verdict
from quiesce.stateful.stage import Cause, Stage

Cell = tuple[str, str, str, str]
"""Machine, its state, event, what the table says the caller should do first."""
ASKED = (Owner.client, Owner.operator)
FATAL = ("stopping", "stopped", "failed")
KINDS = {
    "TransitionConflict": errors.TransitionConflict, "Unavailable": errors.Unavailable, "EngineDead": errors.EngineDead,
    "DuplicateRequest": errors.DuplicateRequest, "InvalidRequest": errors.InvalidRequest,
}  # fmt: skip


KEPT = ("TransitionConflict", "Unavailable")
"""What a call that is kept waiting would be told once what is in its way has ended."""


class Broken(AssertionError):
    """The engine contradicts the model, or a refused call was not refused as declared."""


@dataclass(slots=True)
class Coverage:
    """What has been driven so far."""

    edges: set[Edge] = field(default_factory=set)
    cells: dict[Cell, str] = field(default_factory=dict)
    """Refused cell -> how: the error its caller met."""
    undriven: dict[tuple[int, int], str] = field(default_factory=dict)
    """(abstract state, cause) that an engine did not follow, and why."""
    num_turns: int = 0
    num_tours: int = 0


class Causes:
    """What can be caused in a settled state, for walks: every action that is enabled, with what belongs to it drawn by lot."""

    def __init__(self, seen: Abstraction) -> None:
        self.model = seen.model
        self._seen = seen
        self._calls = [
            (Call.parse(action.name), compile_guard(action.guard), compile_assigns(action.assigns), seen.kinds[kind_of(action)])
            for action in seen.model.actions
            if not action.event.boundary and str(action.event.name) not in (*ENDS, "void")
        ]
        self._engine = seen.model.place["engine.state"]

    def options(self, state: State, is_empty: bool, lots: random.Random) -> list[Cause]:
        """One cause for each action; most of the time none that ends the engine."""
        calls = [call for call, guard, _, _ in self._calls if guard(state)]
        loading = ("ready_empty", "ready")[is_empty]
        calls = [
            call
            for call in calls
            if call.event != loading and (call.machine, call.instance, call.event) != ("step", "1", "land")
        ]
        mild = [call for call in calls if call.event not in ("fail", "shutdown")]
        if mild and lots.random() > 0.03:
            calls = mild
        return [self._cause(call, calls, state, lots) for call in calls]

    def first_edge(self, call: Call, state: State) -> Edge:
        """What the action itself does to the abstraction."""
        apply, kind = next((apply, kind) for known, guard, apply, kind in self._calls if known == call and guard(state))
        return (self._seen.number(state), kind, self._seen.number(apply(state)))

    def _cause(self, call: Call, calls: Sequence[Call], state: State, lots: random.Random) -> Cause:
        with_it: list[Call] = []
        if call.event == "land":
            for slot in self._members(state):
                ends = lots.choice(((), (), ("eos",), ("device_fault",), ENDS))
                with_it += [Call("request", slot, event, {}) for event in ends]
        elif call.event == "plan":
            others = [other for other in calls if other.event == "plan" and other.instance == call.instance and other != call]
            with_it = [other for other in others if lots.random() < 0.5]
        return Cause(call, with_it, is_withdrawn=lots.random() < 0.7, keeps_kv=lots.random() < 0.5)

    def _members(self, state: State) -> Iterator[str]:
        """Requests that the older step names, and that still hold blocks."""
        for name, place in self.model.place.items():
            if name.endswith(".member[0]") and state[place] == 1:
                now = self.model.place[name.replace("member[0]", "state")]
                if self.model.variables[now].values[state[now]] in ("running", "retracting"):
                    yield name.removeprefix("request[").partition("]")[0]


class Tourist:
    """Drives tours. `seen`: the abstraction they were planned for."""

    def __init__(self, seen: Abstraction) -> None:
        self.seen = seen
        self.tables = Tables(seen.builder.world)
        self.coverage = Coverage()
        self.strollers = Causes(seen)
        self._probes = list(_probes(self.tables))
        self._probed: set[State] = set()
        self._ignores = [
            place
            for place, variable in enumerate(self.tables.variables)
            if variable.name.startswith("step[") or ".member[" in variable.name
        ]

    def drive(self, tour: Sequence[Sequence[str]]) -> None:
        """One tour on a new engine.

        Raises:
            Broken: the engine contradicts the model.
        """
        names = list(itertools.chain.from_iterable(tour))
        calls = [Call.parse(name) for name in names]
        is_empty = any(call.event == "ready_empty" for call in calls)
        self._on_stage(is_empty, lambda player: self._follow(player, calls, names))

    def walk(self, seed: int, num_turns: int) -> None:
        """So many turns on a new engine, or as many as it lives; those that were rarely made are made first, else by lot.

        Raises:
            Broken: the engine contradicts the model.
        """
        lots = random.Random(seed)
        self._on_stage(lots.random() < 0.1, lambda player: self._stroll(player, lots, num_turns))

    def _on_stage(self, is_empty: bool, play: Callable[[Player], Coroutine[Any, Any, None]]) -> None:
        loop = DeterministicLoop(timely=True)

        async def main() -> None:
            stage = Stage(loop, self.seen.builder.world.capacity, is_empty)
            player = Player(stage, Path(self.tables))
            await stage.start()
            try:
                await play(player)
            finally:
                await stage.finish()

        loop.run(main())
        self.coverage.num_tours += 1

    async def _stroll(self, player: Player, lots: random.Random, num_turns: int) -> None:
        made: list[str] = []
        for _ in range(num_turns):
            await self._probe(player)
            before = player.path.at
            options = self.strollers.options(before, player.stage.is_empty, lots)
            if not options:
                return
            known = self.coverage.edges
            cause = min(options, key=lambda option: (self.strollers.first_edge(option.call, before) in known, lots.random()))
            made.append(" + ".join(map(str, (cause.call, *cause.with_it))))
            try:
                await player.make(cause)
            except Ends as end:
                if end.verdict is not Verdict.cannot:
                    raise Broken("\n".join([*made, end.reason])) from end
                await player.stage.withdraw_last()
                player.look()
            self._count(player, before)
            player.happened.clear()

    async def _follow(self, player: Player, calls: Sequence[Call], names: Sequence[str]) -> None:
        await self._probe(player)
        for number, name in enumerate(names):
            before = player.path.at
            try:
                await player.act(calls, number)
            except Ends as end:
                if end.verdict is not Verdict.cannot:
                    raise Broken("\n".join([*names[: number + 1], end.reason])) from end
                cause = self.seen.causes[cause_of(name)]
                self.coverage.undriven.setdefault((self.seen.number(before), cause), f"{name}: {end.reason}")
                if not await player.stage.withdraw_last():
                    return
                player.look()  # it was kept waiting, and has been withdrawn: the tour goes on as far as it can without
            self._count(player, before)
            if not _goes_on(calls, number):
                player.happened.clear()
            try:
                await self._probe(player)
            except Broken as broken:
                raise Broken("\n".join([*names[: number + 1], str(broken)])) from broken

    def _count(self, player: Player, before: State) -> None:
        last = self.seen.number(before)
        for action, state in player.path.taken:
            after = self.seen.number(state)
            self.coverage.edges.add((last, self.seen.kinds[kind_of(action)], after))
            last = after
        self.coverage.num_turns += bool(player.path.taken)
        player.path.taken.clear()

    # ---- what is refused ------------------------------------------------------------------------------------------------------

    async def _probe(self, player: Player) -> None:
        """Makes each refused call whose cell has not been asked yet."""
        state = player.path.at
        looked = tuple(0 if place in self._ignores else value for place, value in enumerate(state))
        if looked in self._probed:
            return
        self._probed.add(looked)
        for call in self._probes:
            for cell, entry in self._refusals(call, state):
                if cell not in self.coverage.cells:
                    self.coverage.cells[cell] = await self._ask(player, call, entry)

    def _refusals(self, call: Call, state: State) -> Iterator[tuple[Cell, Refused]]:
        decision = self.tables.decide(call, state)
        if decision.refused is not None:
            of = decision.of or call
            yield (
                (of.machine, self.tables.value(of.machine, of.instance, "state", state), of.event, decision.refused.how_to),
                decision.refused,
            )

    async def _ask(self, player: Player, call: Call, entry: Refused) -> str:
        """Makes one refused call; which error it met.

        Raises:
            Broken: another, or something has changed.
        """
        stage, slots = player.stage, {slot: key for key, slot in player.follower.slots.items()}
        before = (abstract(stage.core.world, self.tables, slots), _of_status(stage))
        task = await stage.ask_in_vain(call)
        if task is None:
            return "never sent"
        error = stage.answer(task)
        if isinstance(error, errors.DeadlineExceeded) and str(entry.error) in KEPT:
            told = "waits for what is in its way"
        elif type(error) is KINDS[str(entry.error)]:
            told = type(error).__name__
        elif stage.link.is_over and type(error) is errors.EngineDead:
            told = "EngineDead by the front end, whose core is gone"
        else:
            raise Broken(f"{call} is refused as {entry.error} ({entry.how_to}); its caller was told {error!r}, {task}")
        news = [line for line in stage.news() if line["machine"] != "operation"]
        after = (abstract(stage.core.world, self.tables, slots), _of_status(stage))
        if news or before != after:
            raise Broken(f"{call} is refused, and yet: {news or (before, after)}")
        return told


def _of_status(stage: Stage) -> tuple[object, ...]:
    status = stage.engine.status()
    return (status.engine, dict(status.memory), status.weights, dict(status.pause_owners), dict(status.requests), status.blocks,
            status.steps_in_flight, status.accepted, dict(status.finished), status.epoch)  # fmt: skip


def _goes_on(calls: Sequence[Call], number: int) -> bool:
    """Whether the next action belongs to the same turn: it has taken place already."""
    following = calls[number + 1] if number + 1 < len(calls) else None
    if following is None:
        return False
    is_end = following.event in ("eos", "device_fault")
    both_plan = following.event == calls[number].event == "plan" and following.instance == calls[number].instance
    return is_end or both_plan


def _probes(tables: Tables) -> Iterator[Call]:
    """Every call of a client or operator, with all that it can carry."""
    for name, machine in tables.machines.items():
        for event in machine.events:
            if event.owner not in ASKED or name in ("pause_token", "memory") or str(event.name) == "begin_in_place":
                continue
            choices = [_carried(str(event.name), key) for key in event.takes]
            for values in itertools.product(*choices):
                for instance in tables.world.instances[name]:
                    yield Call(name, instance, str(event.name), dict(zip(event.takes, values, strict=True)))


def _carried(event: str, key: str) -> Iterable[str]:
    return ("caller",) if key == "owner" else map(str, NARROWED.get((event, key), CARRIED[key]))


@dataclass(frozen=True, slots=True)
class Report:
    """What came of all tours of a world."""

    world: World
    num_states: int
    num_edges: int
    coverage: Coverage
    left: tuple[str, ...]
    """Edges that no tour could take."""

    def told(self) -> str:
        found = self.coverage
        ways = Counter(found.cells.values())
        lines = [
            f"world engine, {self.world.size}: {self.num_states:,} settled states, {self.num_edges:,} edges of the abstraction",
            f"{self.num_edges - len(self.left):,} edges driven on the real engine, in {found.num_tours:,} tours and {found.num_turns:,} turns",
            f"{len(found.cells)} refused cells asked: {', '.join(f'{count} {how}' for how, count in sorted(ways.items()))}",
        ]
        if self.left:
            lines += [f"{len(self.left)} edges not driven:", *(f"  {edge}" for edge in self.left)]
        return "\n".join(lines)


def drive_all(world: World, rounds: int = 4) -> Report:
    """Plans and drives until no further edge can be taken."""
    seen = Abstraction(world)
    tourist = Tourist(seen)
    planned = find_tours(seen)
    edges, num_states = planned.edges, planned.num_states
    for _ in range(rounds):
        for tour in tqdm(planned.tours, desc="tours", disable=None):
            tourist.drive(tour)
        covered = tourist.coverage.edges
        if edges <= covered:
            break
        planned = find_tours(seen, tourist.coverage.undriven, covered)
        if not planned.tours:
            break
    left = sorted(edges - tourist.coverage.edges)
    reasons: dict[tuple[int, str], str] = {}
    for (before, _), reason in tourist.coverage.undriven.items():
        reasons.setdefault((before, reason.split("(")[0].split(":")[0]), reason)
    kinds = {number: kind for kind, number in seen.kinds.items()}
    told = [
        f"{seen.told(edge)}  {reasons.get((edge[0], kinds[edge[1]]), 'behind another that is not driven')}" for edge in left
    ]
    return Report(world, num_states, len(edges), tourist.coverage, tuple(told))


def run(num_requests: int) -> int:
    """Drives all there is to drive with so many requests, and tells what came of it. 0: engine and model agree throughout."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # tours fail the engine, which is not news
    try:
        print(drive_all(World.engine(num_requests)).told())
    except Broken as broken:
        print(broken)
        return 1
    finally:
        logging.disable(level)
    return 0
