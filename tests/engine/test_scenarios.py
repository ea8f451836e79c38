"""Every story of scenarios/ on the real engine, and the parser that reads them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from quiesce.proofs.trace_path import follow_file
from tests.engine import scenario_player
from tests.engine.scenario_parser import CALLS, Condition, Parser, ScenarioError, parse
from tests.engine.scenario_player import Player
from tests.engine.scenario_world import Undisturbed, Weights, small_engine

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def undisturbed(weights: Weights) -> Undisturbed:
    return Undisturbed(weights)


def play(text: str, weights: Weights, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed.check(Player(Parser("story.txt").parse(text), weights, monkeypatch).play())


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(
    path: Path, weights: Weights, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what the engine wrote of it is a path of the model."""
    written = tmp_path / "trace.ndjson"
    monkeypatch.setattr(scenario_player, "small_engine", partial(small_engine, trace_path=written))
    undisturbed.check(Player(parse(path), weights, monkeypatch).play())
    assert follow_file(written).num_actions > 1


def test_each_scenario_says_what_it_stands_for_and_every_control_call_is_in_one() -> None:
    called = set()
    for path in SCENARIOS:
        assert path.read_text(encoding="utf-8").startswith("# "), path.name
        called |= {statement.verb for statement in parse(path)}
    assert set(CALLS) <= called
    assert {"abort", "cancel", "disconnect", "drop", "hold", "break"} <= called


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("explode", "unknown verb 'explode'"),
        (
            "pause strength=5 -> changed",
            "unknown field 'strength'; known: clear_cache, mode, operation_id, owner, timeout, ttl",
        ),
        ("pause mode=keep", "say what comes of `pause`"),
        ("pause -> delighted", "unknown field 'delighted'"),
        ("start pause -> changed as p", "takes nothing, not 'as p'"),
        ("start pause as c1", "'c1' is somebody already"),
        ("start pause as p", "the end of p is not told"),
        ("start sing as s", "unknown call 'sing'"),
        ("client c3 asks tokens=4", "unknown field 'tokens'"),
        ("client c3 waits max_tokens=4", "`asks` is missing"),
        ("client running asks max_tokens=4", "no client can be called 'running'"),
        ("client c3 asks max_tokens=4 -> changed", "a client is refused with an error"),
        ("cancel c3", "nobody is called 'c3'"),
        ("expect moon full", "unknown field or client 'moon'"),
        ("expect engine asleep", "'asleep' is none of draining, failed"),
        ("expect running many", "'many' is no number"),
        ("expect running 3 4", "takes NUMBER, not '3 4'"),
        ("expect engine running,", "a condition is missing"),
        ("expect c1 happy", "unknown field"),
        ("expect owners user", "no owner with a mode"),
        ("wait until c1 tokens undisturbed", "expect them"),
        ("later today", "unknown verb 'later'"),
        ("wait for c1", "unknown verb 'wait'"),
        ("hold breath", "`hold` takes one of loading"),
        ("break promises", "`break` takes one of copies"),
        ("hold steps before=3", "unknown field 'before'"),
        ("update_weights source=folder:gold -> changed", "unknown source 'folder:gold'"),
        ("engine speed=9", "unknown field 'speed'"),
        ("resume -> TransitionConflict 'no end", "No closing quotation"),
        ("hold steps -> changed", "`hold` has no result"),
    ],
)
def test_a_line_that_means_nothing_is_refused_with_its_place(line: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(words)) as refusal:
        Parser("story.txt").parse(f"# A story.\nengine\nclient c1 asks max_tokens=4\n{line}\n")
    assert str(refusal.value).startswith("story.txt:4: " if "is not told" not in words else "story.txt: ")


def test_what_a_line_says_is_what_is_read() -> None:
    text = "engine\nclient c1..c3 late asks max_tokens=4 temperature=0.5\nexpect c1 late finished abort, got >= 2, running 0\n"
    _, client, expect = Parser("story.txt").parse(text)
    assert (client.names, client.arguments) == (("c1", "c2", "c3", "late"), {"max_tokens": 4, "temperature": 0.5})
    who = ("c1", "late")
    assert expect.conditions == (
        Condition("finished", ("abort",), who), Condition("got", (">=", "2"), who), Condition("running", ("0",))
    )  # fmt: skip
    _, sleep = Parser("story.txt").parse(
        'engine\nsleep tags=weights:offload+kv_cache:discard timeout=none -> Unavailable "a, b" # c\n'
    )
    assert sleep.arguments == {"tags": {"weights": "offload", "kv_cache": "discard"}, "timeout": None}
    assert sleep.conditions == (Condition("Unavailable", ("a, b",)),)


@pytest.mark.parametrize(
    ("story", "words"),
    [
        ("engine\nexpect running 1", "running 1: 0"),
        ("engine\npause -> unchanged", "unchanged : False"),
        ("engine\npause -> TransitionConflict", "TransitionConflict : False"),
        ("engine\npause mode=strong -> changed", "InvalidRequest"),
        ("engine\nclient c1 asks max_tokens=4\nexpect c1 finished abort", "c1: {'length'}"),
        ("engine\nweights_checksum -> digest other", "digest other"),
        ("engine\nbreak steps\nclient c1 asks max_tokens=4\nexpect c1 finished error", "logged as errors"),
        ("engine\nresume -> unchanged\nexpect log \"no such words\"", "no such words"),
    ],
)  # fmt: skip
def test_a_story_that_is_not_true_fails(
    story: str, words: str, weights: Weights, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match=re.escape(words)):
        play(story, weights, undisturbed, monkeypatch)


def test_tokens_of_other_weights_are_told_apart(
    weights: Weights, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = "engine\nclient c1 asks max_tokens=6\nexpect c1 finished length, tokens undisturbed"
    claims = Player(Parser("story.txt").parse(story), weights, monkeypatch).play()
    undisturbed.check(claims)
    with pytest.raises(AssertionError, match="undisturbed it is"):
        undisturbed.check([type(claim)("other", claim.prompt, claim.params, 0, claim.tokens, claim.where) for claim in claims])
