"""The refinement map is complete in both directions, computes each variable from its field, and is the page that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.proofs import refinement
from quiesce.proofs.guards import Reader
from quiesce.proofs.refinement import LEFT_OUT, MAPPED, OF_THE_WORLD, abstract, difference, fields, projected
from quiesce.proofs.world import World
from quiesce.spec.vocabulary import Tag
from quiesce.statemachine import records
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.records import RequestRecord

READER = Reader(World.engine(2))
PAGE = Path(refinement.__file__).parent / "REFINEMENT.md"


def test_every_variable_of_the_model_is_mapped_and_every_mapping_is_a_variable() -> None:
    kinds = set()
    for variable in READER.variables:
        where, _, name = variable.name.partition(".")
        kinds.add((where.partition("[")[0], name))
    assert kinds == {(mapped.machine, mapped.variable) for mapped in MAPPED}


def test_every_field_of_every_record_is_mapped_or_says_why_not() -> None:
    mapped = {(mapping.kind, mapping.field) for mapping in MAPPED}
    assert mapped | set(LEFT_OUT) == set(fields())
    assert not mapped & set(LEFT_OUT)
    assert all(LEFT_OUT.values())


def test_every_attribute_of_the_world_has_its_place() -> None:
    assert set(OF_THE_WORLD) == set(vars(records.World()))


def a_world() -> tuple[records.World, Gate]:
    world, gate = records.World(), Gate()
    gate.fire(world.engine, "ready")
    requests = [RequestRecord(world, key, f"r{key}") for key in (7, 9)]
    for request in requests:
        for event in ("submit", "admit"):
            gate.fire(request, event)
    world.free = 1
    gate.fire(requests[1], "start")
    gate.fire(world.new_step(1), "plan", {"requests": (requests[1],)})
    gate.fire(world.older, "launch")
    gate.fire(world.new_step(2), "plan", {"requests": (requests[1],)})
    gate.fire(world.engine, "sleep", {"mode": "keep", "weights": "offload", "kv_cache": "discard"})
    gate.fire(requests[1], "abort")
    return world, gate


def test_what_is_read_is_what_is_so() -> None:
    world, _ = a_world()
    state = abstract(world, READER, {"0": 7, "1": 9})
    told = {
        variable.name: variable.values[value]
        for variable, value, began in zip(READER.variables, state, READER.initial, strict=True)
        if value != began
    }
    assert told == {
        "engine.state": "draining", "engine.goal": "sleep", "pause_token[sleep].state": "keep", "memory[weights].policy": "offload",
        "memory[kv_cache].policy": "discard", "step[0].state": "launched", "step[1].state": "planned", "request[0].state": "admitted",
        "request[1].state": "running", "request[1].begun": "yes", "request[1].abort_mark": "yes", "request[1].member[0]": "yes",
        "request[1].member[1]": "yes",
    }  # fmt: skip
    assert projected(READER, state) == {
        "engine": "draining", "memory": {tag.value: "resident" for tag in Tag}, "weights": "stable", "pause_owners": {"sleep": "keep"},
        "requests": {"admitted": 1, "running": 1}, "steps_in_flight": 1,
    }  # fmt: skip


def test_a_slot_without_a_request_is_absent_and_slots_may_be_exchanged() -> None:
    world, _ = a_world()
    one, other = abstract(world, READER, {"0": 7, "1": 9}), abstract(world, READER, {"0": 9, "1": 7})
    assert sorted(one) == sorted(other)
    assert one != other
    alone = abstract(world, READER, {"0": 9})
    assert "request[1].state is absent, not admitted" in difference(READER, other, alone)


@pytest.mark.parametrize("mapped", MAPPED, ids=lambda mapped: f"{mapped.machine}.{mapped.variable}")
def test_each_variable_follows_its_own_field(mapped: refinement.Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed by hand, which only a test may: nothing else of the state changes with it."""
    world, _ = a_world()
    before = abstract(world, READER, {"0": 7, "1": 9})
    record = {
        "engine": world.engine, "pause_token": world.pause_token["sleep"], "memory": world.memory[Tag.kv_cache],
        "weights": world.weights, "step": world.older, "request": world.requests[7],
    }[mapped.machine]  # fmt: skip
    if mapped.variable.startswith("member"):
        step = world.older if mapped.variable == "member[0]" else world.newer
        monkeypatch.setattr(step, "members", {**step.members, 7: record})
    else:
        now = getattr(record, mapped.field)
        values = next(
            v.values for v in READER.variables if v.name.startswith(mapped.machine) and v.name.endswith(f".{mapped.variable}")
        )
        other = not now if isinstance(now, bool) else next(word for word in values if word != now)
        monkeypatch.setattr(record, mapped.field, other)
    after = abstract(world, READER, {"0": 7, "1": 9})
    changed = [variable.name for variable, one, two in zip(READER.variables, before, after, strict=True) if one != two]
    assert len(changed) == 1
    assert changed[0].startswith(mapped.machine)
    assert changed[0].endswith(f".{mapped.variable}")


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == refinement.page(), "run `python -m quiesce.proofs.refinement`"


def test_one_page_is_one_page() -> None:
    assert len(refinement.page().splitlines()) <= 60
