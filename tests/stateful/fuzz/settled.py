"""What must hold whenever nothing can happen but by somebody's leave: nobody waits for an answer that only the engine owes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from quiesce.engine.request import Request
from quiesce.spec.vocabulary import OperationState, StreamState
from quiesce.stateful.fuzz.clients import Client
from quiesce.stateful.fuzz.oracles import Oracles
from quiesce.stateful.fuzz.rig import Rig
from quiesce.statemachine.records import StepRecord


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


def watch_zombies(clients: Mapping[str, Client], rig: Rig, oracles: Oracles) -> None:
    """From now on holds each plan against the clients that have left: a disconnect is an abort, and the pass that follows takes it first."""
    core, by_key = rig.engine._core, rig.engine._front.by_key
    plan = core.lifecycle.plan

    def planned(step: StepRecord, requests: Sequence[Request]) -> bool:
        for request in requests:
            owners = [client for client in clients.values() if client.request_id == request.client_id]
            stream = by_key.get(request.stream)
            known = stream is None or stream.accepted
            gone = known and all(client.left and client.left_in_pass < core.pass_number for client in owners)
            oracles.expect("zombie", not gone, f"{request.client_id} is still computed, and its client has left")
        return plan(step, requests)

    core.lifecycle.plan = planned  # type: ignore[assignment, method-assign]
