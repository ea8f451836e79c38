"""How each control call begins, and what its deadline withdraws. `Operations` decides when; the tables decide whether."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quiesce.engine import errors
from quiesce.spec.vocabulary import (
    EngineState,
    Goal,
    MemoryState,
    Mode,
    OperationState,
    Policy,
    Tag,
    TokenOwner,
    TokenState,
    WeightsState,
)
from quiesce.spec.vocabulary import OperationKind as Kind

if TYPE_CHECKING:
    from quiesce.engine.core import Core
    from quiesce.engine.operations import Operation, Operations

UPDATES = (Kind.begin_weight_update, Kind.update_weights)
NOTHING_LOADED = "wake_up(['weights']), or update_weights"


class Verbs:
    """One `begin_<kind>` for each kind of operation: it fires the engine's event, and says whether that could be done now.

    Each raises what its caller is to be told: a `RefusedTransition` of the tables, or an `EngineError`; then nothing has changed.
    """

    def __init__(self, core: Core, operations: Operations) -> None:
        self.core, self.operations = core, operations
        self.world, self.lifecycle, self.update = core.world, core.lifecycle, operations.update

    def _facts(self) -> tuple[object, ...]:
        """What a control call can change, to tell whether it did."""
        world = self.world
        tokens = tuple((name, token.state) for name, token in world.pause_token.items() if token.state != TokenState.free)
        tags = tuple((tag.state, tag.policy) for tag in world.memory.values())
        return (world.engine.state, world.engine.goal, tokens, tags, world.weights.state)

    def _take_token(self, operation: Operation, owner: str) -> None:
        operation.took_token = self.world.token(owner).state == TokenState.free

    def begin_pause(self, operation: Operation) -> bool:
        asked, before = operation.asked, self._facts()
        mode = asked.mode or Mode.abort
        self._take_token(operation, asked.owner)
        if asked.clear_cache and self.lifecycle.may_pause(asked.owner, mode):
            self.lifecycle.clear()  # first: where it is refused, nothing has happened
        self.lifecycle.pause(asked.owner, mode)
        self.operations.ttl_s.pop(asked.owner, None)
        if asked.ttl_s is not None:
            self.operations.ttl_s[asked.owner] = self.core.clock() + asked.ttl_s
        operation.changed = before != self._facts()
        return True

    def begin_resume(self, operation: Operation) -> bool:
        owner = operation.asked.owner
        operation.changed = self.world.token(owner).state != TokenState.free
        self.lifecycle.resume(owner)
        self.operations.token_released(owner, "resume")
        return True

    def strongest_mode(self) -> Mode | None:
        """The strongest mode that any owner holds the engine in."""
        held = {str(token.state) for token in self.world.pause_token.values()}
        return next((mode for mode in (Mode.abort, Mode.wait, Mode.keep) if mode in held), None)

    def begin_sleep(self, operation: Operation) -> bool:
        asked, before = operation.asked, self._facts()
        operation.names_weights = asked.weights != Policy.none
        operation.names_kv = asked.kv_cache != Policy.none
        self._take_token(operation, TokenOwner.sleep)
        self.lifecycle.sleep(asked.mode or self.strongest_mode() or Mode.abort, asked.weights, asked.kv_cache)
        operation.changed = before != self._facts()
        return True

    def begin_wake_up(self, operation: Operation) -> bool:
        tags, before = operation.asked.tags, self._facts()
        operation.names_weights, operation.names_kv = tags != Tag.kv_cache, tags != Tag.weights
        self.lifecycle.wake_up(tags)
        operation.changed = before != self._facts()
        if self.world.token(TokenOwner.sleep).state == TokenState.free:
            self.operations.supersede(
                "wake_up", lambda other: other.kind == Kind.sleep and other.state == OperationState.draining
            )
        return True

    def begin_reset_prefix_cache(self, operation: Operation) -> bool:
        operation.value = operation.changed = True
        self.lifecycle.clear()
        return True

    def begin_begin_weight_update(self, operation: Operation) -> bool:
        operation.changed = True
        self._take_token(operation, TokenOwner.update)
        self.update.begin(operation, lambda: self.lifecycle.begin_update(operation.asked.mode or Mode.keep))
        return True

    def begin_update_weights(self, operation: Operation) -> bool:
        return self.begin_begin_weight_update(operation)

    def begin_load_weights(self, operation: Operation) -> bool:
        operation.changed = True
        return self.update.load(operation)

    def begin_finish_weight_update(self, operation: Operation) -> bool:
        operation.changed = True
        return self.update.finish(operation.asked.version)

    def begin_abort_weight_update(self, operation: Operation) -> bool:
        operation.changed = True
        self.abort_update("abort_weight_update")
        return True

    def abort_update(self, by: str) -> None:
        """Withdraws the update that drains, or rolls back the one that is open.

        Raises:
            RefusedTransition: there is none.
        """
        if self.world.engine.goal == Goal.update:
            self.lifecycle.withdraw_update()
        else:
            self.lifecycle.rollback()
        self.update.over(errors.TransitionConflict(str(self.world.weights.state), by, superseded_by=by))
        self.operations.supersede(by, lambda other: other.kind in UPDATES and other.state == OperationState.draining)

    def begin_weights_checksum(self, operation: Operation) -> bool:
        if self.world.memory[Tag.weights].state != MemoryState.resident or self.world.weights.state == WeightsState.undefined:
            state = f"{self.world.memory[Tag.weights].state}, {self.world.weights.state}"
            raise errors.TransitionConflict(state, "weights_checksum", (), NOTHING_LOADED)
        self.core.device.checksum(operation.key)
        return True

    def begin_shutdown(self, operation: Operation) -> bool:
        seconds = operation.asked.timeout_s or 0.0
        operation.deadline_s = None  # its own row decides what the deadline means
        operation.changed = self.world.engine.state != EngineState.stopped
        self.lifecycle.shutdown(Mode.wait if seconds > 0 else Mode.abort)
        deadline_s = operation.began_s + seconds
        self.operations.shutdown_deadline_s = min(deadline_s, self.operations.shutdown_deadline_s or deadline_s)
        return True

    def withdraw(self, operation: Operation) -> None:
        """The deadline passed before it acted: its token is released, what it froze goes on; what it aborted stays aborted."""
        draining = operation.state == OperationState.draining
        self.lifecycle.expire(operation)
        if not draining:
            return
        others = [
            other
            for other in self.operations.by_key.values()
            if other.kind == operation.kind and other.state == OperationState.draining
        ]
        if operation.kind == Kind.pause and operation.took_token:
            self.lifecycle.resume(operation.asked.owner)
            self.operations.token_released(operation.asked.owner, "deadline")
        elif operation.kind == Kind.sleep and not others:
            self.lifecycle.withdraw_sleep()
            if operation.took_token and self.world.token(TokenOwner.sleep).state != TokenState.free:
                self.lifecycle.wake_up("both")  # level 0: a pause under the name `sleep`
        elif operation.kind == Kind.reset_prefix_cache and not others:
            self.lifecycle.withdraw_clear()
        elif operation.kind in UPDATES:
            self.lifecycle.withdraw_update()
            self.update.over(None)
