"""The rules: each is there because something breaks without it. Here a part of them is tried; `quiesce prove --profile full` tries all."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from quiesce.proofs import without
from quiesce.proofs.edits import Edit, edited
from quiesce.proofs.model import Builder
from quiesce.proofs.rules import FRONT, RULES, SERVING, Without
from quiesce.proofs.search import compile_assigns, compile_guard
from quiesce.spec import CATALOG
from quiesce.spec.language import SpecError

BY_NAME = {rule.rule: rule for rule in RULES}
TRIED = [
    *FRONT,
    *(rule for rule in RULES if rule.world == SERVING),
    *(BY_NAME[name] for name in ("R7", "R8", "R12", "R17", "R25", "R34", "vLLM #32351")),
]


@pytest.mark.parametrize("rule", TRIED, ids=[rule.rule for rule in TRIED])
def test_without_the_rule_a_short_story_breaks_its_property(rule: Without) -> None:
    found = without.found(rule)
    assert found.broken == (rule.breaks,)
    assert 0 < len(found.story) <= 20
    assert follows(rule, found.story), "every action of the story can happen where it does"


@pytest.mark.parametrize("name", ["R2b", "R23", "R35", "R36", "R38", "R38b"])
def test_with_the_rule_the_same_world_keeps_the_promise(name: str) -> None:
    assert without.holds_with_it(BY_NAME[name])


def follows(rule: Without, story: tuple[str, ...]) -> bool:
    """Whether the edited model can go this way, and come round where it goes on for ever."""
    model = (rule.change or rule.base)(Builder(rule.world, edited(rule.edits)).build())
    states, begins = {model.initial}, set()
    for name in story:
        if name == without.FOR_EVER:
            begins = states
            continue
        ways = [(compile_guard(a.guard), compile_assigns(a.assigns)) for a in model.actions if a.name == name]
        states = {apply(state) for guard, apply in ways for state in states if guard(state)}
    return bool(states) and (not begins or bool(states & begins))


def test_all_rules_are_there_and_each_is_said_once() -> None:
    numbers = {int(found[1]) for rule in RULES if (found := re.match(r"R(\d+)", rule.rule))}
    assert numbers == set(range(1, 39))
    reports = {rule.rule.split(",")[0] for rule in RULES if not rule.rule.startswith("R")}
    assert reports == {"LMDeploy #4541", "LMDeploy #4545", "LMDeploy #4655", "FastDeploy #7753", "vLLM #32351"}
    assert len(BY_NAME) == len(RULES) == len({(rule.removed, rule.breaks, rule.world.size, rule.rule[0]) for rule in RULES})


@pytest.mark.parametrize("rule", RULES, ids=[rule.rule for rule in RULES])
def test_what_is_taken_away_is_there_and_is_said_in_words(rule: Without) -> None:
    edited(rule.edits)
    assert rule.removed
    assert rule.sentence.endswith(".")


def test_an_edit_that_changes_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"engine.stop: when has no `free > 0` changes nothing"):
        edited([Edit("engine", "stop", "when", "free > 0")])


def test_a_row_that_is_taken_out_is_never_taken_and_the_others_keep_their_numbers() -> None:
    tables = edited([Edit("stream", "ack", "row", "up and cancel")])
    before, after = CATALOG.machines["stream"].rows, tables["stream"].rows
    changed = [(old.why, new.when) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [("accepted, and no longer wanted (R37)", "false")]


def test_a_property_that_the_world_does_not_have_is_no_verdict() -> None:
    with pytest.raises(LookupError, match="has no property S99_nothing"):
        without.breaks(replace(BY_NAME["R35"], breaks="S99_nothing"))


def test_the_engine_does_boundary_work_first_and_in_the_order_of_the_pass() -> None:
    model = without.in_pass_order(Builder(SERVING).build())
    guards = [(action, compile_guard(action.guard)) for action in model.actions]
    seen, waiting = {model.initial}, [model.initial]
    while waiting:
        state = waiting.pop()
        able = [action for action, guard in guards if guard(state)]
        urgent = [action for action in able if action.event.boundary]
        assert not urgent or able == urgent[:1]
        for action in able:
            after = compile_assigns(action.assigns)(state)
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    assert len(seen) > 500
