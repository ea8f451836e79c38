"""The oracle of the model: after every pass the engine is in a state that the model can reach.

Membership is shown by the way there. What the gate did in the pass is followed in the model of world A, move by move (each must be able
to happen where the model stands, and do there what the engine says it did), from the model's initial state; then the state of the
engine's records (`proofs/refinement.py: abstract`) must be the one where the model is. So it is in the reachable set of the world with
as many requests as were ever live at once, no request left out and none taken together. The exploring checkers show what holds in that
set; here it is shown that the engine does not leave it. What the front end keeps (streams, sessions, the link) and the queue of control
calls are of other worlds, and are not looked at here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from quiesce.proofs.path import NotAPath, Path, Tables
from quiesce.proofs.refinement import abstract, difference
from quiesce.proofs.trace_path import MODELLED, Follower, NoPath
from quiesce.proofs.world import World
from quiesce.statemachine.gate import Transition
from quiesce.statemachine.records import Record
from quiesce.statemachine.records import World as Records

CALLERS = ("user", "ops")
"""Owners of tokens that the alphabet knows."""
SLOTS = 8
"""Requests at once that are followed; where there are more the run is not followed any further."""


@cache
def tables() -> Tables:
    """The model's actions, made as they are asked for, for all runs of this process."""
    return Tables(World.engine(SLOTS, callers=CALLERS))


class OnPath:
    """Follows one engine. `num_passes` were looked at; `gave_up` once there were more requests than slots."""

    def __init__(self, world: Records) -> None:
        self.world = world
        self.follower = Follower(Path(tables()), dict(zip(CALLERS, CALLERS, strict=True)))
        self.num_passes = 0
        self.gave_up = False

    def take(self, log: Iterable[Transition]) -> str:
        """Follows a pass, now that it is over; what is wrong with it, or nothing. After the first word it follows no more."""
        if self.gave_up:
            return ""
        entries = [_entry(*transition) for transition in log if transition[0].machine in MODELLED]
        submitted = sum(entry["event"] == "submit" for entry in entries)
        if len(self.follower.slots) + submitted > SLOTS:
            self.gave_up = True
            return ""
        self.num_passes += 1
        try:
            self.follower.follow(entries)
        except (NoPath, NotAPath) as error:
            self.gave_up = True
            return f"no path of the model: {error}"
        path = self.follower.path
        path.taken.clear()
        slots = {slot: key for key, slot in self.follower.slots.items()}
        apart = difference(path.tables, path.at, abstract(self.world, path.tables, slots))
        self.gave_up = bool(apart)
        return f"the engine is not where the model is: {apart}" if apart else ""


def _entry(record: Record, event: str, source: str, target: str, row: int, data: Any) -> dict[str, Any]:
    """As a line of the trace has it."""
    given = (
        {name: [each.key for each in value] if name == "requests" else value for name, value in data.items()} if data else {}
    )
    return {"machine": record.machine, "id": record.name, "key": record.key, "event": event, "from": source, "to": target, "row": row, "data": given}  # fmt: skip
