"""What must hold whenever nothing can happen but by somebody's leave: nobody waits for an answer that only the engine owes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from quiesce.spec.vocabulary import OperationState, StreamState
from quiesce.stateful.fuzz.clients import Client
from quiesce.stateful.fuzz.oracles import Oracles
from quiesce.stateful.fuzz.rig import Rig

PIPELINE = 4
"""Steps that may still name a request whose client has left, in a world at rest: two in flight, and as many planned."""


def check_settled(aborts: Iterable[asyncio.Task[None]], now_s: float, rig: Rig, oracles: Oracles) -> None:
    """Calls are accepted or refused, aborts have ended what they named, deadlines and times to live have passed on time."""
    if rig.stalls or rig.core_is_dead:
        return
    front, operations = rig.engine._front, rig.engine._core.operations
    opening = [stream.name for stream in front.world.streams.values() if stream.state == StreamState.opening]
    oracles.expect("hang", not opening, f"calls neither accepted nor refused: {opening}")
    waiting = sum(not task.done() for task in aborts)
    oracles.expect("hang", not waiting, f"{waiting} aborts wait")
    early = (OperationState.queued, OperationState.draining)
    late = [
        operation.name
        for operation in operations.by_key.values()
        if operation.deadline_s is not None and operation.deadline_s <= now_s and operation.state in early
    ]
    late += [owner for owner, due_s in operations.ttl_s.items() if due_s <= now_s]
    oracles.expect("hang", not late, f"overdue: {late}")


def watch_zombies(clients: Iterable[Client], rig: Rig, oracles: Oracles) -> None:
    """From now on nothing is computed for clients that have left, but for the steps on their way."""
    known = list(clients)
    gone = {client.request_id for client in known if client.left and client.params.n == 1}
    gone -= {client.request_id for client in known if not client.left}
    core = rig.engine._core
    forget_plan = core.pipeline.forget_plan
    num_steps = 0

    def counted(number: int) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps > PIPELINE:
            members = {member.name for step in (core.world.older, core.world.newer) for member in step.members.values()}
            oracles.expect("zombie", not members & gone, f"still computed for {sorted(members & gone)}, who left")
        forget_plan(number)

    core.pipeline.forget_plan = counted  # type: ignore[method-assign]
