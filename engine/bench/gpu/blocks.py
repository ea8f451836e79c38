"""The blocks of `make gpu`, in their order, and how one is run: in a process of its own, until it ends or its time is over."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from quiesce.engine.bench.gpu.ground import ASSUMED, Ground, Tell, as_line, from_line, missing
from quiesce.engine.bench.result import Figure

TOTAL_S: Final = 590.0
GRACE_S: Final = 5.0
"""Between a block's own limit and the end of its process."""
TOLD: Final = 40
"""Lines of what a failed block printed that are told."""
ENGINE: Final = (
    "torch",
    "triton",
    "cuda.bindings.driver",
    "transitions",
    "safetensors",
    "tokenizers",
    "jinja2",
    "tqdm",
)


@dataclass(frozen=True, slots=True)
class Block:
    """One block."""

    name: str
    limit_s: float
    needs: tuple[str, ...]
    """Packages."""
    place: str
    """Module and function."""

    def work(self) -> Callable[[Ground, Tell], None]:
        module, function = self.place.split(":")
        found: Callable[[Ground, Tell], None] = getattr(importlib.import_module(f"quiesce.engine.bench.gpu.{module}"), function)
        return found


BLOCKS: Final = (
    Block("ceilings", 40, ("torch",), "ceilings:measure"),
    Block("kernels", 90, ("torch", "triton"), "kernels:measure"),
    Block("throughput", 110, ENGINE, "serving:throughput"),
    Block("peers", 90, (*ENGINE, "transformers", "psutil"), "peers:measure"),
    Block("latency", 50, ENGINE, "serving:latency"),
    Block("large", 110, ENGINE, "serving:large"),
    Block("memory", 60, ENGINE, "memory:measure"),
    Block("gating", 40, ENGINE, "gating:measure"),
    Block("fuzz", 80, (*ENGINE, "hypothesis"), "hunting:measure"),
)  # fmt: skip
BY_NAME: Final = {block.name: block for block in BLOCKS}


@dataclass
class Ran:
    """What became of a block."""

    block: str
    figures: list[Figure]
    seconds: float
    failure: str = ""
    """Why it ended early, with what it printed last; empty if it did not."""


def run_here(block: Block, ground: Ground, tell: Tell) -> Ran:
    """In this process. What it raises is told and goes no further."""
    began_s, figures = time.monotonic(), list[Figure]()

    def keep(figure: Figure) -> None:
        shown = replace(figure, floor=None, aim=None) if ground.dry else figure
        figures.append(shown)
        tell(shown)

    needed = [name for name in block.needs if not (ground.dry and name in ("triton", "cuda.bindings.driver"))]
    failure = missing(*needed)
    if failure:
        keep(Figure(block.name, "not run", "", skipped=failure))
    else:
        try:
            block.work()(ground, keep)
        except Exception as error:  # noqa: BLE001  a block's failure costs that block alone
            failure = traceback.format_exc()
            keep(Figure(block.name, "ended early", "", skipped=f"{type(error).__name__}: {error}"[:300]))
        finally:
            ground.close()
    return Ran(block.name, figures, time.monotonic() - began_s, failure)


def run_apart(command: Sequence[str], block: str, limit_s: float, tell: Tell) -> Ran:
    """In a process of its own, which writes a line of JSON for each figure to its output; all else that is said goes to its errors.

    When the time is over the process and its children are killed; the figures told so far count.
    """
    began_s, figures, said = time.monotonic(), list[Figure](), list[str]()

    def listen(lines: Iterable[str]) -> None:
        for line in lines:
            figures.append(from_line(json.loads(line)))
            tell(figures[-1])

    def overhear(lines: Iterable[str]) -> None:
        for line in lines:
            said.append(line)
            del said[:-TOLD]

    failure = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        ways = ((listen, process.stdout), (overhear, process.stderr))
        readers = [threading.Thread(target=work, args=(pipe,), daemon=True) for work, pipe in ways]
        for reader in readers:
            reader.start()
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            failure = f"was ended after {limit_s:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        for reader in readers:
            reader.join(GRACE_S)
    if status != 0 and not failure:
        failure = f"ended with status {status}"
    if failure:
        figures.append(Figure(block, "ended early", "", skipped=failure))
        tell(figures[-1])
        failure += "\n" + "".join(said)
    return Ran(block, figures, time.monotonic() - began_s, failure)


def child_main(name: str, limit_s: float, ceilings: dict[str, float]) -> int:
    """What the process of one block does."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not look like a figure

    def tell(figure: Figure) -> None:
        answers.write(json.dumps(as_line(figure)) + "\n")
        answers.flush()

    ran = run_here(BY_NAME[name], Ground(False, limit_s, ceilings), tell)
    if ran.failure:
        print(ran.failure, file=sys.stderr)
    return 1 if "Traceback" in ran.failure else 0


def run_all(names: Sequence[str], dry: bool, tell: Tell) -> list[Ran]:
    """These blocks, one after the other, in ten minutes at most."""
    began_s, found, ceilings = time.monotonic(), list[Ran](), dict(ASSUMED)
    for name in names:
        block = BY_NAME[name]
        if dry:
            found.append(run_here(block, Ground(True, block.limit_s, ceilings), tell))
            continue
        limit_s = min(block.limit_s, TOTAL_S - (time.monotonic() - began_s) - GRACE_S)
        if limit_s < GRACE_S:
            tell(Figure(name, "not run", "", skipped="the ten minutes are over"))
            found.append(Ran(name, [Figure(name, "not run", "", skipped="the ten minutes are over")], 0.0))
            continue
        asked = json.dumps({"name": name, "limit_s": limit_s - GRACE_S, "ceilings": ceilings})
        found.append(run_apart([sys.executable, "-m", "quiesce.engine.bench.gpu", "--block", asked], name, limit_s, tell))
        ceilings |= {f.name: f.median for f in found[-1].figures if f.name in ASSUMED and f.median}
    return found


def versions() -> dict[str, Any]:
    """Of what the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {}
    for name in ("torch", "triton", "cuda-bindings", "transformers", "transitions", "numpy", "hypothesis"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
