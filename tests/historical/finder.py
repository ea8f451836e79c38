"""Hunts in whatever `quiesce` is on the path: `finder.py COUNT LIMIT FIRST` prints one JSON object for each hunt.

The monitor is off, so that who notices is somebody outside where anybody outside can.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from quiesce.stateful.driver import ledger_checkpoint
from quiesce.stateful.fuzz.hunt import drawn_schedule
from quiesce.stateful.fuzz.runs import run
from quiesce.stateful.fuzz.shrink import Shrinker

SEEDS_APART = 100_000
SHRINKING_RUNS = 150


def hunt(folder: Path, first: int, limit: int) -> dict[str, Any]:
    for seed in range(first, first + limit):
        schedule, strategy = drawn_schedule(seed)
        outcome = run(folder, schedule, strategy, monitor=False)
        if outcome.problem is not None:
            shrinker = Shrinker(lambda candidate: run(folder, candidate, monitor=False), outcome.schedule, SHRINKING_RUNS)
            small = shrinker.shrink()
            return {
                "examples": seed - first + 1, "oracle": small.oracle, "failure": small.failure[:200],
                "num_actions": len(small.actions), "num_deviations": small.num_deviations,
            }  # fmt: skip
    return {"examples": None}


def main(count: int, limit: int, first: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ledger_checkpoint(Path(folder) / "ledger")
        print(json.dumps([hunt(checkpoint, first + number * SEEDS_APART, limit) for number in range(count)]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
