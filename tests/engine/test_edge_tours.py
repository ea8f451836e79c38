"""The real engine on the real CPU device takes edges of the model's abstraction, and refuses what the tables refuse: a part of them, by lot.

All of them, with the counts: `quiesce tours` (two minutes), `quiesce tours --requests 2` (ten).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce.engine.cli import main
from quiesce.engine.errors import EngineDead, EngineError
from quiesce.proofs.path import Call, Path
from quiesce.proofs.tours import Abstraction, cause_of
from quiesce.proofs.world import World
from quiesce.stateful.edge_tours import Broken, Tourist
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.replay import Player
from quiesce.stateful.stage import Cause, Stage

SEEDS, TURNS = range(20), 50


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """An engine that fails says so, at length."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def seen() -> Abstraction:
    return Abstraction(World.engine(2))


@pytest.fixture(scope="module")
def tourist(seen: Abstraction) -> Tourist:
    """Has walked: after each turn records and status were where the model is, and every refused call met the declared error."""
    logging.disable(logging.CRITICAL)
    walker = Tourist(seen)
    for seed in SEEDS:
        walker.walk(seed, TURNS)
    return walker


def test_the_real_engine_follows_the_model_turn_by_turn(tourist: Tourist) -> None:
    assert tourist.coverage.num_turns >= 400
    assert len(tourist.coverage.edges) >= 200


def test_what_is_refused_meets_the_declared_error_and_changes_nothing(tourist: Tourist) -> None:
    cells = tourist.coverage.cells
    assert len(cells) >= 35
    assert {"TransitionConflict", "Unavailable", "EngineDead"} <= set(cells.values())
    assert {event for _, _, event, _ in cells} >= {
        "sleep",
        "wake_up",
        "begin_update",
        "clear",
        "submit",
        "load",
        "rollback",
        "pause",
    }


def test_a_turn_that_an_engine_makes_otherwise_is_noticed(seen: Abstraction, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(stage: Stage) -> None:
        stage.core.lifecycle.drained_pause = lambda: False  # type: ignore[method-assign]
        stage.core.lifecycle._looks = [look for look in stage.core.lifecycle._looks if look.__name__ != "drained_pause"]

    plain = Stage.start

    async def start(stage: Stage) -> None:
        forgetful(stage)
        await plain(stage)

    monkeypatch.setattr(Stage, "start", start)
    with pytest.raises(Broken, match="the model allows it"):
        Tourist(seen).drive([("engine.ready",), ("engine.pause(owner=caller, mode=keep)",), ("engine.drained_pause",)])


def test_a_refusal_with_another_error_is_noticed(seen: Abstraction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.engine.operations.error_for", lambda refusal, *_: EngineError("no"))
    with pytest.raises(Broken, match="is refused as"):
        Tourist(seen).drive([("engine.ready",)])


def test_an_abstract_state_is_a_number_and_back(seen: Abstraction) -> None:
    number = seen.number(seen.model.initial)
    assert seen.words(number) == ("starting", "resident", "resident", "stable", "absent", "absent")
    path = Path(Tourist(seen).tables)
    for name in ("request[1].submit", "engine.ready"):
        path.take(Call.parse(name))
    assert seen.words(seen.number(path.at)) == ("running", "resident", "resident", "stable", "absent", "received")


def test_the_command_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["tours"]) == 2
    assert "install the package gcc" in capsys.readouterr().err


def test_modes_and_policies_make_no_other_cause() -> None:
    assert cause_of("engine.sleep(mode=keep, weights=none, kv_cache=offload)") == cause_of(
        "engine.sleep(mode=abort, weights=none, kv_cache=discard)"
    )
    assert cause_of("engine.wake_up(tags=weights)") != cause_of("engine.wake_up(tags=kv_cache)")


CALLS = (
    "engine.pause(owner=caller, mode=keep)", "engine.resume(owner=caller)", "engine.sleep(mode=keep, weights=offload, kv_cache=discard)",
    "engine.wake_up(tags=both)", "engine.clear", "engine.begin_update(mode=keep)", "weights.load", "weights.rollback",
)  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_in_the_pass_in_which_the_engine_stops_is_told_what_the_front_end_says_afterwards(
    seen: Abstraction, name: str
) -> None:
    loop = DeterministicLoop(timely=True)
    told: list[Any] = []

    async def main() -> None:
        stage = Stage(loop, 2)
        player = Player(stage, Path(Tourist(seen).tables))
        await stage.start()
        await player.make(Cause(Call.parse("engine.ready")))
        ending = asyncio.create_task(stage.engine.shutdown(0))
        await loop.wait_idle()
        await stage.cause(Cause(Call.parse(name), is_in_vain=True))
        told.append(stage.answer(stage.last_call))
        await ending
        await stage.finish()

    loop.run(main())
    assert type(told[0]) is EngineDead, told
