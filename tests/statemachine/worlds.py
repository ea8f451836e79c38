"""Small worlds for tests: any record in any state, worlds drawn from a seed, and a picture of a world to compare with a later one."""

from __future__ import annotations

import random
from typing import Any

from quiesce.spec import CATALOG, MACHINES
from quiesce.spec.language import BIT, Machine
from quiesce.spec.vocabulary import (
    EngineState,
    Goal,
    LinkState,
    MemoryState,
    Mode,
    OperationKind,
    OperationState,
    Policy,
    Presence,
    RequestState,
    SessionState,
    StepState,
    StreamState,
    TokenState,
    WeightsState,
)
from quiesce.statemachine.machine import KEPT
from quiesce.statemachine.records import (
    OperationRecord,
    Record,
    RequestRecord,
    SessionRecord,
    StepRecord,
    StreamRecord,
    TokenRecord,
    World,
)

TABLES: tuple[Machine, ...] = tuple(table for table in MACHINES if table.name in KEPT)
MARKS = ("begun", "abort_mark", "eos_mark", "fault_mark", "stale")
OWN_STATES = {
    "engine": EngineState,
    "memory": MemoryState,
    "pause_token": TokenState,
    "weights": WeightsState,
    "link": LinkState,
}


def add_request(world: World, key: int, state: str = "running", **marks: bool) -> RequestRecord:
    """A request in this state, indexed as the gate would have indexed it."""
    request = RequestRecord(world, key, f"r{key}")
    put(request, state)
    for mark, value in marks.items():
        setattr(request, mark, value)
    return request


def add_step(world: World, number: int, state: str = "launched", members: tuple[RequestRecord, ...] = ()) -> StepRecord:
    """A step in the next free slot."""
    step = world.new_step(number)
    step.state = StepState(state)
    step.add_members(members)
    return step


def put(record: Record, state: str) -> None:
    """Sets a state without the gate, and keeps the indexes of the world true."""
    record.state = type(record.state)(state)
    world = record.world
    if isinstance(record, RequestRecord):
        for indexed in world.by_state.values():
            indexed.pop(record.key, None)
        world.requests.pop(record.key, None)
        if state not in (RequestState.absent, RequestState.ended):
            world.requests[record.key] = record
            world.by_state[record.state][record.key] = record
    if isinstance(record, TokenRecord):
        record.moved("", state)
    if isinstance(record, SessionRecord):
        record.moved("", state)
    if isinstance(record, StreamRecord):
        world.streams.pop(record.key, None)
        if state != StreamState.closed:
            world.streams[record.key] = record


def open_world(free: int = 8) -> World:
    """A world that serves: engine running, nothing held, everything resident, the link up."""
    world = World()
    put(world.engine, "running")
    put(world.link, "up")
    world.free = free
    return world


def example(machine: str, state: str) -> Record:
    """A record of this machine in this state, in a world that serves, with a second request beside it."""
    world = open_world()
    other = add_request(world, 1)
    record = _record(world, machine, other)
    put(record, state)
    return record


def _record(world: World, machine: str, member: RequestRecord) -> Record:
    match machine:
        case "request":
            return RequestRecord(world, 2, "r2")
        case "step":
            return add_step(world, 5, members=(member,))
        case "stream":
            return StreamRecord(world, 2, "r2")
        case "operation":
            return OperationRecord(world, 2, OperationKind.pause)
        case "session":
            return SessionRecord(world, 2)
        case "memory":
            return world.memory[next(iter(world.memory))]
        case "pause_token":
            return world.token("caller")
        case _:
            record: Record = getattr(world, machine)
            return record


def data(machine: str, event: str, world: World, rng: random.Random | None = None) -> dict[str, Any]:
    """What the event carries: something plausible, or something drawn."""
    words: dict[str, list[Any]] = {
        "owner": ["caller", "sleep", "update"],
        "mode": list(Mode),
        "weights": list(Policy),
        "kv_cache": list(Policy),
        "policy": list(Policy),
        "tags": ["weights", "kv_cache", "both", "none"],
    }
    drawn: dict[str, Any] = {}
    for name in CATALOG.machines[machine].event(event).takes:
        if name == "requests":
            requests = list(world.requests.values())
            drawn[name] = rng.sample(requests, rng.randint(0, len(requests))) if rng else requests
        else:
            drawn[name] = rng.choice(words[name]) if rng else words[name][-1 if name != "tags" else 2]
    return drawn


def random_world(seed: int) -> World:
    """Any world of the right shape, reachable or not; what serves is drawn more often than not, so that guards hold now and then."""
    rng = random.Random(f"world {seed}")
    world = World()
    for name, states in OWN_STATES.items():
        records: list[Record] = (
            list(getattr(world, name).values()) if name in ("memory", "pause_token") else [getattr(world, name)]
        )
        likely = {
            "engine": rng.choice(["running", "running", "running", "draining", "partially_awake"]),
            "memory": "resident",
            "pause_token": "free",
            "weights": "stable",
            "link": "up",
        }
        calm = rng.random() < 0.6
        for record in records:
            record.state = states(likely[name]) if calm and rng.random() < 0.9 else rng.choice(list(states))
    world.engine.goal = rng.choice(list(Goal))
    world.engine.granted = rng.random() < 0.4
    world.weights.base_intact = rng.random() < 0.5
    world.link.core, world.link.control = rng.choice(["alive", "dead"]), rng.choice(["idle", "pending"])
    world.link.budget = rng.choice(["some", "none"])
    world.free = rng.choice([0, 1, 5])
    for memory in world.memory.values():
        memory.policy = rng.choice([Policy.none, *Policy])
    busy = rng.random()
    requests = [_random_request(world, key, rng, busy) for key in range(rng.randint(0, 4))]
    for number in range(rng.randint(0, 2)):
        step = add_step(world, 10 + number, rng.choice(["planned", "launched", "landed"]))
        step.add_members(rng.sample(requests, rng.randint(0, len(requests))))
    for key in range(rng.randint(0, 2)):
        stream = StreamRecord(world, key, f"r{key}")
        put(stream, rng.choice(list(StreamState)))
        stream.cancel, stream.client = rng.random() < 0.5, rng.choice(list(Presence))
    _random_operation(world, 1, rng)
    session = SessionRecord(world, 1)
    session.turn_stream_closed, session.turn_request_ended = rng.random() < 0.5, rng.random() < 0.5
    put(session, rng.choice(list(SessionState)))
    return world


def _random_operation(world: World, key: int, rng: random.Random) -> OperationRecord:
    operation = OperationRecord(world, key, rng.choice(list(OperationKind)))
    operation.state = rng.choice(list(OperationState))
    operation.names_weights, operation.names_kv, operation.delivered = (rng.random() < 0.5 for _ in range(3))
    operation.caller = rng.choice(list(Presence))
    return operation


def _random_request(world: World, key: int, rng: random.Random, busy: float) -> RequestRecord:
    states = [state for state in RequestState if state not in (RequestState.absent, RequestState.ended)]
    marked = 0.5 if busy < 0.5 else 0.05
    state = RequestState.running if rng.random() < busy / 2 else rng.choice(states)
    return add_request(world, key, state, **{mark: rng.random() < marked for mark in MARKS})


def random_record(world: World, machine: str, seed: int) -> Record:
    """A record of this machine with drawn variables, in a drawn state unless the world has drawn one already."""
    rng = random.Random(f"world {seed}")
    pools: dict[str, list[Record]] = {
        "request": list(world.requests.values()),
        "step": [step for step in (world.older, world.newer) if step is not world.empty_step],
        "stream": list(world.streams.values()),
        "memory": list(world.memory.values()),
        "operation": list(world.operations.values()),
        "session": list(world.sessions.values()),
        "pause_token": list(world.pause_token.values()),
    }
    if machine not in pools:
        single: Record = getattr(world, machine)
        return single
    if pools[machine] and rng.random() < 0.95:
        return rng.choice(pools[machine])
    outside: dict[str, Record] = {
        "request": RequestRecord(world, 99, "r99"),
        "step": StepRecord(world, 99),
        "stream": StreamRecord(world, 99, "r99"),
        "session": SessionRecord(world, 99),
    }
    if machine == "request":
        put(outside[machine], rng.choice(["absent", "ended"]))
    return outside.get(machine) or pools[machine][0]


def everybody(world: World) -> list[Record]:
    """Every record of the world."""
    steps = [step for step in (world.older, world.newer) if step is not world.empty_step]
    return [
        world.engine, world.weights, world.link, *world.memory.values(), *world.pause_token.values(),
        *world.requests.values(), *steps, *world.streams.values(), *world.operations.values(),
        *world.sessions.values(),
    ]  # fmt: skip


def picture(world: World, *outside: Record) -> dict[str, Any]:
    """All there is to see of a world, and of records outside it: states, variables, members and indexes."""
    found: dict[str, Any] = {
        "by_state": {state: sorted(index) for state, index in world.by_state.items()},
        "requests": sorted(world.requests),
        "streams": sorted(world.streams),
        "slots": (world.older.key, world.newer.key),
        "free": world.free,
    }
    for record in [*everybody(world), *outside, world.empty_step]:
        found[f"{record.machine} {record.name} {record.key}"] = portrait(record)
    return found


def portrait(record: Record) -> dict[str, Any]:
    """The state and the variables of one record."""
    names = [name for kind in type(record).__mro__ for name in getattr(kind, "__slots__", ()) if name != "world"]
    values = {name: getattr(record, name) for name in names}
    if isinstance(record, StepRecord):
        values["members"] = sorted(record.members)
        values["place"] = record.place
    return values


def variable(record: Record, name: str, slot: str = "") -> Any:
    """A variable as the tables speak of it: bits are `yes` and `no`."""
    if name == "member":
        world = record.world
        return BIT[record.key in {"0": world.older, "1": world.newer}[slot].members]
    value = getattr(record, name)
    return BIT[value] if isinstance(value, bool) else value
