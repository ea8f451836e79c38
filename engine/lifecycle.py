"""One method for each event of the core's machines, named after it, firing it at one line. They change records and collect effects.

`settle` fires the boundary rows in the declared order (`spec/coupling.py: PASS_ORDER`) until none moves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from quiesce.engine.request import Request
from quiesce.spec import PASS_ORDER
from quiesce.spec.vocabulary import (
    EngineEvent,
    EngineState,
    MemoryEvent,
    MemoryState,
    Mode,
    OperationEvent,
    OperationState,
    Policy,
    RequestEvent,
    RequestState,
    StepEvent,
    StepState,
    Tag,
    WeightsEvent,
    WeightsState,
)
from quiesce.statemachine.compile import Data
from quiesce.statemachine.effects import Effect
from quiesce.statemachine.gate import Gate, Outcome, Transition
from quiesce.statemachine.machine import NO_DATA
from quiesce.statemachine.records import OperationRecord, Record, RequestRecord, StepRecord, World

WAITING = (RequestState.received, RequestState.admitted)
HOLDING = (RequestState.running, RequestState.retracting)
ONLY_WHEN_CLOSED = (
    "fail", "sweep", "retract", "undrain", "drained_stop", "drained_pause", "drained_sleep", "drained_update", "act", "release",
    "committed", "settle_sleeping", "settle_paused", "cleared", "reopen", "stop",
)  # fmt: skip
"""Looks that find nothing while the engine runs: their rows ask for another state."""
ONLY_WHEN_MARKED = ("aborted", "fault", "finish")
GATED = frozenset(EngineState) - {EngineState.running}


class Lifecycle:
    """The gate, in the words of the tables. `effects` collects what the fired rows ask for, in order."""

    def __init__(self, world: World, gate: Gate) -> None:
        self.world = world
        self.gate = gate
        self.effects: deque[Effect] = deque()
        self._fresh: list[RequestRecord] = []
        """Requests that came or began since everybody was last looked at."""
        self._seen: tuple[object, ...] = ()
        self._marked: dict[int, RequestRecord] = {}
        """Requests with a mark: the next pass sees to them."""
        self._settled: tuple[list[Transition], int] = ([], -1)
        """The gate's log and its length when nothing moved any more: what guards read changes through the gate alone."""
        looks: list[tuple[str, Callable[[], bool]]] = [(event.value, getattr(self, event.value)) for _, event in PASS_ORDER]
        self._looks = [look for _, look in looks]
        self._looks_when_running = [look for name, look in looks if name not in ONLY_WHEN_CLOSED]
        self._looks_when_steady = [look for name, look in looks if name not in (*ONLY_WHEN_CLOSED, *ONLY_WHEN_MARKED)]

    def settle(self) -> None:
        """Fires the boundary rows to a fixpoint, in the declared order (rule R1)."""
        log, length = self._settled
        if log is self.gate.log and length == len(log):
            return
        if self.world.engine.state == EngineState.running:
            self._fresh.clear()
            self._seen = ()
        moved = True
        while moved:
            moved = False
            running = self.world.engine.state == EngineState.running
            for look in self._looks if not running else self._looks_when_running if self._marked else self._looks_when_steady:
                moved |= look()
        self._settled = (self.gate.log, len(self.gate.log))

    def _fire(self, record: Record, event: str, data: Data = NO_DATA) -> Outcome:
        outcome = self.gate.fire(record, event, data)
        self.effects += outcome.effects
        return outcome

    def _fire_each(self, records: Iterable[Record], event: str) -> bool:
        """Fires on each of a snapshot of records; whether any moved."""
        moved = False
        for record in list(records):
            moved |= self._fire(record, event).moved
        return moved

    def _in(self, *states: RequestState) -> list[RequestRecord]:
        return [request for state in states for request in self.world.by_state[state].values()]

    # ---- request: calls, and what the device reports ------------------------------------------------------------------------

    def submit(self, request: Request) -> Outcome:
        self._fresh.append(request)
        return self._fire(request, RequestEvent.submit)

    def abort(self, request: RequestRecord) -> Outcome:
        outcome = self._fire(request, RequestEvent.abort)
        self._marked[request.key] = request
        return outcome

    def eos(self, request: RequestRecord) -> None:
        self._fire(request, RequestEvent.eos)
        self._marked[request.key] = request

    def device_fault(self, request: RequestRecord) -> None:
        self._fire(request, RequestEvent.device_fault)
        self._marked[request.key] = request

    # ---- request: the scheduler's moves -------------------------------------------------------------------------------------

    def start(self, request: RequestRecord) -> bool:
        self._fresh.append(request)
        return self._fire(request, RequestEvent.start).moved

    def preempt(self, request: RequestRecord) -> bool:
        return self._fire(request, RequestEvent.preempt).moved

    # ---- request: boundary rows ---------------------------------------------------------------------------------------------

    def _fire_marked(self, event: str) -> bool:
        if not self._marked:
            return False
        live = [request for request in self._marked.values() if request.state in WAITING or request.state in HOLDING]
        if not live:
            self._marked.clear()
        return self._fire_each(live, event)

    def aborted(self) -> bool:
        return self._fire_marked(RequestEvent.aborted)

    def fault(self) -> bool:
        return self._fire_marked(RequestEvent.fault)

    def finish(self) -> bool:
        return bool(self._marked) and self._fire_each(
            [request for request in self._marked.values() if request.state in HOLDING], RequestEvent.finish
        )

    def fail(self) -> bool:
        """Everybody live is answered `error`, once the engine has failed."""
        return self.world.engine.state == EngineState.failed and self._fire_each(
            self._in(*WAITING, *HOLDING), RequestEvent.fail
        )

    def sweep(self) -> bool:
        if self.world.engine.state not in GATED:
            return False
        return self._fire_each(self._to_look_at(self._circumstances()), RequestEvent.sweep)

    def retract(self) -> bool:
        """Follows `sweep` in the pass, and ends what it began: everybody has been looked at under these circumstances."""
        if self.world.engine.state not in GATED:
            return False
        now = self._circumstances()
        running = [request for request in self._to_look_at(now) if request.state == RequestState.running]
        self._seen, self._fresh = now, []
        return self._fire_each(running, RequestEvent.retract)

    def _to_look_at(self, now: tuple[object, ...]) -> list[RequestRecord]:
        """Whom a closed gate may concern anew: everybody when what it depends on has changed, else only who has come since."""
        if self._seen != now:
            return self._in(*WAITING, *HOLDING)
        return [request for request in self._fresh if request.state in WAITING or request.state in HOLDING]

    def _circumstances(self) -> tuple[object, ...]:
        """Everything but the request itself that the guards of `sweep` and `retract` read."""
        world = self.world
        tokens = tuple((name, token.state) for name, token in world.pause_token.items())
        memory = tuple((record.state, record.policy) for record in world.memory.values())
        return (world.engine.state, world.engine.goal, world.engine.granted, world.weights.state, tokens, memory)

    def retracted(self) -> bool:
        found = self.world.by_state[RequestState.retracting]
        return bool(found) and self._fire_each(found.values(), RequestEvent.retracted)

    def reap(self) -> bool:
        found = self.world.by_state[RequestState.draining]
        return bool(found) and self._fire_each(found.values(), RequestEvent.reap)

    def admit(self) -> bool:
        received = self.world.by_state[RequestState.received]
        return (
            bool(received)
            and self.world.engine.state == EngineState.running
            and self._fire_each(received.values(), RequestEvent.admit)
        )

    # ---- step ---------------------------------------------------------------------------------------------------------------

    def plan(self, step: StepRecord, requests: Sequence[RequestRecord]) -> bool:
        return self._fire(step, StepEvent.plan, {"requests": requests}).moved

    def launch(self, step: StepRecord) -> bool:
        return self._fire(step, StepEvent.launch).moved

    def land(self, step: StepRecord) -> None:
        self._fire(step, StepEvent.land)

    def strip_members(self) -> bool:
        """Who ended or yielded leaves the planned batch."""
        step = self.planned()
        if step is None:
            return False
        gone = [member for member in step.members.values() if member.state != RequestState.running or _is_marked(member)]
        return bool(gone) and self._fire(step, StepEvent.strip_members, {"requests": gone}).moved

    def drop(self) -> bool:
        step = self.planned()
        return step is not None and self._fire(step, StepEvent.drop).moved

    def retire(self) -> bool:
        step = self.world.older
        return step.state == StepState.landed and self._fire(step, StepEvent.retire).moved

    def planned(self) -> StepRecord | None:
        world = self.world
        if world.older.state == StepState.planned:
            return world.older
        return world.newer if world.newer.state == StepState.planned else None

    # ---- engine -------------------------------------------------------------------------------------------------------------

    def ready(self) -> None:
        self._fire(self.world.engine, EngineEvent.ready)

    def ready_empty(self) -> None:
        self._fire(self.world.engine, EngineEvent.ready_empty)

    def pause(self, owner: str, mode: Mode) -> Outcome:
        return self._fire(self.world.engine, EngineEvent.pause, {"owner": owner, "mode": mode})

    def may_pause(self, owner: str, mode: Mode) -> bool:
        return self.gate.may(self.world.engine, EngineEvent.pause, {"owner": owner, "mode": mode})

    def resume(self, owner: str) -> Outcome:
        return self._fire(self.world.engine, EngineEvent.resume, {"owner": owner})

    def sleep(self, mode: Mode, weights: Policy, kv_cache: Policy) -> Outcome:
        return self._fire(self.world.engine, EngineEvent.sleep, {"mode": mode, "weights": weights, "kv_cache": kv_cache})

    def withdraw_sleep(self) -> None:
        self._fire(self.world.engine, EngineEvent.withdraw_sleep)

    def wake_up(self, tags: str) -> Outcome:
        return self._fire(self.world.engine, EngineEvent.wake_up, {"tags": tags})

    def clear(self) -> Outcome:
        return self._fire(self.world.engine, EngineEvent.clear)

    def withdraw_clear(self) -> None:
        self._fire(self.world.engine, EngineEvent.withdraw_clear)

    def begin_update(self, mode: Mode) -> Outcome:
        return self._fire(self.world.engine, EngineEvent.begin_update, {"mode": mode})

    def withdraw_update(self) -> None:
        self._fire(self.world.engine, EngineEvent.withdraw_update)

    def shutdown(self, mode: Mode) -> Outcome:
        return self._fire(self.world.engine, EngineEvent.shutdown, {"mode": mode})

    def shutdown_deadline(self) -> None:
        self._fire(self.world.engine, EngineEvent.shutdown_deadline)

    def fail_engine(self) -> Outcome:
        """The engine's `fail`; the requests' `fail` follows in the same pass."""
        return self._fire(self.world.engine, EngineEvent.fail)

    # ---- engine: boundary rows ----------------------------------------------------------------------------------------------

    def _fire_engine(self, state: EngineState, event: str) -> bool:
        engine = self.world.engine
        return engine.state == state and self._fire(engine, event).moved

    def undrain(self) -> bool:
        return self._fire_engine(EngineState.draining, EngineEvent.undrain)

    def drained_stop(self) -> bool:
        return self._fire_engine(EngineState.draining, EngineEvent.drained_stop)

    def drained_pause(self) -> bool:
        return self._fire_engine(EngineState.draining, EngineEvent.drained_pause)

    def drained_sleep(self) -> bool:
        return self._fire_engine(EngineState.draining, EngineEvent.drained_sleep)

    def drained_update(self) -> bool:
        return self._fire_engine(EngineState.draining, EngineEvent.drained_update)

    def settle_sleeping(self) -> bool:
        return self._fire_engine(EngineState.partially_awake, EngineEvent.settle_sleeping)

    def settle_paused(self) -> bool:
        return self._fire_engine(EngineState.partially_awake, EngineEvent.settle_paused)

    def cleared(self) -> bool:
        return self._fire_engine(EngineState.paused, EngineEvent.cleared)

    def reopen(self) -> bool:
        return self._fire_engine(EngineState.paused, EngineEvent.reopen)

    def stop(self) -> bool:
        return self._fire_engine(EngineState.stopping, EngineEvent.stop)

    # ---- memory and weights -------------------------------------------------------------------------------------------------

    def release(self) -> bool:
        if self.world.engine.state != EngineState.partially_awake:
            return False
        mapped = (MemoryState.resident, MemoryState.undefined)
        return self._fire_each([tag for tag in self.world.memory.values() if tag.state in mapped], MemoryEvent.release)

    def released(self, tag: Tag) -> None:
        self._fire(self.world.memory[tag], MemoryEvent.released)

    def release_failed(self, tag: Tag) -> None:
        self._fire(self.world.memory[tag], MemoryEvent.release_failed)

    def restored(self, tag: Tag) -> None:
        self._fire(self.world.memory[tag], MemoryEvent.restored)

    def restore_failed(self, tag: Tag) -> None:
        self._fire(self.world.memory[tag], MemoryEvent.restore_failed)

    def kv_ready(self) -> None:
        self._fire(self.world.memory[Tag.kv_cache], MemoryEvent.kv_ready)

    def load(self) -> None:
        self._fire(self.world.weights, WeightsEvent.load)

    def may_load(self) -> bool:
        return self.gate.may(self.world.weights, WeightsEvent.load)

    def commit(self) -> None:
        self._fire(self.world.weights, WeightsEvent.commit)

    def commit_keep(self) -> None:
        self._fire(self.world.weights, WeightsEvent.commit_keep)

    def committed(self) -> bool:
        weights = self.world.weights
        return weights.state == WeightsState.committing and self._fire(weights, WeightsEvent.committed).moved

    def rollback(self) -> None:
        self._fire(self.world.weights, WeightsEvent.rollback)

    def load_failed(self) -> None:
        self._fire(self.world.weights, WeightsEvent.load_failed)

    # ---- operation ----------------------------------------------------------------------------------------------------------

    def take(self, operation: OperationRecord) -> None:
        self._fire(operation, OperationEvent.take)

    def act(self) -> bool:
        return bool(self.world.operations) and self._fire_each(self._operations(OperationState.draining), OperationEvent.act)

    def deliver(self, operation: OperationRecord) -> None:
        self._fire(operation, OperationEvent.deliver)

    def complete(self) -> bool:
        return bool(self.world.operations) and self._fire_each(self._operations(OperationState.acting), OperationEvent.complete)

    def give_up(self, operation: OperationRecord) -> None:
        self._fire(operation, OperationEvent.give_up)

    def supersede(self, operation: OperationRecord) -> bool:
        return self._fire(operation, OperationEvent.supersede).moved

    def expire(self, operation: OperationRecord) -> None:
        self._fire(operation, OperationEvent.expire)

    def detach(self, operation: OperationRecord) -> None:
        self._fire(operation, OperationEvent.detach)

    def _operations(self, state: OperationState) -> list[OperationRecord]:
        return [operation for operation in self.world.operations.values() if operation.state == state]


def _is_marked(request: RequestRecord) -> bool:
    return request.abort_mark or request.eos_mark or request.fault_mark
