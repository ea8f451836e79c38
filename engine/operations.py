"""Control calls. Each is an `operation` machine; here is how each begins, what a deadline withdraws, and what its caller is told.

A call begins at once where the tables let it. Where they refuse, and an operation that is sure to end is in the way, it stays
`queued` and is tried again when that one has ended; behind an open update, which only its client can end, it is refused.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from quiesce.engine import errors
from quiesce.engine.answers import Reply
from quiesce.engine.inbox import Control
from quiesce.engine.messages import Moved
from quiesce.engine.outputs import LIVE, Transition
from quiesce.engine.verbs import UPDATES, Verbs
from quiesce.engine.weight_update import WeightUpdate
from quiesce.spec.language import Error
from quiesce.spec.vocabulary import (
    EngineState,
    Goal,
    MemoryEvent,
    MemoryState,
    OperationState,
    Tag,
    TokenOwner,
    TokenState,
)
from quiesce.spec.vocabulary import OperationKind as Kind
from quiesce.statemachine.gate import RefusedTransition
from quiesce.statemachine.records import OperationRecord, World

if TYPE_CHECKING:
    from quiesce.engine.core import Core

MAX_REMEMBERED = 1024
"""Answers kept for retries that carry an `operation_id`."""
QUEUED = (Kind.sleep, Kind.wake_up, Kind.reset_prefix_cache, *UPDATES)
"""Kinds that may wait for what is sure to end."""
CALLED = {
    "clear": "reset_prefix_cache",
    "begin_update": "begin_weight_update",
    "begin_in_place": "begin_weight_update",
    "load": "load_weights",
    "commit": "finish_weight_update",
    "commit_keep": "finish_weight_update",
    "rollback": "abort_weight_update",
    "hold": "pause",
    "select": "sleep",
    "restore": "wake_up",
    "release": "resume",
}
"""Events of the tables by the name of the call that fires them, where it is another."""


class Operation(OperationRecord):
    """One control call and who waits for it."""

    __slots__ = (
        "aborted", "asked", "began_s", "calls", "changed", "deadline_s", "error", "freed_bytes", "superseded_by", "took_token", "value",
    )  # fmt: skip

    def __init__(self, world: World, key: int, asked: Control, now_s: float) -> None:
        super().__init__(world, key, asked.kind)
        self.asked = asked
        self.calls = [asked.call]
        self.began_s = now_s
        self.deadline_s = None if asked.timeout_s is None else now_s + asked.timeout_s
        self.changed = self.took_token = False
        self.freed_bytes = 0
        self.aborted: dict[str, None] = {}
        """Ids of requests that ended because of it."""
        self.error: Exception | None = None
        self.superseded_by = ""
        self.value: object = None

    @property
    def clears(self) -> bool:
        """Whether it waits for the token `clear`."""
        return self.kind == Kind.reset_prefix_cache or (self.kind == Kind.pause and self.asked.clear_cache)


class Operations:
    """All control calls of one core that are not answered yet, and the times at which something is due."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.world, self.lifecycle = core.world, core.lifecycle
        self.update = WeightUpdate(core, self)
        self.by_key: dict[int, Operation] = {}
        self.ttl_s: dict[str, float] = {}
        """When a caller's token is released by itself."""
        self.shutdown_deadline_s: float | None = None
        self._num_operations = 0
        self._remembered: OrderedDict[str, Operation] = OrderedDict()
        self.verbs = Verbs(core, self)
        self._begin: dict[Kind, Callable[[Operation], bool]] = {kind: getattr(self.verbs, f"begin_{kind}") for kind in Kind}

    # ---- calls ----------------------------------------------------------------------------------------------------------------

    def call(self, asked: Control) -> None:
        """Takes a control call; `begin_waiting` begins it."""
        earlier = self._remembered.get(asked.operation_id) if asked.operation_id is not None else None
        if earlier is not None:
            self._retry(earlier, asked)
            return
        self._num_operations += 1
        operation = Operation(self.world, self._num_operations, asked, self.core.clock())
        self.by_key[operation.key] = operation
        if asked.operation_id is not None:
            self._remembered[asked.operation_id] = operation
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        if asked.kind == Kind.shutdown:
            self.supersede("shutdown", lambda other: other.kind != Kind.shutdown)

    def _retry(self, earlier: Operation, asked: Control) -> None:
        """The answer of the first call with this id, now or when it comes."""
        if earlier.kind != asked.kind:
            reason = f"{asked.operation_id!r} was a {earlier.kind}"
            self.core.answer(Reply(asked.call, error=errors.InvalidRequest("operation_id", reason)))
        elif earlier.key in self.by_key:
            earlier.calls.append(asked.call)
        else:
            self.core.answer(Reply(asked.call, earlier.value, earlier.error))

    def detach(self, call: int) -> None:
        """The caller left."""
        for operation in self.by_key.values():
            if call in operation.calls:
                operation.calls.remove(call)
                if not operation.calls:
                    self.lifecycle.detach(operation)
                return

    def begin_waiting(self) -> bool:
        """Begins one that waits, first come, first served among those that queue. Whether any began, or was refused."""
        self.update.advance()
        if not self.by_key:
            return False
        waiting = [operation for operation in self.by_key.values() if operation.state == OperationState.queued]
        if self.world.engine.state == EngineState.stopped:
            self._end_with_the_engine()
        blocked = False
        for operation in waiting:
            if operation.state != OperationState.queued or (blocked and operation.kind in QUEUED):
                continue
            if self._try(operation):
                return True  # one at a time: what it began is settled before the next is looked at (R1)
            blocked = True
        return False

    def _try(self, operation: Operation) -> bool:
        """Whether it is not waiting any more: it began, or it is refused."""
        try:
            if not self._begin[operation.kind](operation):
                return False
        except RefusedTransition as refusal:
            if refusal.error is Error.TransitionConflict and self._may_wait(operation, refusal):
                return False
            operation.error = error_for(refusal, str(self.world.engine.state), operation.kind)
        except errors.EngineError as error:
            operation.error = error
        if operation.error is not None:
            self.lifecycle.give_up(operation)
        elif operation.state == OperationState.queued:
            self.lifecycle.take(operation)
        return True

    def _may_wait(self, operation: Operation, refusal: RefusedTransition) -> bool:
        """Whether something that is sure to end is in the way. Of calls only those before it: later ones could follow each other for ever."""
        if refusal.event == MemoryEvent.select and refusal.state != MemoryState.restoring:
            return False  # another policy than that under which the tag is chosen or away: waiting does not change it
        if operation.kind not in QUEUED or self.world.engine.goal == Goal.stop or self.update.is_its_clients:
            return False
        if self.world.token(TokenOwner.clear).state != TokenState.free or self._memory_moves():
            return True
        busy = (OperationState.draining, OperationState.acting)
        return any(other.state in busy for other in self.by_key.values() if other.key < operation.key)

    def _memory_moves(self) -> bool:
        """Whether a copy is on its way, or zeroing: perhaps of an operation that is answered, because another tag of it failed."""
        moving = (MemoryState.releasing, MemoryState.restoring)
        memory = self.world.memory
        return memory[Tag.kv_cache].state in (*moving, MemoryState.undefined) or memory[Tag.weights].state in moving

    def supersede(self, by: str, whom: Callable[[Operation], bool]) -> None:
        for other in list(self.by_key.values()):
            if whom(other) and other.state in (OperationState.queued, OperationState.draining):
                other.superseded_by = by
                self.lifecycle.supersede(other)

    def token_released(self, owner: str, by: str) -> None:
        """Nobody waits any more for the pause of a token that is free."""
        self.ttl_s.pop(owner, None)
        self.supersede(by, lambda other: other.kind == Kind.pause and other.asked.owner == owner)

    # ---- deadlines --------------------------------------------------------------------------------------------------------------

    def next_deadline_s(self) -> float | None:
        """When something is due, on the core's clock."""
        waiting = (OperationState.queued, OperationState.draining)
        due = [op.deadline_s for op in self.by_key.values() if op.deadline_s is not None and op.state in waiting]
        due += self.ttl_s.values()
        if self.update.lease_s is not None:
            due.append(self.update.lease_s)
        if self.shutdown_deadline_s is not None and self.world.engine.state == EngineState.draining:
            due.append(self.shutdown_deadline_s)
        return min(due, default=None)

    def expire(self, now_s: float) -> None:
        """Does what is due: withdraws operations, releases tokens, rolls back an update whose lease is over."""
        if self.shutdown_deadline_s is not None and now_s >= self.shutdown_deadline_s:
            self.shutdown_deadline_s = None
            self.lifecycle.shutdown_deadline()
            self.core.settle()
        for operation in list(self.by_key.values()):
            if operation.deadline_s is not None and now_s >= operation.deadline_s:
                operation.deadline_s = None
                if operation.state in (OperationState.queued, OperationState.draining):
                    self.verbs.withdraw(operation)
                    self.core.settle()
        for owner in [owner for owner, due_s in self.ttl_s.items() if now_s >= due_s]:
            self.token_released(owner, "ttl")
            if self._is_open():
                self.lifecycle.resume(owner)
            self.core.settle()
        if self.update.lease_s is not None and now_s >= self.update.lease_s:
            self.update.lease_s = None
            self.verbs.abort_update("lease")
            self.core.settle()

    def _is_open(self) -> bool:
        """Whether tokens can still be released by their owners."""
        ending = (EngineState.stopping, EngineState.stopped, EngineState.failed)
        return self.world.engine.state not in ending and self.world.engine.goal != Goal.stop

    # ---- what the device and the requests report -------------------------------------------------------------------------------

    def moved(self, move: Moved) -> None:
        """A tag's arena has left, has come back, or could not; what could not is as before.

        Raises:
            Exception: memory could not be zeroed: nothing is known of it any more.
        """
        tag = Tag(move.tag)
        if move.to == "zeroed" and move.error is not None:
            raise move.error
        if move.to == "zeroed":
            self.lifecycle.kv_ready()
        elif move.to == "restored":
            (self.lifecycle.restored if move.error is None else self.lifecycle.restore_failed)(tag)
        else:
            (self.lifecycle.released if move.error is None else self.lifecycle.release_failed)(tag)
        kind = Kind.sleep if move.to == "released" else Kind.wake_up
        for operation in list(self.by_key.values()):
            named = operation.names_weights if tag == Tag.weights else operation.names_kv
            if operation.kind != kind or operation.state != OperationState.acting or not named:
                continue
            if move.error is not None:
                operation.error = errors.Unavailable(
                    str(self.world.engine.state), f"{kind} again: {move.error}", retry_after=1.0
                )
                self.lifecycle.give_up(operation)
            elif kind == Kind.sleep:
                operation.freed_bytes += move.num_bytes

    def delivered(self, key: int, digest: str, error: Exception | None) -> None:
        """The device has summed up the weights."""
        operation = self.by_key.get(key)
        if operation is None:
            return
        if error is not None:
            operation.error = errors.Unavailable(str(self.world.engine.state), str(error))
            self.lifecycle.give_up(operation)
        else:
            operation.value = digest
            self.lifecycle.deliver(operation)

    def request_aborted(self, request_id: str) -> None:
        """A request ended that its client had not aborted."""
        for operation in self.by_key.values():
            begun = operation.state != OperationState.queued
            if begun and operation.kind in (Kind.pause, Kind.sleep, Kind.shutdown, *UPDATES):
                operation.aborted[request_id] = None

    # ---- answers ---------------------------------------------------------------------------------------------------------------

    def answer(self, key: int, detail: str) -> None:
        """Tells those who wait what became of the operation, and remembers it for retries."""
        operation = self.by_key.pop(key)
        state = str(self.world.engine.state)
        if detail == "deadline":
            seconds = operation.asked.timeout_s
            operation.error = errors.DeadlineExceeded(
                f"{operation.kind} did not act within {seconds} s and was withdrawn; the engine is {state}"
            )
        elif detail == "superseded":
            operation.error = errors.TransitionConflict(state, operation.kind, superseded_by=operation.superseded_by)
        elif detail == "done" and operation.value is None:
            operation.value = self._result(operation, state)
        for call in operation.calls:
            self.core.answer(Reply(call, operation.value if operation.error is None else None, operation.error))
        # What is remembered for retries must not keep tensors: neither the source, nor the frames that an error was raised through.
        operation.asked, operation.error = replace(operation.asked, source=None), copy.copy(operation.error)

    def _result(self, operation: Operation, state: str) -> Transition:
        kept: dict[str, None] = {}
        if operation.kind in (Kind.pause, Kind.sleep, *UPDATES):
            kept = {request.client_id: None for request in self.core.requests.values() if request.state in LIVE}
        duration_s = self.core.clock() - operation.began_s
        return Transition(
            state, operation.changed, self.core.epoch, duration_s, operation.freed_bytes, tuple(operation.aborted), tuple(kept)
        )

    def fail(self, error: Exception) -> None:
        """The engine failed: nobody waits for anything but the end of a shutdown."""
        dead = errors.EngineDead("failed", "shutdown, then start a new engine")
        dead.__cause__ = error
        self.update.over(dead)
        self.ttl_s.clear()
        for operation in list(self.by_key.values()):
            if operation.kind != Kind.shutdown:
                operation.error = dead
                self.lifecycle.give_up(operation)

    def _end_with_the_engine(self) -> None:
        for operation in list(self.by_key.values()):
            if operation.kind != Kind.shutdown and operation.state == OperationState.acting:
                operation.error = errors.TransitionConflict("stopped", operation.kind, superseded_by="shutdown")
                self.lifecycle.give_up(operation)

    def in_hand(self) -> str | None:
        """The operation that drains or acts, or else the first that waits."""
        found = sorted(self.by_key.values(), key=lambda operation: operation.state == OperationState.queued)
        return str(found[0].kind) if found else None


def error_for(refusal: RefusedTransition, engine_state: str, call: str = "") -> Exception:
    """The error a caller meets for a refused transition, in the names of the calls."""
    event = call or refusal.event
    if refusal.error is Error.TransitionConflict:
        allowed = dict.fromkeys(CALLED.get(name, name) for name in refusal.allowed)
        return errors.TransitionConflict(refusal.state, event, tuple(allowed), refusal.how_to)
    if refusal.error is Error.DuplicateRequest:
        return errors.DuplicateRequest(refusal.record)
    if refusal.error is Error.InvalidRequest:
        return errors.InvalidRequest(event, refusal.how_to)
    kind = errors.EngineDead if refusal.error is Error.EngineDead else errors.Unavailable
    return kind(engine_state, refusal.how_to)
