"""Leads-to in C: on every question it says what the reading search says, with all marks, without each, and with strong ones weakened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from quiesce.proofs import lasso, properties, search
from quiesce.proofs.aged import aged
from quiesce.proofs.expr import TRUE, Expr, In
from quiesce.proofs.model import Action, Assign, Builder, Model, Variable
from quiesce.proofs.world import World
from quiesce.spec.language import Event, Fairness, Owner

SMALL = ("engine.sleep", "engine.clear", "engine.begin_update", "weights.begin_in_place")
"""Left out: what makes the engine world large."""


def at(variable: int, *values: int) -> Expr:
    return In(variable, frozenset(values))


def graph_of(*edges: tuple[int, int, str, Fairness], size: int) -> Model:
    """One variable; edges from value to value, each an event of its own name."""
    actions = []
    for source, target, name, fairness in edges:
        event = Event(name, Owner.core, fairness)
        actions.append(Action(name, event, "toy", "", 0, at(0, source), (Assign(TRUE, 0, target),)))
    return Model("toy", [Variable("v", tuple(map(str, range(size))))], (0,), actions)


def read(model: Model, marks: Mapping[str, Fairness], trigger: Expr, goal: Expr, one_pass: bool = True) -> bool:
    """What the reading search says: whether the leads-to holds under these marks."""
    actions = [
        replace(action, event=replace(action.event, fairness=marks.get(action.fair_name, Fairness.none)))
        for action in model.actions
    ]
    graph = search.explore(replace(model, actions=actions), one_pass)
    return search.unfair_lasso(graph, goal, trigger) is None


def variants(marks: Mapping[str, Fairness]) -> list[dict[str, Fairness]]:
    """As declared; none; all weak; each mark taken away; each strong one weakened."""
    taken = [{name: mark for name, mark in marks.items() if name != gone} for gone in marks]
    weakened = [{**marks, name: Fairness.weak} for name, mark in marks.items() if mark is Fairness.strong]
    return [dict(marks), {}, dict.fromkeys(marks, Fairness.weak), *taken, *weakened]


@pytest.mark.parametrize("num_requests", [1, 2])
def test_every_question_is_answered_as_the_reading_search_answers_it(num_requests: int) -> None:
    gone = (*SMALL, "request.device_fault", "engine.fail", "request.preempt") if num_requests == 2 else SMALL
    builder = Builder(World.engine(num_requests, callers=() if num_requests == 2 else ("caller",), without=gone))
    model = builder.build()
    promises = [one for one in properties.eventually(builder) if not one[0].endswith("[1]")]
    asked = variants(lasso.declared(model))[:: 1 if num_requests == 1 else 4]
    answers = lasso.judge(model, promises, asked)
    graph = search.explore(model, one_pass=True)
    assert (answers.num_states, answers.num_edges) == (len(graph.states), graph.num_edges)
    broken = 0
    for marks, found in zip(asked, answers.lassos, strict=True):
        for name, trigger, goal in promises:
            actions = []
            for one in model.actions:
                spared = f"{one.machine}.{one.event.name}" in lasso.DESPITE.get(name, ())
                mark = Fairness.none if spared else marks.get(one.fair_name, Fairness.none)
                actions.append(replace(one, event=replace(one.event, fairness=mark)))
            marked = replace(graph, model=replace(model, actions=actions))
            assert (found[name] is None) == (search.unfair_lasso(marked, goal, trigger) is None), (name, marks)
            broken += found[name] is not None
    assert not any(answers.lassos[0].values()), "as declared every promise is kept"
    assert broken > 5, "marks are needed"


WEAK, STRONG, NONE = Fairness.weak, Fairness.strong, Fairness.none


@pytest.mark.parametrize(
    ("edges", "holds"),
    [
        ([(0, 1, "go", WEAK)], True),
        ([(0, 1, "go", NONE)], False),
        ([(0, 0, "spin", NONE), (0, 1, "go", WEAK)], True),
        ([(0, 2, "there", NONE), (2, 0, "back", WEAK), (0, 1, "go", WEAK)], False),
        ([(0, 2, "there", NONE), (2, 0, "back", WEAK), (0, 1, "go", STRONG)], True),
        ([(0, 2, "there", NONE), (2, 0, "back", STRONG), (0, 1, "go", STRONG), (2, 3, "away", NONE)], False),
        (
            [(0, 2, "there", NONE), (2, 0, "back", STRONG), (0, 1, "go", STRONG), (2, 3, "away", NONE), (3, 2, "home", WEAK)],
            True,
        ),
        ([(0, 2, "go", STRONG), (2, 0, "back", WEAK)], False),
    ],
    ids=[
        "weak",
        "nothing obliges",
        "leaves a loop",
        "weak is not steady enough",
        "strong is",
        "a way out of sight",
        "and home",
        "a loop",
    ],
)
def test_graphs_to_be_read_off_the_page(edges: list[tuple[int, int, str, Fairness]], holds: bool) -> None:
    model = graph_of(*edges, size=4)
    trigger, goal = at(0, 0), at(0, 1)
    found = lasso.judge(model, [("goes", trigger, goal)]).lassos[0]["goes"]
    assert (found is None) == holds == read(model, lasso.declared(model), trigger, goal)


def test_a_lasso_says_how_one_gets_there_and_what_goes_on_for_ever() -> None:
    model = graph_of((0, 1, "enter", WEAK), (1, 2, "there", NONE), (2, 1, "back", NONE), (2, 3, "go", WEAK), size=4)
    found = lasso.judge(model, [("goes", at(0, 1), at(0, 3)), ("fine", at(0, 3), at(0, 3))])
    assert found.lassos[0] == {"goes": lasso.Lasso(("enter",), ("there", "back"), 2), "fine": None}
    stuck = lasso.judge(model, [("goes", at(0, 1), at(0, 3))], [{"toy[].enter": WEAK}]).lassos[0]["goes"]
    assert stuck is not None
    assert stuck.story[0] == "enter"


def test_states_that_strong_fairness_leaves_behind_are_looked_at_again() -> None:
    """Two loops are left of one strongly connected part; only the second can be stayed in."""
    ring = [(0, 1, "a", NONE), (1, 2, "b", NONE), (2, 3, "c", NONE), (3, 4, "d", NONE), (4, 5, "e", NONE), (5, 0, "f", NONE)]
    loops = [
        (2, 1, "back", NONE),
        (5, 4, "return", NONE),
        (0, 6, "go", STRONG),
        (3, 6, "leave", STRONG),
        (1, 6, "now", WEAK),
        (2, 6, "now", WEAK),
    ]
    found = lasso.judge(graph_of(*ring, *loops, size=7), [("goes", at(0, 0), at(0, 6))]).lassos[0]["goes"]
    assert found == lasso.Lasso(("a", "b", "c", "d"), ("e", "return"), 2)


def test_too_many_promises_and_too_little_memory_are_refused_in_words() -> None:
    model = graph_of((0, 1, "go", WEAK), size=2)
    with pytest.raises(ValueError, match="32 promises are the most"):
        lasso.judge(model, [(str(number), TRUE, TRUE) for number in range(33)])
    builder = Builder(World.engine(2, without=SMALL))
    with pytest.raises(MemoryError, match="need more than 2 MB"):
        lasso.judge(builder.build(), list(properties.eventually(builder)), megabytes=2)


def test_two_requests_may_preempt_each_other_for_ever_unless_the_oldest_never_yields() -> None:
    builder = Builder(World.engine(2, callers=(), without=(*SMALL, "request.device_fault", "engine.fail")))
    promises = [one for one in properties.eventually(builder) if one[0].startswith("L1_")]
    ageless = lasso.judge(builder.build(), promises).lassos[0]
    found = ageless["L1_answered[0]"]
    assert found is not None
    assert {"request[0].preempt", "request[0].retracted", "request[0].start"} <= set(found.around)
    assert not any(lasso.judge(aged(builder.model), promises).lassos[0].values())


def test_who_arrived_first_is_older_as_long_as_it_lasts_and_yields_to_nobody_younger() -> None:
    builder = Builder(World.engine(2, callers=(), without=(*SMALL, "request.device_fault", "engine.fail")))
    model = aged(builder.build())
    graph = search.explore(model)
    first, second = (model.place[f"request[{request}].state"] for request in "01")
    age = model.place["age.request[0] before request[1]"]
    seen = set()
    for state, out in zip(graph.states, graph.edges, strict=True):
        for number, after in out:
            name, then = model.actions[number].name, graph.states[after]
            if state[first] and state[second] and then[first] and then[second]:
                assert then[age] == state[age], name
            if state[first] and name == "request[1].submit":
                assert then[age] == 1
            if state[second] and name == "request[0].submit":
                assert then[age] == 0
            if name.endswith(".preempt"):
                assert state[age] == int(name == "request[1].preempt")
                seen.add(name)
    assert seen == {"request[0].preempt", "request[1].preempt"}


def test_a_shutdown_ends_though_no_request_would_and_that_is_what_its_deadline_is_for() -> None:
    builder = Builder(World.engine(1, without=SMALL))
    model = builder.build()
    promises = [one for one in properties.eventually(builder) if one[0].startswith(("L8b", "L3"))]
    declared = lasso.declared(model)
    patient = {name: mark for name, mark in declared.items() if "shutdown_deadline" not in name}
    as_declared, without_deadline = lasso.judge(model, promises, [declared, patient]).lassos
    assert not any(as_declared.values())
    assert [name for name, way in without_deadline.items() if way] == ["L8b_shutdown_waits_for_nobody"]
