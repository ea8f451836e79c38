"""Effects for tests that speak to a device without a core: each from a real gate, in a world brought to where it is legal."""

from __future__ import annotations

from quiesce.spec.vocabulary import (
    EngineEvent,
    EngineState,
    MemoryEvent,
    MemoryState,
    Policy,
    RequestEvent,
    StepEvent,
    Tag,
    WeightsEvent,
    WeightsState,
)
from quiesce.statemachine.effects import LaunchStep, LoadWeights, Map, Unmap
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.records import RequestRecord, World


def launch_effect(step: int) -> LaunchStep:
    """The launch of a step with one member, minted by a real gate."""
    world, gate = World(), Gate()
    gate.fire(world.engine, EngineEvent.ready)
    request, record = RequestRecord(world, 1, "r"), world.new_step(step)
    world.free = 1
    for event in (RequestEvent.submit, RequestEvent.admit, RequestEvent.start):
        gate.fire(request, event)
    gate.fire(record, StepEvent.plan, {"requests": [request]})
    (effect,) = gate.fire(record, StepEvent.launch).effects
    assert isinstance(effect, LaunchStep)
    return effect


def unmap_effect(tag: str, policy: str = "offload") -> Unmap:
    world, gate = World(), Gate()
    world.engine.state = EngineState.partially_awake
    memory = world.memory[Tag(tag)]
    memory.policy = Policy(policy)
    (effect,) = gate.fire(memory, MemoryEvent.release).effects
    assert isinstance(effect, Unmap)
    return effect


def map_effect(tag: str, policy: str = "offload") -> Map:
    world, gate = World(), Gate()
    world.engine.state = EngineState.partially_awake
    memory = world.memory[Tag(tag)]
    memory.policy, memory.state = Policy(policy), MemoryState.released
    (effect,) = gate.fire(memory, MemoryEvent.restore).effects
    assert isinstance(effect, Map)
    return effect


def load_effect() -> LoadWeights:
    world, gate = World(), Gate()
    world.engine.state, world.weights.state = EngineState.paused, WeightsState.updating
    (effect,) = gate.fire(world.weights, WeightsEvent.load).effects
    assert isinstance(effect, LoadWeights)
    return effect
