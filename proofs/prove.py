"""`quiesce prove`: every judge over every world of a profile (`proofs/parts.py`). What they found is told, kept as data, and made into
the report for reviewers.

Two parts run at a time, each in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from quiesce.proofs import composed, report
from quiesce.proofs.evidence import Evidence
from quiesce.proofs.explorer import ToolMissing
from quiesce.proofs.parts import PROFILES, Part
from quiesce.proofs.report_verdict import disagreements
from quiesce.statemachine.trace import spec_hash

JOBS = 2


def gather(parts: Sequence[Part], jobs: int = JOBS) -> Iterator[tuple[Part, Evidence | Exception, float]]:
    """Runs the parts, and hands over each as it ends: what it found, or why it could not, and how many seconds it took.

    Raises:
        ToolMissing: a judge is not installed; parts that have not begun are not begun.
    """
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[tuple[Evidence, float]], Part] = {pool.submit(_timed, part): part for part in parts}
        for done in as_completed(running):
            error = done.exception()
            if isinstance(error, ToolMissing):
                pool.shutdown(wait=False, cancel_futures=True)
                raise error
            if isinstance(error, Exception):
                yield running[done], error, 0.0
            else:
                yield running[done], *done.result()


def _timed(part: Part) -> tuple[Evidence, float]:
    began = time.perf_counter()
    return part.work(*part.arguments), time.perf_counter() - began


def told(part: Part, found: Evidence, seconds: float) -> Iterator[str]:
    """What a part found, in lines."""
    yield f"{part.name} ({seconds:.1f} s)"
    for run in found.runs:
        yield f"  {run.num_states:,} states, {run.num_edges:,} edges, {run.seconds:.1f} s, {run.megabytes:.0f} MB ({run.by})"
    if found.judgements:
        held = sum(one.holds for one in found.judgements)
        yield f"  {held} of {len(found.judgements)} properties hold"
    yield from (f"  BROKEN  {one.property}: {', '.join(one.story)}" for one in found.judgements if not one.holds)
    yield from (f"  NEVER  {one.property}" for one in found.witnesses if not one.holds)
    if found.proofs:
        unmet = sum(proof.num_unmet for proof in found.proofs)
        yield f"  {sum(proof.num_obligations for proof in found.proofs):,} obligations for {len(found.proofs)} sentences, {unmet} not met"
        yield from (f"  NOT MET  {proof.property}" for proof in found.proofs if proof.num_unmet)
    if found.mutants:
        killed = sum(bool(mutant.killed_by) for mutant in found.mutants)
        certified = sum(not mutant.killed_by and bool(mutant.certificate) for mutant in found.mutants)
        yield f"  {len(found.mutants)} mutants: {killed} killed, {certified} shown to be none"
        yield from (f"  SURVIVED  {mutant.name}" for mutant in found.mutants if not mutant.killed_by and not mutant.certificate)
    if found.rules:
        yield f"  {sum(bool(rule.broken) for rule in found.rules)} of {len(found.rules)} rules break a promise when they are taken away"
    if found.fairness:
        yield f"  {sum(bool(names) for names in found.fairness.values())} of {len(found.fairness)} fairness marks are needed"


def run(profile: str, out: Path) -> int:
    """Checks, tells, and writes `evidence.json`, `REPORT.md` and `report.html` to the folder.

    Returns:
        The exit status: 1 if anything does not hold, two judges disagree, or a part failed.

    Raises:
        ToolMissing: a judge is not installed; names the package.
    """
    parts = PROFILES[profile]()
    evidence, failed = Evidence(spec_hash(), profile), 0
    with tqdm(total=len(parts), unit="part", disable=not sys.stderr.isatty()) as bar:
        for part, found, seconds in gather(parts):
            bar.update()
            if isinstance(found, Exception):
                failed += 1
                tqdm.write(f"{part.name}: FAILED, {type(found).__name__}: {found}", file=sys.stdout)
                continue
            tqdm.write("\n".join(told(part, found, seconds)), file=sys.stdout)
            evidence.absorb(found)
            evidence.put_in_order()
            evidence.write(out / "evidence.json")  # a run that is cut short has found what it has found
    paths = report.write(evidence, out, view=composed.view())
    differ = disagreements(evidence)
    for line in differ:
        print(f"DISAGREE  {line}")
    wrong = len(evidence.broken) + sum(proof.num_unmet for proof in evidence.proofs) + len(differ)
    print(
        f"{len(evidence.judgements)} judgements, {wrong} that do not hold, {failed} parts that failed: {', '.join(map(str, paths))}"
    )
    return 1 if wrong or failed else 0
