"""The control calls of `AsyncEngine`: validate, then ask the core. What each does is in `spec/operation.py` and `engine/verbs.py`.

Cancelling a call detaches the caller; the operation runs to its declared end. Every call takes `operation_id`: a retry with the same
one is given the answer of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from quiesce.engine.config import EngineConfig, is_seconds
from quiesce.engine.errors import InvalidRequest, shown
from quiesce.engine.inbox import Control
from quiesce.engine.model import Model
from quiesce.engine.outputs import Status, Transition
from quiesce.engine.stream import FrontEnd
from quiesce.engine.weight_source import check_pairs, open_source
from quiesce.spec.vocabulary import Mode, OperationKind, Policy, Tag
from quiesce.statemachine.records import RESERVED_OWNERS

LEVELS = {0: {}, 1: {Tag.weights: Policy.offload, Tag.kv_cache: Policy.discard}, 2: dict.fromkeys(Tag, Policy.discard)}
"""What a level of sleep means for each tag. Level 0 is a pause under the name `sleep`."""
GRAPHS = ("cuda_graph", "cuda_graphs")
"""Tags that callers of other engines know; our graphs survive sleep, so that nothing is to be done."""
NAMES = tuple(tag.value for tag in Tag)


class ControlCalls:
    """Mixed into `AsyncEngine`."""

    config: EngineConfig
    model: Model
    _front: FrontEnd

    def _start(self) -> None:
        raise NotImplementedError

    def status(self) -> Status:
        raise NotImplementedError

    async def _ask(self, kind: OperationKind, operation_id: str | None, timeout: float | None, **asked: Any) -> Any:
        if operation_id is not None and (not isinstance(operation_id, str) or not operation_id):
            raise InvalidRequest("operation_id", f"must be a string that is not empty, not {shown(operation_id)}")
        seconds = self.config.control_timeout_s if timeout is None else timeout
        if not is_seconds(seconds):
            raise InvalidRequest("timeout", f"must be seconds, 0 or more, not {shown(timeout)}")
        self._start()
        await self._front.connection.reached()
        return await self._front.control(lambda call: Control(call, kind, operation_id, float(seconds), **asked))

    # ---- pause ----------------------------------------------------------------------------------------------------------------

    async def pause(
        self,
        mode: str = "abort",
        owner: str = "user",
        clear_cache: bool = False,
        timeout: float | None = None,
        ttl: float | None = None,
        operation_id: str | None = None,
    ) -> Transition:
        """Closes the gate; returns when nothing is in flight and every answer that is due has been handed to its stream.

        Args:
            mode: `abort` ends what is live with its tokens so far, `wait` lets what has begun run to its end, `keep` freezes it.
            owner: whose hold this is; the engine runs again when nobody holds it.
            clear_cache: forget cached prefixes, too; frozen requests are computed anew when they go on.
            timeout: seconds until the pause is withdrawn if it has not drained by then; None: `EngineConfig.control_timeout_s`.
            ttl: seconds after which the hold ends by itself.

        Raises:
            InvalidRequest: a value cannot be; nothing has happened.
            TransitionConflict: `wait` over frozen requests, or superseded by a `resume` or a `shutdown`.
            DeadlineExceeded: withdrawn.
            Unavailable, EngineDead: stopping, stopped or failed.
        """
        _check_bool("clear_cache", clear_cache)
        if ttl is not None and (not is_seconds(ttl) or ttl == 0):
            raise InvalidRequest("ttl", f"must be seconds above 0, not {shown(ttl)}")
        held = {"owner": _owner(owner), "mode": _mode(mode), "clear_cache": clear_cache, "ttl_s": ttl}
        return cast("Transition", await self._ask(OperationKind.pause, operation_id, timeout, **held))

    async def resume(self, owner: str = "user", operation_id: str | None = None) -> Transition:
        """Ends this owner's hold, and no other. A hold that is not there is `changed=False`.

        Raises:
            InvalidRequest: the owner's name is reserved or empty.
            Unavailable, EngineDead: stopping, stopped or failed.
        """
        return cast("Transition", await self._ask(OperationKind.resume, operation_id, None, owner=_owner(owner)))

    async def pause_generation(
        self, *, mode: str = "abort", wait_for_inflight_requests: bool = False, clear_cache: bool = True
    ) -> Transition:
        """`pause` under vLLM's name and defaults."""
        return await self.pause(mode="wait" if wait_for_inflight_requests else mode, clear_cache=clear_cache)

    async def resume_generation(self) -> Transition:
        """`resume` under vLLM's name."""
        return await self.resume()

    async def is_paused(self) -> bool:
        """Whether anybody holds the engine."""
        return bool(self.status().pause_owners)

    async def reset_prefix_cache(self, reset_running_requests: bool = False, operation_id: str | None = None) -> bool:
        """Forgets cached prefixes. False, and nothing happens, while blocks are held.

        Args:
            reset_running_requests: retract whatever holds blocks instead; it is computed anew.

        Raises:
            TransitionConflict: memory is away, or another operation drains.
        """
        _check_bool("reset_running_requests", reset_running_requests)
        asked = self._ask(OperationKind.reset_prefix_cache, operation_id, None, clear_cache=reset_running_requests)
        return bool(await asked)

    # ---- sleep ----------------------------------------------------------------------------------------------------------------

    async def sleep(
        self,
        level: int | None = None,
        tags: Iterable[str] | Mapping[str, str] | None = None,
        mode: str | None = None,
        timeout: float | None = None,
        operation_id: str | None = None,
    ) -> Transition:
        """Pauses, then gives memory back; returns when every tag it selected is away. `freed_bytes` is measured.

        Args:
            level: 0 pauses only; 1 (the default) offloads the weights and discards the KV; 2 discards both.
            tags: instead of a level: names (under level 1's policies), or `{"weights": "offload", "kv_cache": "discard"}`.
            mode: what becomes of live requests, as in `pause`; None: as the strongest hold there is, else `abort`.
            timeout: seconds until it is withdrawn if it has not drained by then; once memory leaves it ends with its copies.

        Raises:
            InvalidRequest: unknown or no tags, an unknown level, policy or mode, or level and tags together.
            TransitionConflict: an update is open, a tag is away under another policy, or superseded.
            DeadlineExceeded, Unavailable, EngineDead: as for `pause`; Unavailable, too, where memory could not be given back.
        """
        if tags is not None and level is not None:
            raise InvalidRequest("level", "give a level or tags, not both")
        policies = _policies(tags) if tags is not None else _level(level)
        if policies is None:
            return self._unchanged()
        asked: dict[str, Any] = {tag.value: policies.get(tag, Policy.none) for tag in Tag}
        asked["mode"] = None if mode is None else _mode(mode)
        return cast("Transition", await self._ask(OperationKind.sleep, operation_id, timeout, **asked))

    async def wake_up(
        self, tags: Iterable[str] | None = None, timeout: float | None = None, operation_id: str | None = None
    ) -> Transition:
        """Takes memory again; returns when every tag it named is back (discarded weights: mapped, and waiting for an update).

        The gate opens when every tag is back, the weights are whole and nobody holds the engine.

        Args:
            tags: None: all.

        Raises:
            InvalidRequest: unknown or no tags.
            TransitionConflict: an update is open.
            Unavailable: memory could not be taken; as before, and it may be tried again.
            DeadlineExceeded, EngineDead: as for `pause`.
        """
        named = tuple(Tag) if tags is None else _tags(tags)
        if not named:
            return self._unchanged()
        which = "both" if len(named) == len(Tag) else str(named[0])
        return cast("Transition", await self._ask(OperationKind.wake_up, operation_id, timeout, tags=which))

    async def is_sleeping(self) -> bool:
        """Whether a sleep holds the engine."""
        return "sleep" in self.status().pause_owners

    def _unchanged(self) -> Transition:
        status = self.status()
        return Transition(status.engine, False, status.epoch)

    # ---- weights --------------------------------------------------------------------------------------------------------------

    async def update_weights(
        self,
        source: object,
        version: int | str | None = None,
        mode: str = "keep",
        kv: str = "recompute",
        timeout: float | None = None,
        operation_id: str | None = None,
    ) -> Transition:
        """Closes the gate, loads new weights and opens it again, as one transaction.

        Args:
            source: a folder, a safetensors file or a mapping, which must hold every tensor; or an iterable of (name, tensor), pulled
                on the device's thread, of which some tensors are enough over whole weights.
            version: the new version's name; None: the last one and one more.
            mode: what becomes of live requests, as in `pause`.
            kv: `recompute` computes frozen requests anew under the new weights; `keep` does not, and their spans say so.

        Raises:
            InvalidRequest: a tensor is unknown, missing, misshapen or of a kind that cannot be converted.
            TransitionConflict: memory is away, another update is open, or superseded.
            DeadlineExceeded, Unavailable, EngineDead: as for `pause`.
        """
        asked = {"mode": _mode(mode), "keep_kv": _keeps(kv), "version": _version(version)}
        pairs, _ = open_source(source, self.model.info)
        return cast("Transition", await self._ask(OperationKind.update_weights, operation_id, timeout, source=pairs, **asked))

    async def begin_weight_update(
        self,
        mode: str = "keep",
        kv: str = "recompute",
        timeout: float | None = None,
        lease: float | None = None,
        operation_id: str | None = None,
    ) -> Transition:
        """Closes the gate and opens an update, to be ended by `finish_weight_update` or `abort_weight_update`.

        Args:
            lease: seconds after which it is rolled back by itself.
        """
        if lease is not None and (not is_seconds(lease) or lease == 0):
            raise InvalidRequest("lease", f"must be seconds above 0, not {shown(lease)}")
        asked = {"mode": _mode(mode), "keep_kv": _keeps(kv), "ttl_s": lease}
        return cast("Transition", await self._ask(OperationKind.begin_weight_update, operation_id, timeout, **asked))

    async def load_weights(
        self, weights: Mapping[str, Any] | Iterable[tuple[str, Any]], operation_id: str | None = None
    ) -> Transition:
        """Writes tensors into the open update. Those of a mapping are checked before any is written, others as they come.

        Raises:
            InvalidRequest: a tensor does not fit; the update stays open.
            TransitionConflict: no update is open.
        """
        if isinstance(weights, Mapping):
            check_pairs(weights.items(), self.model.info)
        pairs, _ = open_source(weights.items() if isinstance(weights, Mapping) else weights, self.model.info)
        return cast("Transition", await self._ask(OperationKind.load_weights, operation_id, None, source=pairs))

    async def finish_weight_update(self, version: int | str | None = None, operation_id: str | None = None) -> Transition:
        """Makes the loaded tensors the new version.

        Raises:
            TransitionConflict: no update is open, or tensors are missing (where the old weights were not whole, all are needed).
        """
        asked = self._ask(OperationKind.finish_weight_update, operation_id, None, version=_version(version))
        return cast("Transition", await asked)

    async def abort_weight_update(self, operation_id: str | None = None) -> Transition:
        """Ends the open update: the old weights serve on if not one byte was written, else an update must heal them."""
        return cast("Transition", await self._ask(OperationKind.abort_weight_update, operation_id, None))

    async def weights_checksum(self) -> str:
        """A digest of what is loaded: equal for equal weights, whatever brought them."""
        return str(await self._ask(OperationKind.weights_checksum, None, None))


def _check_bool(field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidRequest(field, f"must be true or false, not {shown(value)}")


def _mode(mode: object) -> Mode:
    if not isinstance(mode, str) or mode not in tuple(Mode):
        raise InvalidRequest("mode", f"must be one of {', '.join(sorted(Mode))}, not {shown(mode)}")
    return Mode(mode)


def _owner(owner: object) -> str:
    if not isinstance(owner, str) or not owner:
        raise InvalidRequest("owner", f"must be a name, not {shown(owner)}")
    if owner in RESERVED_OWNERS:
        raise InvalidRequest("owner", f"{owner!r} is reserved for the engine itself")
    return str(owner)


def _keeps(kv: object) -> bool:
    if kv not in ("recompute", "keep"):
        raise InvalidRequest("kv", f"must be 'recompute' or 'keep', not {shown(kv)}")
    return kv == "keep"


def _version(version: object) -> int | str | None:
    if version is None or type(version) is int or (isinstance(version, str) and version):
        return version
    raise InvalidRequest("version", f"must be an integer or a name, not {shown(version)}")


def _level(level: object) -> Mapping[Tag, Policy]:
    if level is None:
        return LEVELS[1]
    if type(level) is not int or level not in LEVELS:
        raise InvalidRequest("level", f"must be 0, 1 or 2, not {shown(level)}")
    return LEVELS[level]


def _tags(tags: object) -> tuple[Tag, ...]:
    """The tags named, each once; graphs are none of ours."""
    named: Sequence[object] = [tags] if isinstance(tags, str) else list(tags) if isinstance(tags, Iterable) else []
    if not named:
        raise InvalidRequest("tags", f"must name some of {', '.join(NAMES)}, not {shown(tags)}")
    for name in named:
        if not isinstance(name, str) or name not in (*NAMES, *GRAPHS):
            raise InvalidRequest("tags", f"{shown(name)} is none of {', '.join(NAMES)}")
    return tuple(tag for tag in Tag if tag in named)


def _policies(tags: object) -> Mapping[Tag, Policy] | None:
    """What a sleep does with each tag; None where nothing is to be done."""
    named = _tags(tags)
    if not isinstance(tags, Mapping):
        return {tag: LEVELS[1][tag] for tag in named} or None
    for name, policy in tags.items():
        if not isinstance(policy, str) or policy not in (Policy.offload, Policy.discard):
            raise InvalidRequest("tags", f"{name} must be 'offload' or 'discard', not {shown(policy)}")
    return {tag: Policy(tags[tag]) for tag in named} or None
