"""What the fuzzer found in the engine, each defect as the small schedule that showed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quiesce.stateful.fuzz.alphabet import Action
from quiesce.stateful.fuzz.corpus import parse
from quiesce.stateful.fuzz.runs import run
from quiesce.stateful.fuzz.schedule import Schedule

ORDINARY = {
    "length": 5, "first": 0, "max_tokens": 5, "temperature": 0.0, "stop_at": None, "stop_after": None, "paced": False, "cancel_at": None,
}  # fmt: skip
CORE_DIES = Action("fail", {"what": "core", "tag": "kv_cache", "to": "restored", "after": 0})


def connect(name: str, **given: Any) -> Action:
    return Action("connect", {"name": name, **ORDINARY, **given})


def problems(folder: Path, *actions: Action, **given: Any) -> list[str]:
    outcome = run(folder, Schedule(actions, **given))
    return [f"{problem.oracle}: {problem.text}" for problem in outcome.problems]


def test_a_shutdown_of_a_core_that_died_meanwhile_says_failed(ledger_folder: Path) -> None:
    """It gave the state from before it asked: `starting`."""
    assert problems(ledger_folder, CORE_DIES, Action("shutdown", {"timeout": 30.0, "name": "o0"})) == []


def test_an_abort_of_several_hears_every_answer_when_the_core_dies(ledger_folder: Path) -> None:
    """The first error was told, and the others were exceptions that nobody retrieved."""
    assert problems(ledger_folder, connect("c0"), connect("c1"), Action("abort_all"), CORE_DIES) == []


def test_a_sleep_is_answered_while_an_aborted_request_waits_for_the_copy_of_the_other_tag(ledger_folder: Path) -> None:
    """An oracle was wrong: every terminal is handed over when the drain ends, not when the last copy does."""
    program = (
        'advance; connect; advance; sleep_tags tags={"weights":"offload"} mode=keep; '
        'sleep_tags tags={"weights":"offload","kv_cache":"offload"}; shutdown timeout=30.0'
    )
    assert problems(ledger_folder, *parse(program)) == []
