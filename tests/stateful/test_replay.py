"""A run of the real engine is a function of its choices: the same choices give the same transitions, in any process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from quiesce.stateful.choices import POS, Replay, Strategy
from quiesce.stateful.driver import ledger_checkpoint
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.scenario import Client, World, prompt_of, run


def transitions_under(folder: Path, strategy: Strategy) -> tuple[str, list[int]]:
    """(hash of every transition in order, the choices taken) of a busy scenario: ten clients, some of whom hang up."""
    loop = DeterministicLoop(strategy, adversarial=True, timely=True)

    async def body(world: World) -> None:
        clients = [Client(f"r{number}", prompt_of(number, 4 + number), 9) for number in range(10)]
        await asyncio.gather(
            *(world.ask(client, stop_after=2 if number % 3 == 0 else None) for number, client in enumerate(clients))
        )

    engine = run(folder, body, loop=loop, num_kv_blocks=18)
    entries = [
        (entry.get("machine"), entry.get("id"), entry.get("event"), entry.get("pass")) for entry in engine._core.trace.entries
    ]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest(), loop.choices.indices


def test_the_recorded_choices_replay_the_same_transitions(ledger_folder: Path) -> None:
    first, choices = transitions_under(ledger_folder, POS(7))
    again, _ = transitions_under(ledger_folder, Replay(choices))
    other, _ = transitions_under(ledger_folder, POS(8))
    assert any(choices), "the schedule was not the ordinary one"
    assert first == again
    assert first != other, "another schedule gives another history"


def test_processes_with_different_hash_seeds_agree(ledger_folder: Path) -> None:
    here, _ = transitions_under(ledger_folder, POS(7))
    for hash_seed in ("1", "2"):
        command = [sys.executable, __file__, str(ledger_folder)]
        found = subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == here


if __name__ == "__main__":
    print(transitions_under(ledger_checkpoint(Path(sys.argv[1])), POS(7))[0])
