"""Without a rule the real engine goes wrong, too, in a way that an outsider sees; with it the same stories end well."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from quiesce.proofs.rules import ASKED_AGAIN, BOTH_RUN, ENGINE, NAMED, PAIR, RULES, SERVING, UNSEEN, YIELDS_AT_ITS_END, Without
from quiesce.proofs.without import breaks
from quiesce.proofs.world import World
from quiesce.stateful.front_stage import signs
from quiesce.stateful.without_rule import drive, once, told

BY_NAME = {rule.rule: rule for rule in RULES}
SIGNS = {
    "R6": "the engine fails: ConformanceError: S2_running_is_open",
    "R7": "the engine fails: ConformanceError: engine engine: resume from paused to running is not declared",
    "R8": "the engine fails: IllegalTransition: weights weights: begin while updating",
    "R11": "never answered: engine.pause(owner=caller, mode=wait)",
    "R11b": "its trace is refused: request[1].start cannot happen",
    "R14": "never answered: request[0].submit",
    "R15": "the engine fails: ConformanceError: S7_no_free_under_a_writer: step 2 still names r1.1",
    "R16": "the engine fails: ConformanceError: S7_no_free_under_a_writer: step 1 still names r1.1",
    "R17": "the engine fails: ValueError: block 3 of request 1 is freed without a fenced holder",
    "R22": "never answered: request[0].submit",
    "R24": "the engine fails: IllegalTransition: request r1.1: finish while retracting",
    "R25": "left behind: requests left: {'running': 1}; blocks left: ",
    "R28b": "other tokens: ",
    "R35d": "received for nobody",
    "R35e": "the front end breaks: IllegalTransition: link link: kill while up",
    "R36": "running for nobody",
    "R36b": "the front end breaks: ConformanceError: stream request-0: gone from opening to closed is not declared",
    "R37": "a stream of a client who has left stays opening",
    "R37b": "the front end breaks: IllegalTransition: stream request-0: terminal while opening",
    "R38": "the next turn is refused: ",
    "R38b": "a session that was told to close never does",
    "LMDeploy #4655, opening": "a session that was told to close never does",
}
OF_THE_FRONT_END = [rule for rule in RULES if rule.world.name != "engine"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """That these engines fail is no news."""
    logger = logging.getLogger("quiesce")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("name", SIGNS)
def test_without_the_rule_an_outsider_sees_the_engine_go_wrong(name: str) -> None:
    assert told(BY_NAME[name]).startswith(SIGNS[name])


@pytest.mark.parametrize(
    ("world", "story"),
    [
        (ENGINE, ASKED_AGAIN),
        (SERVING, (*BOTH_RUN, *NAMED, "request[1].abort", "request[1].aborted")),
        (PAIR, (*BOTH_RUN, *YIELDS_AT_ITS_END)),
    ],
    ids=["asked again", "a member aborts", "yields at its end"],
)
def test_with_every_rule_the_same_stories_end_well(world: World, story: tuple[str, ...]) -> None:
    seen = drive((), world, story)
    assert seen.told() == ""
    assert seen.replayed is not None
    assert seen.replayed.agrees


@pytest.mark.parametrize("rule", OF_THE_FRONT_END, ids=lambda rule: rule.rule)
def test_with_every_rule_nothing_is_wrong_behind_the_stories_of_the_front_end(rule: Without) -> None:
    assert signs((), once(breaks(rule))) == []


@pytest.mark.parametrize("name", ["R35", "R35b", "R35c"])
def test_a_loss_is_one_instant_and_shows_nothing_of_what_is_in_it(name: str) -> None:
    assert told(BY_NAME[name]) == ""


def test_what_the_engine_does_not_show_is_said_with_the_reason_why() -> None:
    assert set(UNSEEN) <= set(BY_NAME)
    assert not set(UNSEEN) & set(SIGNS)
