"""`quiesce replay`: stories that the real engine follows, stories it cannot, and engines that contradict the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from quiesce.engine.cli import main
from quiesce.spec import CATALOG
from quiesce.spec.language import Machine
from quiesce.stateful.replay import Verdict, cause_of, replay
from quiesce.stateful.stage import Stage
from quiesce.stateful.story import Story, StoryError
from quiesce.statemachine.trace import spec_hash

RUNNING = (
    "engine.ready",
    "request[0].submit",
    "request[0].admit",
    "request[0].start",
    "step[0].plan(requests=0)",
    "step[0].launch",
)
STORIES = {
    "a step lands": (*RUNNING, "step[0].land", "step[0].retire"),
    "frozen, and on to its end with two steps in flight": (
        *RUNNING, "engine.pause(owner=caller, mode=keep)", "step[0].land", "engine.drained_pause", "engine.resume(owner=caller)",
        "engine.reopen", "step[0].plan(requests=0)", "step[0].launch", "step[1].plan(requests=0)", "step[1].launch", "step[0].land",
        "request[0].eos", "request[0].finish", "step[0].retire", "step[0].land", "request[0].reap",
    ),
    "asleep, tag by tag, in another order than asked for": (
        *RUNNING, "engine.sleep(mode=keep, weights=offload, kv_cache=discard)", "step[0].land", "engine.drained_sleep",
        "memory[kv_cache].released", "memory[weights].released", "engine.settle_sleeping", "engine.wake_up(tags=both)",
        "memory[kv_cache].restored", "memory[weights].restored", "memory[kv_cache].kv_ready", "engine.settle_paused", "engine.reopen",
        "request[0].start",
    ),
    "copies fail": (
        "engine.ready", "engine.sleep(mode=keep, weights=offload, kv_cache=none)", "memory[weights].release_failed",
        "engine.sleep(mode=keep, weights=offload, kv_cache=none)", "memory[weights].released", "engine.wake_up(tags=weights)",
        "memory[weights].restore_failed", "engine.wake_up(tags=weights)", "memory[weights].restored",
    ),
    "a write fails": ("engine.ready", "engine.begin_update(mode=keep)", "weights.load", "weights.load_failed"),
    "an update rolled back, one that heals, one that keeps": (
        "engine.ready", "engine.begin_update(mode=keep)", "weights.load", "weights.rollback", "engine.begin_update(mode=keep)",
        "weights.commit", "weights.committed", "engine.begin_update(mode=wait)", "weights.commit_keep", "engine.reopen",
    ),
    "started empty": ("engine.ready_empty", "engine.begin_update(mode=keep)", "weights.commit", "engine.reopen"),
    "deadlines pass": (
        *RUNNING, "engine.sleep(mode=keep, weights=offload, kv_cache=discard)", "engine.withdraw_sleep", "engine.undrain",
        "engine.begin_update(mode=keep)", "engine.withdraw_update", "engine.undrain", "engine.clear", "engine.withdraw_clear",
        "engine.undrain", "engine.shutdown(mode=wait)", "engine.shutdown_deadline", "request[0].sweep", "step[0].land",
        "request[0].reap", "engine.drained_stop", "engine.stop",
    ),
    "the device is lost": (*RUNNING, "engine.fail", "request[0].fail", "request[0].reap", "engine.shutdown(mode=abort)"),
    "one bad request": (*RUNNING, "step[0].land", "request[0].device_fault", "request[0].fault", "request[0].reap"),
    "one yields to another": (
        *RUNNING[:4], "request[1].submit", "request[1].start", "step[0].plan(requests=0)", "step[0].plan(requests=1)", "step[0].launch",
        "step[1].plan(requests=0)", "step[1].launch", "step[0].land", "request[1].preempt", "request[1].retracted", "request[1].start",
    ),
    "the second slot first": ("request[1].submit", "engine.ready", "request[1].abort", "request[1].aborted", "request[0].submit"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """An engine that fails says so, at length."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", STORIES)
def test_the_real_engine_follows(name: str) -> None:
    replayed = replay(Story(STORIES[name], requests=2))
    assert replayed.agrees, replayed.told()
    assert [moment.action for moment in replayed.moments] == list(STORIES[name])
    assert not replayed.left


def test_after_each_action_it_is_told_what_took_place_and_what_is_so() -> None:
    replayed = replay(Story((*RUNNING, "request[0].abort")))
    assert replayed.moments[-1].took_place == ("request[0].abort", "request[0].aborted")
    assert replayed.moments[-1].state["request[0].state"] == "draining"
    assert replay(Story(RUNNING)).moments[1].took_place == ("request[0].submit", "request[0].admit")


@pytest.mark.parametrize(
    ("actions", "reason"),
    [
        ((*RUNNING, "request[0].device_fault"), "in the instant in which a step that names it lands"),
        ((*RUNNING, "request[0].preempt"), "scheduler does not choose it"),
        (("engine.ready", "engine.begin_update(mode=keep)", "weights.load_failed"), "only after it has begun"),
        (("engine.ready", "engine.pause(owner=caller, mode=keep)", "engine.undrain"), "the model has come elsewhere"),
    ],
)
def test_what_no_engine_does_is_told_apart_from_what_it_does_wrong(actions: tuple[str, ...], reason: str) -> None:
    replayed = replay(Story(actions))
    assert (replayed.verdict, replayed.at) == (Verdict.cannot, len(actions) - 1)
    assert reason in replayed.reason


def without_look(stage: Stage, name: str) -> None:
    """A core that has forgotten one of its boundary looks."""
    lifecycle = stage.core.lifecycle
    for looks in (lifecycle._looks, lifecycle._looks_when_running, lifecycle._looks_when_steady):
        looks[:] = [look for look in looks if look.__name__ != name]


def test_a_core_that_forgets_a_boundary_row_is_found_at_that_action() -> None:
    replayed = replay(
        Story(STORIES["frozen, and on to its end with two steps in flight"]),
        prepare=lambda stage: without_look(stage, "drained_pause"),
    )
    assert replayed.verdict is Verdict.disagrees
    assert replayed.story.actions[replayed.at] == "engine.drained_pause"
    assert "has not done it" in replayed.reason


def test_a_state_changed_behind_the_gate_is_found_after_the_next_action() -> None:
    def spoil(stage: Stage) -> None:
        stage.core.world.weights.base_intact = True

    replayed = replay(Story(RUNNING), prepare=spoil)
    assert (replayed.verdict, replayed.at) == (Verdict.disagrees, 0)
    assert "weights.base_intact is yes, not no" in replayed.reason


def mutant(machine: str, event: str, old: str, new: str) -> dict[str, Machine]:
    table = CATALOG.machines[machine]
    rows = tuple(replace(row, when=row.when.replace(old, new)) if row.event == event else row for row in table.rows)
    assert rows != table.rows
    return {machine: replace(table, rows=rows)}


def test_tables_without_a_rule_break_the_engine_that_runs_them() -> None:
    """R15: without the fence a request gives its blocks back while the step that names it is in flight; the monitor fails the engine."""
    actions = (*RUNNING, "request[0].abort", "request[0].aborted", "request[0].reap")
    replayed = replay(Story(actions), machines=mutant("request", "reap", "not in_flight and ", ""))
    assert not replayed.agrees
    assert "S7_no_free_under_a_writer" in str(replayed.failure)
    sound = replay(Story(actions))
    assert (sound.verdict, sound.at) == (Verdict.cannot, 8), "with the rule the request still waits for its fence"


def test_an_engine_whose_tables_differ_from_the_models_is_found() -> None:
    """The gate of this engine lets a pause pass that the model's tables do not have."""

    def swap(stage: Stage) -> None:
        table = mutant("engine", "reopen", "no_token and ", "")["engine"]
        stage.follow_tables({"engine": table})

    actions = ("engine.ready", "engine.pause(owner=caller, mode=keep)", "engine.drained_pause")
    replayed = replay(Story(actions), prepare=swap)
    assert replayed.verdict is Verdict.disagrees


# ---- files and the command ----------------------------------------------------------------------------------------------------


def test_a_story_is_read_as_it_was_written(tmp_path: Path) -> None:
    story = Story(RUNNING, 2, 1, about="a step")
    story.write(tmp_path / "deep" / "story.json")
    assert Story.read(tmp_path / "deep" / "story.json") == story
    told = json.loads((tmp_path / "deep" / "story.json").read_text())
    assert told == {
        "quiesce_story": 1, "spec": spec_hash(), "world": "engine", "requests": 2, "capacity": 1, "about": "a step", "actions": list(RUNNING),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a quiesce story"),
        ('{"quiesce_story": 2}', "not a quiesce story of version 1"),
        ('{"quiesce_story": 1, "actions": "engine.ready"}', "actions must be a list"),
        ('{"quiesce_story": 1, "actions": ["ready!"]}', "action 1: 'ready!' is no name of an action"),
        ('{"quiesce_story": 1, "actions": [], "moon": 1}', "unknown field 'moon'"),
        ('{"quiesce_story": 1, "actions": [], "world": "link"}', "only stories of the world `engine`"),
        ('{"quiesce_story": 1, "actions": [], "requests": 0}', "requests must be 1 to 8"),
        ('{"quiesce_story": 1, "actions": [], "capacity": "many"}', "capacity must be 1 to 8"),
        ('{"quiesce_story": 1, "actions": ["engine.sing"]}', "action 1: engine has no event sing"),
        ('{"quiesce_story": 1, "actions": ["request[3].submit"]}', "action 1: this world has no request[3]"),
        ('{"quiesce_story": 1, "actions": ["engine.pause(owner=caller)"]}', "must carry owner, mode"),
        ('{"quiesce_story": 1, "actions": ["pause_token[caller].release"]}', "only together with another"),
    ],
)
def test_what_is_no_story_is_refused_with_its_place(
    told: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "story.json"
    path.write_text(told)
    assert main(["replay", str(path)]) == 2
    assert words in capsys.readouterr().err


def test_the_command_tells_each_action_and_whether_engine_and_model_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "story.json"
    Story(RUNNING).write(path)
    assert main(["replay", str(path)]) == 0
    assert "6 actions: engine and model agree after each" in capsys.readouterr().out
    Story((*RUNNING, "engine.undrain")).write(path)
    assert main(["replay", str(path)]) == 1
    assert "  7  engine.undrain: cannot be driven" in capsys.readouterr().out


def test_the_command_follows_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.ndjson"
    entry = {
        "t": 0.0,
        "pass": 1,
        "machine": "engine",
        "id": "engine",
        "key": 0,
        "event": "ready",
        "from": "starting",
        "to": "running",
        "row": 0,
    }
    lines = [{"quiesce_trace": 2, "spec": spec_hash()}, entry]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert main(["replay", str(path)]) == 0
    assert "1 actions are a path of the model with N=1" in capsys.readouterr().out
    path.write_text("\n".join(map(json.dumps, [*lines, entry])) + "\n")
    assert main(["replay", str(path)]) == 1
    assert "line 3: engine.ready cannot happen while engine.state=running" in capsys.readouterr().out


def test_a_missing_file_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "nothing.json")]) == 2
    assert "nothing.json" in capsys.readouterr().err


def test_a_landing_takes_along_who_ends_in_it_and_a_plan_all_that_it_names() -> None:
    calls = Story(
        (*RUNNING, "step[0].land", "request[0].eos", "step[0].retire", "step[0].land", "request[0].device_fault")
    ).calls
    assert [call.event for call in cause_of(calls, 6).with_it] == ["eos"]
    names = Story(("step[0].plan(requests=0)", "step[0].plan(requests=1)", "step[0].launch", "step[1].plan(requests=0)")).calls
    assert cause_of(names, 0).with_it == [names[1]]


def test_no_story_is_made_without_a_known_action() -> None:
    with pytest.raises(StoryError, match="action 2: engine has no event sing"):
        replay(Story(("engine.ready", "engine.sing")))
