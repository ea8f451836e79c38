"""Symmetry reduction is sound: the orbits of the reduced graph add up to the full one, verdicts agree, and stories are of real requests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.proofs import moves, properties, search
from quiesce.proofs.edits import edited
from quiesce.proofs.explorer import MoveProperty, Verdict, explore
from quiesce.proofs.expr import TRUE, Expr, neg
from quiesce.proofs.model import Builder, Model
from quiesce.proofs.rules import RULES, Without
from quiesce.proofs.symmetry import NotSymmetric, Symmetry, namesake, renamed
from quiesce.proofs.world import World

QUIET = ("engine.sleep", "engine.clear", "engine.begin_update", "engine.wake_up", "weights.begin_in_place")
"""Left out: what makes the engine world large."""
STILL = (*QUIET, "engine.pause", "request.device_fault")


def world(num_requests: int, *without: str, capacity: int | None = None) -> World:
    return World.engine(num_requests, capacity, callers=("caller",), without=without)


def both(builder: Builder, one_pass: bool = False) -> tuple[Verdict, Verdict]:
    """A world explored as it is, and with sorted requests."""
    model = builder.build()
    judged = (model, properties.always(builder), moves.on_moves(builder), one_pass)
    return explore(*judged), explore(*judged, symmetric=True)


def same(full: Verdict, reduced: Verdict) -> None:
    """What the orbits add up to is what a full search counts."""
    assert (reduced.all_states, reduced.all_edges, reduced.all_dead) == (full.num_states, full.num_edges, full.num_dead)
    assert (reduced.fired, reduced.depth) == (full.fired, full.depth)
    assert reduced.num_states < full.num_states


@pytest.mark.parametrize(
    ("smaller", "one_pass"),
    [
        (world(2, *QUIET, "request.device_fault"), False),
        (world(2, *QUIET), True),
        (world(2, *QUIET, capacity=1), True),
        (world(3, *STILL, "request.preempt"), True),
    ],
    ids=["interleaved", "one pass", "one block", "three requests"],
)
def test_orbits_add_up_to_the_full_graph(smaller: World, one_pass: bool) -> None:
    full, reduced = both(Builder(smaller), one_pass)
    same(full, reduced)
    assert set(reduced.stories) == set(full.stories)


def replayed(model: Model, story: tuple[str, ...]) -> set[tuple[int, ...]]:
    """The states to which actions of these names lead."""
    here = {model.initial}
    for name in story:
        named = [
            (search.compile_guard(one.guard), search.compile_assigns(one.assigns)) for one in model.actions if one.name == name
        ]
        here = {apply(state) for state in here for guard, apply in named if guard(state)}
    return here


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.rule in ("R9", "R15b", "R25", "R34")], ids=lambda rule: rule.rule
)
def test_verdicts_agree_on_mutants_and_stories_happen_to_real_requests(rule: Without) -> None:
    builder = Builder(world(2, *QUIET, "request.device_fault"), edited(rule.edits))
    full, reduced = both(builder)
    same(full, reduced)
    assert full.stories
    lengths = {name: len(story) for name, story in full.stories.items()}
    assert {name: len(story) for name, story in reduced.stories.items()} == lengths
    always = properties.always(builder)
    for name, story in reduced.stories.items():
        end = replayed(builder.model, story)
        assert end, f"{rule.rule}: {name} cannot happen so"
        if name in always:
            assert any(search.compile_guard(neg(always[name]))(state) for state in end)


def test_a_model_that_tells_requests_apart_is_refused() -> None:
    model = Builder(world(2, *STILL)).build()
    one = next(number for number, action in enumerate(model.actions) if action.name == "request[1].eos")
    with pytest.raises(NotSymmetric, match=r"request\[0\]\.eos: no other request has the like"):
        Symmetry(replace(model, actions=[*model.actions[:one], *model.actions[one + 1 :]]))
    first = model.place["request[0].begun"]
    with pytest.raises(NotSymmetric, match="the initial state tells requests apart"):
        Symmetry(replace(model, initial=(*model.initial[:first], 1, *model.initial[first + 1 :])))


def test_what_is_said_of_one_request_only_is_not_judged_under_symmetry() -> None:
    builder = Builder(world(2, *STILL))
    model = builder.build()
    begun = {f"begun[{request}]": builder.guard("request", request, "begun") for request in "01"}
    everybody: dict[str, Expr] = {"any": builder.guard("engine", "", "any_request(each.begun)")}
    Symmetry(model).check({**begun, **everybody}, {})
    with pytest.raises(NotSymmetric, match=r"begun\[0\]: is not said of every request"):
        explore(model, {"begun[0]": begun["begun[0]"]}, symmetric=True)
    eos = {
        request: model.actions.index(next(a for a in model.actions if a.name == f"request[{request}].eos")) for request in "01"
    }
    promises = {f"eos[{request}]": {number: begun[f"begun[{request}]"]} for request, number in eos.items()}
    Symmetry(model).check({}, promises)
    with pytest.raises(NotSymmetric, match=r"eos\[0\]: is not said of every request"):
        Symmetry(model).check({}, {**promises, "eos[1]": {eos["1"]: TRUE}})


def test_each_namesake_of_a_broken_promise_has_its_own_story() -> None:
    builder = Builder(world(3, *STILL))
    model = builder.build()
    idle: dict[str, Expr] = {f"idle[{request}]": builder.guard("request", request, "not begun") for request in "012"}
    told = MoveProperty(
        "silent", "", {number: neg(TRUE) for number, action in enumerate(model.actions) if action.event.name == "eos"}
    )
    stories = explore(model, idle, [told], symmetric=True).stories
    for request in "012":
        assert stories[f"idle[{request}]"][-1] == f"request[{request}].start"
    assert stories["silent"][-1].endswith(".eos")
    assert all(replayed(model, story) for story in stories.values())


def test_names_are_renamed_where_they_speak_of_requests_and_nowhere_else() -> None:
    assert renamed("step[0].plan(requests=1)", (1, 0)) == "step[0].plan(requests=0)"
    assert renamed("request[0].member[1]", (1, 0)) == "request[1].member[1]"
    assert renamed("session[2].turn", (1, 2, 0)) == "session[0].turn"
    assert namesake("L1_answered[0]", (2, 1, 0)) == "L1_answered[2]"
    assert namesake("S3_quiet", (1, 0)) == "S3_quiet"
