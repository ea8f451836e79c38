"""The grammar of guards, updates, joint moves and effects takes what is written in its docstring, and refuses everything else."""

from __future__ import annotations

import pytest

from quiesce.spec.guards import (
    And,
    EffectName,
    Is,
    Joint,
    Name,
    Not,
    Or,
    Positive,
    Quantified,
    Truth,
    Update,
    parse_effect,
    parse_guard,
    parse_joint,
    parse_update,
)
from quiesce.spec.language import SpecError


def test_a_guard_becomes_its_tree() -> None:
    assert parse_guard("true") == Truth(True)
    assert parse_guard("goal != stop") == Not(Is(Name("", "", "goal"), ("stop",)))
    assert parse_guard("free > 0 and not marked") == And((Positive("free"), Not(Name("", "", "marked"))))
    assert parse_guard("event.mode in (keep, wait) or in_flight") == Or(
        (Is(Name("event", "", "mode"), ("keep", "wait")), Name("", "", "in_flight"))
    )
    assert parse_guard("memory[kv_cache].policy == discard") == Is(Name("memory", "kv_cache", "policy"), ("discard",))
    assert parse_guard("any_member(each.member[this])") == Quantified(False, "member", Name("", "each", "member", "this"))
    assert parse_guard("step[0].state == landed") == Is(Name("step", "0", "state"), ("landed",))


def test_not_binds_tighter_than_and_and_and_tighter_than_or() -> None:
    a, b, c = (Name("", "", name) for name in "abc")
    assert parse_guard("not a and b or c") == Or((And((Not(a), b)), c))


BAD_GUARDS = (
    ("", "is not a guard"),
    ("goal ==", "is not a guard"),
    ("goal = stop", "is not a guard"),
    ("free > 1", "compare a variable with a word, or a counter with 0"),
    ("free >= 0", "compare a variable with a word, or a counter with 0"),
    ("0 < free", "compare a variable with a word, or a counter with 0"),
    ("goal == 'stop'", "compare a variable with a word, or a counter with 0"),
    ("goal in [stop, none]", "compare a variable with a word, or a counter with 0"),
    ("goal in ()", "compare a variable with a word, or a counter with 0"),
    ("goal not in (stop, none)", "compare a variable with a word, or a counter with 0"),
    ("none == goal == stop", "is not in the grammar"),
    ("free + free > 0", "compare a variable with a word, or a counter with 0"),
    ("a if b else c", "is not in the grammar"),
    ("lambda: a", "is not in the grammar"),
    ("True", "is not in the grammar"),
    ("1", "is not in the grammar"),
    ("len(requests)", "is not in the grammar"),
    ("any_request(a, b)", "is not in the grammar"),
    ("any_request(body=a)", "is not in the grammar"),
    ("any_request(any_step(each.state == landed))", "a quantifier inside a quantifier"),
    ("all_requests(not all_tags(each.state == resident))", "a quantifier inside a quantifier"),
    ("__import__('os').system('true')", "is not in the grammar"),
    ("engine.goal.name == stop", "names nothing"),
    ("memory[weights][0].state == resident", "names nothing"),
    ("memory[weights + kv_cache].state == resident", "is not an instance"),
    ("step[1.5].state == landed", "is not an instance"),
    ("(a := b)", "is not in the grammar"),
)


@pytest.mark.parametrize(("text", "reason"), BAD_GUARDS)
def test_a_guard_outside_the_grammar_is_refused_with_its_text_and_the_reason(text: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as refusal:
        parse_guard(text)
    assert repr(text) in str(refusal.value)


def test_an_update_assigns_a_word_data_of_the_event_or_a_guard_over_all_requests() -> None:
    assert parse_update("goal := stop") == Update(Name("", "", "goal"), "stop")
    assert parse_update("policy := event.policy") == Update(Name("", "", "policy"), "event.policy")
    assert parse_update("request[*].stale := each.state == draining") == Update(
        Name("request", "*", "stale"), Is(Name("", "each", "state"), ("draining",))
    )
    assert parse_update("request[*].member[this] := false") == Update(Name("request", "*", "member", "this"), Truth(False))


BAD_UPDATES = (
    ("goal = stop", "write `variable := value`"),
    ("goal := ", "write `variable := value`"),
    ("goal := not granted", "neither a word nor data of the event"),
    ("goal := engine.goal", "neither a word nor data of the event"),
    ("free > 0 := yes", "is not a variable"),
    ("request[*].free > 0 := yes", "is not a variable"),
    ("request[*].stale := 1 + 1", "is not in the grammar"),
)


@pytest.mark.parametrize(("text", "reason"), BAD_UPDATES)
def test_an_update_outside_the_grammar_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse_update(text)


def test_a_joint_move_names_a_machine_an_instance_an_event_and_its_data() -> None:
    assert parse_joint("weights.lose") == Joint("weights", "", "lose")
    assert parse_joint("step[*].void") == Joint("step", "*", "void")
    assert parse_joint("pause_token[event.owner].hold(mode=event.mode)") == Joint(
        "pause_token", "event.owner", "hold", (("mode", "event.mode"),)
    )


@pytest.mark.parametrize(
    "text", ["", "lose", "weights.lose()", "weights.lose(a=1, b=2)", "weights[].lose", "a.b.c", "weights.lose; os"]
)
def test_a_joint_move_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not a joint move"):
        parse_joint(text)


def test_an_effect_is_a_name_and_at_most_one_word() -> None:
    assert parse_effect("launch_step") == EffectName("launch_step")
    assert parse_effect("terminal(abort)") == EffectName("terminal", "abort")


@pytest.mark.parametrize("text", ["", "terminal()", "terminal(a, b)", "terminal abort", "world.free"])
def test_an_effect_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not an effect"):
        parse_effect(text)
