"""What the machines are about at run time: slotted records, never registered with a machine, and the world that holds them.

This file is the map between the declaration and the running engine: every variable of `spec/` is an attribute here, under the same
name, but for the members of a step, which the step itself keeps (`member[0]` of a request is `request.key in world.older.members`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from quiesce.spec.vocabulary import (
    EngineState,
    Goal,
    LinkState,
    MemoryState,
    OperationKind,
    OperationState,
    Place,
    Policy,
    Presence,
    RequestState,
    SessionState,
    StepState,
    StreamState,
    Tag,
    TokenOwner,
    TokenState,
    WeightsState,
)

RESERVED_OWNERS = tuple(owner.value for owner in TokenOwner if owner is not TokenOwner.caller)


class Record:
    """One instance of a machine."""

    __slots__ = ("key", "world")
    machine: ClassVar[str]
    state: Any

    def __init__(self, world: World, key: int) -> None:
        self.world = world
        self.key = key

    @property
    def name(self) -> str:
        """How traces and messages call this record."""
        return str(self.key)

    def moved(self, source: str, target: str) -> None:
        """Called by the gate, and by nothing else, after the state has changed: keeps the world's indexes true."""

    @classmethod
    def follows(cls, target: str) -> bool:
        """Whether `moved` has something to do for a move to this state."""
        return cls.moved is not Record.moved


class EngineRecord(Record):
    __slots__ = ("goal", "granted", "state")
    machine = "engine"

    def __init__(self, world: World) -> None:
        super().__init__(world, 0)
        self.state = EngineState.starting
        self.goal = Goal.none
        self.granted = False

    @property
    def name(self) -> str:
        return "engine"


class TokenRecord(Record):
    __slots__ = ("owner", "state")
    machine = "pause_token"

    def __init__(self, world: World, owner: str) -> None:
        super().__init__(world, 0)
        self.owner = owner
        self.state = TokenState.free

    @property
    def name(self) -> str:
        return self.owner

    def moved(self, source: str, target: str) -> None:
        """Callers choose their names freely, so a name that holds nothing is not kept: only the reserved ones are."""
        if target != TokenState.free:
            self.world.pause_token[self.owner] = self
        elif self.owner not in RESERVED_OWNERS:
            self.world.pause_token.pop(self.owner, None)


class MemoryRecord(Record):
    __slots__ = ("policy", "state", "tag")
    machine = "memory"

    def __init__(self, world: World, tag: Tag) -> None:
        super().__init__(world, list(Tag).index(tag))
        self.tag = tag
        self.policy = Policy.none
        self.state = MemoryState.resident

    @property
    def name(self) -> str:
        return self.tag.value


class WeightsRecord(Record):
    __slots__ = ("base_intact", "state", "version")
    machine = "weights"

    def __init__(self, world: World) -> None:
        super().__init__(world, 0)
        self.state = WeightsState.stable
        self.base_intact = False
        self.version: int | str = 0

    @property
    def name(self) -> str:
        return "weights"


class RequestRecord(Record):
    """The lifecycle part of a request; the engine's `Request` adds what the scheduler needs."""

    __slots__ = ("abort_mark", "begun", "eos_mark", "fault_mark", "request_id", "stale", "state")
    machine = "request"

    def __init__(self, world: World, key: int, request_id: str) -> None:
        super().__init__(world, key)
        self.request_id = request_id
        self.state = RequestState.absent
        self.begun = self.abort_mark = self.eos_mark = self.fault_mark = self.stale = False

    @property
    def name(self) -> str:
        return self.request_id

    @property
    def oldest(self) -> bool:
        """Whether no running request arrived before this one (keys grow with arrival)."""
        return self.key == min(self.world.by_state[RequestState.running], default=-1)

    def moved(self, source: str, target: str) -> None:
        self.world.population += 1
        by_state = self.world.by_state
        by_state[source].pop(self.key, None)
        if target == RequestState.ended:
            del self.world.requests[self.key]
            return
        by_state[target][self.key] = self
        if source == RequestState.absent:
            self.world.requests[self.key] = self


class StepRecord(Record):
    """`members` are the requests the step names, by key."""

    __slots__ = ("members", "state")
    machine = "step"

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.state = StepState.empty
        self.members: dict[int, RequestRecord] = {}

    @property
    def place(self) -> Place:
        return Place.newer if self.world.newer is self else Place.older

    def add_members(self, requests: Iterable[RequestRecord]) -> None:
        named = self.world.members_of(requests)
        self.members = {**self.members, **named} if self.members else named

    def remove_members(self, requests: Iterable[RequestRecord]) -> None:
        """The dictionary is made anew: steps of the same batch may share it."""
        gone = {request.key for request in requests}
        self.members = {key: member for key, member in self.members.items() if key not in gone}

    def moved(self, source: str, target: str) -> None:
        if self.follows(target):
            self.world.vacate(self)

    @classmethod
    def follows(cls, target: str) -> bool:
        return target in (StepState.retired, StepState.dropped)


class OperationRecord(Record):
    """A control call; the engine's `Operation` adds what was asked and who waits."""

    __slots__ = ("caller", "delivered", "kind", "names_kv", "names_weights", "state")
    machine = "operation"

    def __init__(self, world: World, key: int, kind: OperationKind) -> None:
        super().__init__(world, key)
        self.kind = kind
        self.state = OperationState.queued
        self.names_weights = self.names_kv = self.delivered = False
        self.caller = Presence.present
        world.operations[key] = self

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.key}"

    def moved(self, source: str, target: str) -> None:
        if target in (OperationState.done, OperationState.failed, OperationState.superseded):
            self.world.operations.pop(self.key, None)


class StreamRecord(Record):
    __slots__ = ("cancel", "client", "request_id", "state")
    machine = "stream"

    def __init__(self, world: World, key: int, request_id: str) -> None:
        super().__init__(world, key)
        self.request_id = request_id
        self.state = StreamState.closed
        self.cancel = False
        self.client = Presence.present

    @property
    def name(self) -> str:
        return self.request_id

    def moved(self, source: str, target: str) -> None:
        if target == StreamState.closed:
            self.world.streams.pop(self.key, None)
        else:
            self.world.streams[self.key] = self


class SessionRecord(Record):
    __slots__ = ("state", "turn_request_ended", "turn_stream_closed")
    machine = "session"

    def __init__(self, world: World, key: int) -> None:
        super().__init__(world, key)
        self.state = SessionState.absent
        self.turn_stream_closed = self.turn_request_ended = True

    @property
    def name(self) -> str:
        return f"session-{self.key}"

    def moved(self, source: str, target: str) -> None:
        if target == SessionState.absent:
            self.world.sessions.pop(self.name, None)
        else:
            self.world.sessions[self.name] = self


class LinkRecord(Record):
    __slots__ = ("budget", "control", "core", "state")
    machine = "link"

    def __init__(self, world: World) -> None:
        super().__init__(world, 0)
        self.state = LinkState.connecting
        self.core = "alive"
        self.control = "idle"
        self.budget = "none"

    @property
    def name(self) -> str:
        return "link"


class World:
    """All records of one core (or of one front end: streams and link). Guards read it; only the gate changes what is in it."""

    def __init__(self) -> None:
        self.engine = EngineRecord(self)
        self.weights = WeightsRecord(self)
        self.memory = {tag: MemoryRecord(self, tag) for tag in Tag}
        self.pause_token = {
            owner.value: TokenRecord(self, owner.value) for owner in TokenOwner if owner is not TokenOwner.caller
        }
        self.requests: dict[int, RequestRecord] = {}
        self.by_state: dict[str, dict[int, RequestRecord]] = {state: {} for state in RequestState}
        self.population = 0
        """Grows with every move and every mark of a request: what was found true of a set of requests is true until then."""
        self._named: Iterable[RequestRecord] = ()
        self._members: dict[int, RequestRecord] = {}
        self._runnable_at = -1
        self.empty_step = StepRecord(self, -1)
        self.older = self.empty_step
        self.newer = self.empty_step
        self.operations: dict[int, OperationRecord] = {}
        self.streams: dict[int, StreamRecord] = {}
        self.sessions: dict[str, SessionRecord] = {}
        self.link = LinkRecord(self)
        self.free = 0
        """How many requests like the one about to start there are blocks for; set right before `start` is fired."""

    def members_of(self, requests: Iterable[RequestRecord]) -> dict[int, RequestRecord]:
        """These requests by key, not to be changed. A batch that stays the same names the same tuple in every step."""
        if requests is not self._named:
            members = {request.key: request for request in requests}
            if not isinstance(requests, tuple):
                return members
            self._named, self._members, self._runnable_at = requests, members, -1
        return self._members

    def all_runnable(
        self,
        requests: Iterable[RequestRecord] | dict[int, RequestRecord],
        each_runnable: Callable[[Iterable[RequestRecord]], bool],
    ) -> bool:
        """Whether each of these may be named by a step, as `each_runnable` finds. Asked of the same batch twice a step, hence remembered."""
        known = requests is self._members or requests is self._named
        if known and self._runnable_at == self.population:
            return True
        members = requests if isinstance(requests, dict) else self.members_of(requests)
        found = each_runnable(members.values())
        if found and members is self._members:
            self._runnable_at = self.population
        return found

    def token(self, owner: str) -> TokenRecord:
        """The token of this owner; a name that holds nothing has a free one, kept only once it is held."""
        return self.pause_token.get(owner) or TokenRecord(self, owner)

    def new_step(self, number: int) -> StepRecord:
        """A step in the next free slot, still empty.

        Raises:
            RuntimeError: both slots are taken.
        """
        step = StepRecord(self, number)
        if self.older is self.empty_step:
            self.older = step
        elif self.newer is self.empty_step:
            self.newer = step
        else:
            raise RuntimeError("both step slots are taken")
        return step

    def vacate(self, step: StepRecord) -> None:
        """The slot of this step is free; the newer step becomes the older."""
        if self.older is step:
            self.older = self.newer
            self.newer = self.empty_step
        elif self.newer is step:
            self.newer = self.empty_step
