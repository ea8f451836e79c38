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
        loading = self.world.engine.state == EngineState.starting  # nothing is cached yet
        if asked.clear_cache and not loading and self.lifecycle.may_pause(asked.owner, mode):
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
        if self._moves(operation, Kind.wake_up):
            return False
        self._take_token(operation, TokenOwner.sleep)
        self.lifecycle.sleep(asked.mode or self.strongest_mode() or Mode.abort, asked.weights, asked.kv_cache)
        operation.changed = before != self._facts()
        return True

    def _moves(self, operation: Operation, opposite: Kind) -> bool:
        """Whether an operation of the opposite kind moves what this one names, or all there is. It ends first, or it never would."""
        if self.world.engine.state not in (EngineState.partially_awake, EngineState.sleeping):
            return False  # nothing moves yet, or never again: the tables say what becomes of the call
        names_none = not (operation.names_weights or operation.names_kv)
        begun = (OperationState.draining, OperationState.acting)
        return any(
            names_none or (operation.names_weights and other.names_weights) or (operation.names_kv and other.names_kv)
            for other in self.operations.by_key.values()
            if other.kind == opposite and other.state in begun
        )

    def begin_wake_up(self, operation: Operation) -> bool:
        tags, before = operation.asked.tags, self._facts()
        operation.names_weights, operation.names_kv = tags != Tag.kv_cache, tags != Tag.weights
        if self._moves(operation, Kind.sleep):
            return False
        self.lifecycle.wake_up(tags)
        operation.changed = before != self._facts()
        if self.world.token(TokenOwner.sleep).state == TokenState.free:
            self.operations.supersede(
                "wake_up", lambda other: other.kind == Kind.sleep and other.state == OperationState.draining
            )
        return True

    def begin_reset_prefix_cache(self, operation: Operation) -> bool:
        self._require_alive()
        operation.value = operation.changed = operation.asked.clear_cache or not self._holds_blocks()
        if operation.changed:
            self.lifecycle.clear()
        else:
            self.lifecycle.give_up(operation)  # False, and nothing has happened
        return True

    def _holds_blocks(self) -> bool:
        """Whether somebody has blocks, or the KV is not where it could be forgotten."""
        blocks = self.core.pool.counts()
        return bool(blocks.held or blocks.fenced) or self.world.memory[Tag.kv_cache].state != MemoryState.resident

    def begin_begin_weight_update(self, operation: Operation) -> bool:
        operation.changed = True
        self._take_token(operation, TokenOwner.update)
        self.update.begin(operation, lambda: self.lifecycle.begin_update(operation.asked.mode or Mode.keep))
        return True

    def begin_update_weights(self, operation: Operation) -> bool:
        return self.begin_begin_weight_update(operation)

    def _require_alive(self) -> None:
        """For calls whose own tables do not know of the engine's end.

        Raises:
            Unavailable: stopping.
            EngineDead: stopped or failed.
        """
        state = self.world.engine.state
        if state == EngineState.failed:
            raise errors.EngineDead(str(state), "shutdown, then start a new engine")
        if state == EngineState.stopped:
            raise errors.EngineDead(str(state), "start a new engine")
        if state == EngineState.stopping:
            raise errors.Unavailable(str(state), "it is shutting down: start a new engine")

    def begin_load_weights(self, operation: Operation) -> bool:
        self._require_alive()
        operation.changed = True
        return self.update.load(operation)

    def begin_finish_weight_update(self, operation: Operation) -> bool:
        self._require_alive()
        operation.changed = True
        return self.update.finish(operation.asked.version)

    def begin_abort_weight_update(self, operation: Operation) -> bool:
        self._require_alive()
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
        self.update.superseded(by)
        self.operations.supersede(by, lambda other: other.kind in UPDATES and other.state == OperationState.draining)

    def begin_weights_checksum(self, operation: Operation) -> bool:
        self._require_alive()
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
        self.operations.ttl_s.clear()
        self.update.superseded("shutdown")
        deadline_s = operation.began_s + seconds
        self.operations.shutdown_deadline_s = min(deadline_s, self.operations.shutdown_deadline_s or deadline_s)
        return True

    def withdraw(self, operation: Operation) -> None:
        """The deadline passed before it acted: its token is released, what it froze goes on; what it aborted stays aborted."""
        draining = operation.state == OperationState.draining
        if (
            draining
            and operation.kind == Kind.sleep
            and self.world.engine.state in (EngineState.partially_awake, EngineState.sleeping)
        ):
            return  # lost race: memory moves already, and ends with its copies
        self.lifecycle.expire(operation)
        if not draining:
            return
        if operation.kind == Kind.pause:
            self._withdraw_pause(operation)
        elif operation.kind == Kind.sleep:
            self._withdraw_sleep(operation)
        elif operation.kind in UPDATES:
            self.lifecycle.withdraw_update()
            self.update.over(None)
        if operation.clears and not any(other.clears for other in self._draining()):
            self.lifecycle.withdraw_clear()

    def _draining(self) -> list[Operation]:
        return [other for other in self.operations.by_key.values() if other.state == OperationState.draining]

    def _withdraw_pause(self, operation: Operation) -> None:
        """The token is the next one's that waits for the same pause, if there is one."""
        owner = operation.asked.owner
        heir = next((other for other in self._draining() if other.kind == Kind.pause and other.asked.owner == owner), None)
        if heir is not None:
            heir.took_token |= operation.took_token
            heir.changed |= operation.changed  # what was done is done for its sake now
        elif operation.took_token:
            self.lifecycle.resume(owner)
            self.operations.token_released(owner, "deadline")

    def _withdraw_sleep(self, operation: Operation) -> None:
        """Token and choices go in one move (R6). What others asked of a sleep is asked again in the same instant."""
        others = [other for other in self._draining() if other.kind == Kind.sleep]
        mode = self.strongest_mode() or Mode.abort
        if self.world.engine.goal == Goal.sleep:
            self.lifecycle.withdraw_sleep()
        elif operation.took_token:
            self.lifecycle.wake_up("both")  # level 0: a pause under the name `sleep`
        for other in others:
            other.took_token |= operation.took_token
            before = self._facts()
            self.lifecycle.sleep(other.asked.mode or mode, other.asked.weights, other.asked.kv_cache)
            other.changed |= before != self._facts()
