"""A slow second opinion: guards evaluated by walking their tree over a world, with nothing shared with the compiler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quiesce.spec import CATALOG
from quiesce.spec.guards import And, Guard, Is, Name, Not, Or, Positive, Quantified, Truth, parse_guard
from quiesce.statemachine.records import Record, StepRecord, World
from tests.statemachine.worlds import variable


def holds(tree: Guard, record: Record, data: Mapping[str, Any], each: Record | None = None, step: Record | None = None) -> bool:
    """Whether a guard about `record` holds. `each` is bound by a quantifier; `step` is the step whose slot `this` means."""
    match tree:
        case Truth(constant):
            return constant
        case Positive(counter):
            return int(getattr(record.world, counter)) > 0
        case Not(part):
            return not holds(part, record, data, each, step)
        case And(parts):
            return all(holds(part, record, data, each, step) for part in parts)
        case Or(parts):
            return any(holds(part, record, data, each, step) for part in parts)
        case Quantified(universal, domain, body):
            found = [holds(body, record, data, other, record) for other in ranged(domain, record, data)]
            return all(found) if universal else any(found)
        case Is(name, words):
            return str(value(name, record, data, each, step)) in words
        case Name(name=fact_name) if fact_name in CATALOG.facts:
            fact = CATALOG.facts[fact_name]
            about = each if tree.instance == "each" and each is not None else record
            return holds(parse_guard(fact.when), about if fact.of else record.world.engine, data)
        case Name():
            return str(value(tree, record, data, each, step)) == "yes"
    raise AssertionError(tree)


def ranged(domain: str, record: Record, data: Mapping[str, Any]) -> list[Any]:
    """The records a quantifier ranges over."""
    world = record.world
    match domain:
        case "request":
            return list(world.requests.values())
        case "member":
            assert isinstance(record, StepRecord)
            return list(record.members.values())
        case "named":
            return list(data["requests"])
        case "step":
            return [world.older, world.newer]
        case "stream":
            return list(world.streams.values())
        case _:
            return list(getattr(world, domain).values())


def value(name: Name, record: Record, data: Mapping[str, Any], each: Record | None, step: Record | None) -> Any:
    """What a variable is, in the words of the tables."""
    if name.machine == "event":
        return data[name.name]
    about = each if name.instance == "each" else instance(record.world, name) if name.machine else record
    assert about is not None
    if name.slot == "this":
        this = step or record
        assert isinstance(this, StepRecord)
        return "yes" if about.key in this.members else "no"
    return variable(about, name.name, name.slot)


def instance(world: World, name: Name) -> Record:
    """The record that `machine.name` or `machine[instance].name` speaks of."""
    if name.machine == "step":
        return world.older if name.instance == "0" else world.newer
    place = getattr(world, name.machine)
    record: Record = place[name.instance] if name.instance else place
    return record
