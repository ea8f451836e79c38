"""The one weight update that may be open: its tensors come in chunks, each checked before its first byte is written.

    source -> device.fetch -> names and shapes checked here -> gate (`load`) -> device.load_weights -> next chunk ... -> commit

Fetching writes nothing, so that what a broken source brings leaves the old weights whole for as long as no chunk has been accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from quiesce.engine import errors
from quiesce.engine.messages import Fetched, WeightsWritten
from quiesce.engine.tensor_files import expected_tensors
from quiesce.engine.weight_source import check_pairs
from quiesce.spec.vocabulary import OperationKind, OperationState, WeightsState

if TYPE_CHECKING:
    from quiesce.engine.core import Core
    from quiesce.engine.operations import Operation, Operations

BEGIN_FIRST = "begin_weight_update first"
NAMES_SHOWN = 3


class WeightUpdate:
    """What is known of the update beside the weights' record."""

    def __init__(self, core: Core, operations: Operations) -> None:
        self.core, self.operations = core, operations
        self.weights, self.lifecycle = core.world.weights, core.lifecycle
        self.pairs: tuple[tuple[str, Any], ...] = ()
        """The chunk that is being written."""
        self.lease_s: float | None = None
        """When it is rolled back by itself, on the core's clock."""
        self._begun: Operation | None = None
        self._partial: bool | None = None
        """Whether some tensors are enough: the old ones were whole when it was opened. None: it is not open."""
        self._written: set[str] = set()
        self._version: int | str | None = None
        self._loading: Operation | None = None
        """Whose tensors are being fetched or written."""
        self._source: Iterator[tuple[str, Any]] = iter(())
        self._ticket = 0
        self._is_writing = False
        self._num_stale_writes = 0
        """Chunks of an update that is over, still to be reported by the device."""

    def begin(self, operation: Operation, fire: Callable[[], object]) -> None:
        """Closes the gate for an update.

        Raises:
            RefusedTransition: not now; nothing has changed.
        """
        fire()
        asked = operation.asked
        self._begun, self._partial, self._written, self._version = operation, None, set(), asked.version
        self.lease_s = None if asked.ttl_s is None else self.core.clock() + asked.ttl_s

    @property
    def is_its_clients(self) -> bool:
        """Whether only a client's call can end it; one whose tensors came with the call ends by itself."""
        return self._begun is not None and self._begun.kind == OperationKind.begin_weight_update

    def advance(self) -> None:
        """Notices that the update has opened; one whose tensors are there begins to load them."""
        if self._begun is None or self.weights.state != WeightsState.updating:
            return
        if self._partial is None:
            self._partial = bool(self.weights.base_intact)
            if self._begun.kind == OperationKind.update_weights:
                self._fetch_from(self._begun)

    def load(self, operation: Operation) -> bool:
        """Begins to load a client's tensors. False: those of another call are not in yet.

        Raises:
            TransitionConflict: no update is open.
        """
        if self._loading is not None:
            return False
        if not self.lifecycle.may_load():
            raise errors.TransitionConflict(str(self.weights.state), operation.kind, (), BEGIN_FIRST)
        self._fetch_from(operation)
        return True

    def _fetch_from(self, operation: Operation) -> None:
        self._loading = operation
        self._source = operation.asked.source or iter(())
        self._fetch()

    def _fetch(self) -> None:
        self._ticket += 1
        self.core.device.fetch(self._ticket, self._source)

    def fetched(self, found: Fetched) -> None:
        """A chunk is here, or the source has no more, or has failed."""
        operation = self._loading
        if operation is None or found.ticket != self._ticket:
            return  # of an update that is over
        if found.error is not None:
            self._refuse(operation, _told(found.error))
        elif found.pairs:
            self._write(operation, found.pairs)
        else:
            self._loading = None
            if operation.kind == OperationKind.load_weights:
                self.lifecycle.deliver(operation)
                return
            try:
                self.finish(None)
            except errors.EngineError as error:
                self._refuse(operation, error)

    def _write(self, operation: Operation, pairs: tuple[tuple[str, Any], ...]) -> None:
        try:
            check_pairs(pairs, self.core.info)
        except errors.InvalidRequest as error:
            self._refuse(operation, error)
            return
        self.pairs, self._is_writing = pairs, True
        self.lifecycle.load()

    def written(self, found: WeightsWritten) -> None:
        """The device has written a chunk, or failed half-way."""
        if self._num_stale_writes:
            self._num_stale_writes -= 1
            return
        operation, self._is_writing = self._loading, False
        if found.error is not None:
            self.lifecycle.load_failed()
            self.over(_told(found.error))
        elif operation is not None:
            self._written.update(name for name, _ in self.pairs)
            self.pairs = ()
            self._fetch()

    def _refuse(self, operation: Operation, error: Exception) -> None:
        """Tensors that cannot be taken. A client's update stays open; the engine's own is rolled back."""
        self._loading, self._source = None, iter(())
        operation.error = error
        self.lifecycle.give_up(operation)
        if operation.kind == OperationKind.update_weights:
            self.lifecycle.rollback()
            self.over(None)

    def finish(self, version: int | str | None) -> bool:
        """Commits. False: tensors are still being loaded.

        Raises:
            TransitionConflict: no update is open, or tensors are missing.
        """
        if self._loading is not None:
            return False
        if self.weights.state == WeightsState.updating and not self._partial:
            missing = [name for name in expected_tensors(self.core.info) if name not in self._written]
            if missing:
                named = ", ".join(missing[:NAMES_SHOWN]) + (", ..." if len(missing) > NAMES_SHOWN else "")
                how_to = f"load the remaining tensors ({len(missing)}: {named}), or abort_weight_update"
                raise errors.TransitionConflict(str(self.weights.state), "finish_weight_update", (), how_to)
        self._version = self._version if version is None else version
        keeps = self._begun is not None and self._begun.asked.keep_kv
        (self.lifecycle.commit_keep if keeps else self.lifecycle.commit)()
        self.lease_s = None
        return True

    def new_version(self) -> None:
        """The weights are another version: as asked for, else the last one and one more."""
        self.core.version_number += 1
        last = self.weights.version
        following = last + 1 if isinstance(last, int) else self.core.version_number
        self.weights.version = following if self._version is None else self._version
        self.over(None)

    def superseded(self, by: str) -> None:
        """Another call has ended the update."""
        kind = OperationKind.load_weights if self._loading is None else self._loading.kind
        self.over(errors.TransitionConflict(str(self.weights.state), kind, superseded_by=by))

    def over(self, error: Exception | None) -> None:
        """The update is not open any more. `error`: what those whose tensors were on their way are told."""
        operation, self._loading, self._begun, self._partial = self._loading, None, None, None
        self.lease_s, self.pairs, self._source = None, (), iter(())
        self._num_stale_writes += self._is_writing
        self._is_writing = False
        if operation is not None and operation.state == OperationState.acting:
            operation.error = error
            self.lifecycle.give_up(operation)


def _told(error: Exception) -> Exception:
    """What a caller is told of tensors that could not be read or written."""
    return (
        error if isinstance(error, errors.EngineError) else errors.InvalidRequest("source", f"{type(error).__name__}: {error}")
    )
