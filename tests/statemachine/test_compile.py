"""A compiled guard says what a slow interpreter of its tree says, in any world, and an update writes what it says."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from quiesce.spec import CATALOG, FACTS, PROPERTIES
from quiesce.spec.guards import Update, parse_guard, parse_update
from quiesce.spec.language import BIT, Machine, SpecError
from quiesce.statemachine.compile import compile_guard, compile_updates, source_of
from quiesce.statemachine.records import Record, StepRecord
from tests.statemachine.interpreter import holds, instance
from tests.statemachine.worlds import (
    TABLES,
    add_request,
    data,
    open_world,
    picture,
    portrait,
    random_record,
    random_world,
    variable,
)

NUM_WORLDS = 500
BY_NAME = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


def guards(table: Machine) -> Iterator[tuple[str, str]]:
    """(event, guard) of every row and every refusal, each once."""
    found = [(row.event, row.when) for row in table.rows] + [(entry.event, entry.when) for entry in table.refused]
    yield from dict.fromkeys((str(event), when) for event, when in found if when != "true")


@BY_NAME
def test_every_guard_is_compiled_to_what_it_says(table: Machine) -> None:
    cases = [(event, when, parse_guard(when), compile_guard(table.name, when)) for event, when in guards(table)]
    seen: dict[tuple[str, str], set[bool]] = {(event, when): set() for event, when, _, _ in cases}
    for seed in range(NUM_WORLDS):
        world = random_world(seed)
        record = random_record(world, table.name, seed)
        rng = random.Random(seed)
        for event, when, tree, compiled in cases:
            carried = data(table.name, event, world, rng)
            assert compiled is not None
            answer = bool(compiled(record, carried))
            assert answer == holds(tree, record, carried), (seed, event, when)
            seen[event, when].add(answer)
    assert {key for key, answers in seen.items() if answers != {True, False}} == set()


def test_facts_and_properties_are_compiled_to_what_they_say() -> None:
    texts = [(fact.of or "engine", fact.when) for fact in FACTS]
    texts += [(prop.machine or "engine", text) for prop in PROPERTIES for text in (prop.when, prop.then) if text]
    texts = [
        (machine, text) for machine, text in texts if "[this]" not in text
    ]  # of one call: no core and no front end holds it all
    cases = [(machine, text, parse_guard(text), compile_guard(machine, text)) for machine, text in dict.fromkeys(texts)]
    seen: dict[tuple[str, str], set[bool]] = {(machine, text): set() for machine, text, _, _ in cases}
    for seed in range(NUM_WORLDS):
        world = random_world(seed)
        for machine, text, tree, compiled in cases:
            record = random_record(world, machine, seed)
            assert compiled is not None
            answer = bool(compiled(record, {}))
            assert answer == holds(tree, record, {}), (seed, text)
            seen[machine, text].add(answer)
    assert {key for key, answers in seen.items() if answers != {True, False}} == set()


def test_a_fact_by_its_name_is_its_guard() -> None:
    for fact in FACTS:
        assert source_of(fact.of or "engine", fact.name) == source_of(fact.of or "engine", fact.when)


def test_true_is_no_predicate_and_a_name_without_a_place_is_refused() -> None:
    assert compile_guard("request", "true") is None
    with pytest.raises(SpecError, match="has no place at run time"):
        compile_guard("engine", "request.begun")
    with pytest.raises(SpecError, match="has no place at run time"):
        compile_updates("step", ("named.member[this] := yes", "request[*].member[this] := true"))


def test_a_bit_may_be_compared_with_its_words() -> None:
    request = add_request(open_world(), 1, begun=True)
    answers = {
        text: bool(guard(request, {}))
        for text in ("begun", "begun == yes", "begun == no", "begun != no", "begun != yes", "stale == no", "begun and stale")
        if (guard := compile_guard("request", text)) is not None
    }
    assert [text for text, answer in answers.items() if answer] == ["begun", "begun == yes", "begun != no", "stale == no"]
    assert len(answers) == 7
    assert compile_guard("request", "begun in (no, yes)") is None


def expected(update: Update, record: Record, carried: dict[str, object]) -> list[tuple[Record, str, object]]:
    """(record, variable, value) of an update, read in the world before it."""
    name = update.variable
    if name.name == "member":
        return []
    if name.instance == "*":
        assert not isinstance(update.value, str)
        return [(each, name.name, BIT[holds(update.value, each, carried, each)]) for each in record.world.requests.values()]
    assert isinstance(update.value, str)
    target = instance(record.world, name) if name.machine else record
    word = carried[update.value.removeprefix("event.")] if update.value.startswith("event.") else update.value
    return [(target, name.name, word)]


@BY_NAME
def test_updates_write_what_they_say_and_nothing_else(table: Machine) -> None:
    rows = [row for row in table.rows if row.sets and not any("member" in text for text in row.sets)]
    written = 0
    for seed, row in itertools.product(range(12), rows):
        world = random_world(seed)
        record = random_record(world, table.name, seed)
        carried = data(table.name, row.event, world, random.Random(seed))
        before = {other: portrait(other) for other in (record, *world.requests.values())}
        wanted = [change for text in row.sets for change in expected(parse_update(text), record, carried)]
        apply = compile_updates(table.name, row.sets)
        assert apply is not None
        apply(record, carried)
        for target, name, word in wanted:
            assert str(variable(target, name)) == str(word), (seed, row)
            written += 1
        for other, was in before.items():
            touched = {name for target, name, _ in wanted if target is other}
            now = portrait(other)
            assert {name for name in was if was[name] != now[name]} <= touched
    assert written > 0 or not rows


def test_members_live_in_the_step() -> None:
    world = open_world()
    step = world.new_step(7)
    requests = [add_request(world, key) for key in (1, 2)]
    plan, strip, empty = (
        compile_updates("step", (text,))
        for text in ("named.member[this] := yes", "named.member[this] := no", "request[*].member[this] := false")
    )
    assert plan is not None
    assert strip is not None
    assert empty is not None
    plan(step, {"requests": requests})
    assert list(step.members.values()) == requests
    strip(step, {"requests": requests[:1]})
    assert list(step.members.values()) == requests[1:]
    empty(step, {})
    assert step.members == {}


def test_all_updates_of_a_row_are_read_before_any_is_written() -> None:
    world = open_world()
    for key in (1, 2):
        add_request(world, key, "draining")
    texts = (
        "request[*].stale := each.begun",
        "request[*].begun := each.state == draining",
        "request[*].eos_mark := each.begun",
    )
    apply = compile_updates("weights", texts)
    assert apply is not None
    apply(world.weights, {})
    assert world.requests
    assert all((request.stale, request.begun, request.eos_mark) == (False, True, False) for request in world.requests.values())


def test_the_random_worlds_are_the_same_every_time_and_differ_from_each_other() -> None:
    assert picture(random_world(5)) == picture(random_world(5))
    assert len({str(picture(random_world(seed))) for seed in range(50)}) == 50
    assert all(isinstance(random_record(random_world(seed), "step", seed), StepRecord) for seed in range(20))
    assert set(CATALOG.machines) >= {table.name for table in TABLES}
    assert open_world().engine.state == "running"
