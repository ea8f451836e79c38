"""`quiesce fuzz`, and what `quiesce replay` does with a schedule that the fuzzer wrote."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from quiesce.stateful.driver import ledger_checkpoint
from quiesce.stateful.fuzz.hunt import Hunt, told
from quiesce.stateful.fuzz.runs import Outcome, rig_for, run
from quiesce.stateful.fuzz.schedule import VERSION, Schedule, load

QUICK_RUNS = 1000
QUICK_HTTP = 10
DEEP_S = 20 * 60.0
OUT = Path("build/fuzz")
REGRESSION = '''"""{failure}"""

from __future__ import annotations

from pathlib import Path

from quiesce.stateful.fuzz.runs import run
from quiesce.stateful.fuzz.schedule import from_json

SCHEDULE = {schedule}


def test_{name}(ledger_folder: Path) -> None:
    outcome = run(ledger_folder, from_json(SCHEDULE))
    assert outcome.problem is None, outcome.problem
'''


def fuzz(profile: str, hours: float | None, first: int, out: Path, device: str = "ledger") -> int:
    """Hunts; the exit status. 1: something was found.

    Args:
        profile: `quick` (a bounded number of runs), `deep` (20 minutes) or `soak` (`hours`). The last two ask the oracle of the model in
            each run, the first in one of five.
        first: the first seed.
        out: where failures and the coverage are written.
        device: `ledger`; `cpu` or `cuda` for the real ones; `boundary` for the ledger in another process's place.
    """
    if device == "cuda" and not has_gpu():
        print(
            "no GPU here: the CUDA device's code runs over this machine's memory, with plain torch in the place of its kernels"
        )
    with tempfile.TemporaryDirectory(prefix="quiesce-fuzz-") as folder:
        hunt = Hunt(ledger_checkpoint(Path(folder) / "ledger"), out, sys.stdout, device, 5 if profile == "quick" else 1)
        if device == "ledger":
            hunt.play_corpus()
        if profile == "quick":
            report = hunt.for_seeds(first, QUICK_RUNS if device == "ledger" else QUICK_RUNS // 10)
        else:
            report = hunt.for_seconds(DEEP_S if profile == "deep" else 3600 * (hours or 1.0), first)
    print(told(report))
    print(f"coverage: {report.coverage.save(out / 'coverage.json')}")
    status = 1 if report.findings or report.left else 0
    if device == "ledger" and profile == "quick":
        print("through the boundary of a core process:")
        return max(status, fuzz(profile, hours, first, out / "boundary", "boundary"))
    return status


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


def fuzz_http(profile: str, hours: float | None, first: int) -> int:
    """Hunts over real HTTP, in real time; the exit status. 1: something was found. A program is a function of its seed, its course is not.

    Half of the programs, or of the time, on a server whose core is killed and started again.
    """
    from quiesce.stateful.fuzz.through_http import hunt, until

    seconds = (DEEP_S if profile == "deep" else 3600 * (hours or 1.0)) / 2
    status = 0
    for kills in (False, True):
        found = hunt(
            range(first, first + QUICK_HTTP) if profile == "quick" else until(seconds, first), kills, progress=sys.stdout
        )
        for name, problems in found.items():
            print(f"{name}:", *problems, sep="\n  ")
            status = 1
    return status


def is_schedule(path: Path) -> bool:
    """Whether a file is one of the fuzzer's."""
    try:
        with path.open(encoding="utf-8") as lines:
            return f'"quiesce_schedule": {VERSION}' in lines.read(200)
    except (OSError, UnicodeDecodeError):
        return False


def rerun(path: Path, diagram: Path | None = None, regression: Path | None = None) -> int:
    """Plays a schedule again and tells what happens; the exit status. 1: it fails.

    Args:
        diagram: where a Mermaid sequence diagram of it is written, if anywhere.
        regression: where a pytest file is written that plays it, if anywhere.

    Raises:
        ValueError: the file is no schedule.
        OSError: it cannot be read.
    """
    schedule = load(path)
    with tempfile.TemporaryDirectory(prefix="quiesce-fuzz-") as folder:
        outcome = run(ledger_checkpoint(Path(folder) / "ledger"), schedule, told=True, follow=True)
    rig_for(schedule.device).close_all()
    print(story_of(outcome))
    if diagram is not None:
        diagram.write_text(outcome.chronicle.mermaid(), encoding="utf-8")
        print(f"diagram: {diagram}")
    if regression is not None:
        regression.write_text(regression_of(outcome.schedule, regression.stem.removeprefix("test_")), encoding="utf-8")
        print(f"regression: {regression}")
    return 0 if outcome.problem is None else 1


def story_of(outcome: Outcome) -> str:
    """What happened, the choices that were not ordinary, and the verdict."""
    lines = [str(outcome.chronicle)]
    if outcome.deviations:
        lines += ["not first in, first out:", *(f"  {deviation}" for deviation in outcome.deviations)]
    lines += [f"{problem.oracle}: {problem.text}" for problem in outcome.problems] or ["nothing is wrong"]
    return "\n".join(lines)


def regression_of(schedule: Schedule, name: str) -> str:
    """A pytest file that plays the schedule and wants nothing to be wrong."""
    return REGRESSION.format(failure=schedule.failure.replace('"', "'").splitlines()[0] if schedule.failure else name,
                             schedule=repr(schedule.to_json()), name=name)  # fmt: skip
