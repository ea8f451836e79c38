"""Hunts in whatever `quiesce` is on the path: `finder.py COUNT LIMIT FIRST APART` prints one JSON object a line, for each hunt.

The monitor is off, so that the run goes on and who notices is somebody outside where anybody outside can. What was found is made small
and played once more with the monitor on, to say whether it would have been the first.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from quiesce.stateful.driver import ledger_checkpoint
from quiesce.stateful.fuzz.hunt import COLLECT_AFTER, drawn_schedule
from quiesce.stateful.fuzz.oracles import OUTSIDE
from quiesce.stateful.fuzz.runs import Outcome, run
from quiesce.stateful.fuzz.schedule import Schedule, load
from quiesce.stateful.fuzz.shrink import Shrinker

SHRINKING_RUNS = 80


def hunt(folder: Path, first: int, limit: int) -> dict[str, Any]:
    """One hunt. `examples` is None where nothing was found."""
    for seed in range(first, first + limit):
        schedule, strategy = drawn_schedule(seed)
        outcome = run(folder, schedule, strategy, monitor=False)
        if outcome.problem is not None:
            return {"examples": seed - first + 1, **_small(folder, outcome)}
    return {"examples": None}


def _small(folder: Path, outcome: Outcome) -> dict[str, Any]:
    shrinker = Shrinker(lambda candidate: run(folder, candidate, monitor=False), outcome.schedule, SHRINKING_RUNS)
    return judged(folder, shrinker.shrink())


def judged(folder: Path, schedule: Schedule) -> dict[str, Any]:
    """Who notices when this is played: the outside with the monitor off, the monitor when it is on."""
    found = run(folder, schedule, monitor=False)
    inside = [problem.text for problem in run(folder, schedule).problems if "ConformanceError" in problem.text]
    outside = [problem for problem in found.problems if problem.oracle in OUTSIDE]
    first = found.problem
    return {
        "oracle": first.oracle if first else "", "failure": first.text[:200] if first else "",
        "outside": list(dict.fromkeys(problem.oracle for problem in outside)), "monitor": inside[0][:200] if inside else "",
        "num_actions": len(schedule.actions), "num_deviations": schedule.num_deviations, "schedule": schedule.to_json(),
    }  # fmt: skip


def main(count: str, limit: str, first: str, apart: str) -> None:
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    with tempfile.TemporaryDirectory() as name:
        folder = ledger_checkpoint(Path(name) / "ledger")
        for number in range(int(count)):
            print(json.dumps(hunt(folder, int(first) + number * int(apart), int(limit))), flush=True)


def replay(path: str) -> None:
    """Plays a witness again."""
    with tempfile.TemporaryDirectory() as name:
        folder = ledger_checkpoint(Path(name) / "ledger")
        print(json.dumps({"examples": 0, **judged(folder, load(Path(path)))}))


if __name__ == "__main__":
    (replay if len(sys.argv) == 2 else main)(*sys.argv[1:])
