"""The exhaustive explorer: the model printed as C (`proofs/explorer_source.py`), compiled here, run breadth first over packed states.

What is found is exact: every state is kept whole, nothing is hashed away. A violation is told as a shortest story of action names.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from quiesce.proofs.explorer_source import Layout, Printer, header, promises
from quiesce.proofs.expr import Expr
from quiesce.proofs.model import Model
from quiesce.proofs.symmetry import Symmetry

HERE = Path(__file__).parent
FULL = 2
"""How a program ends that needs more memory than it may take."""


class ToolMissing(RuntimeError):
    """A program that the proofs need is not installed."""


@dataclass(frozen=True, slots=True)
class MoveProperty:
    """A promise about moves: whenever an action of `before` is taken, its tree holds in the state that the action leaves."""

    name: str
    sentence: str
    before: Mapping[int, Expr]
    """By the action's number. What is promised of the state after is said of the one before (`proofs/moves.py: after`)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an exhaustive run found."""

    num_states: int
    """Under symmetry, up to the order of requests; so are edges and dead ends."""
    num_edges: int
    depth: int
    num_dead: int
    """States without any way on."""
    fired: tuple[int, ...]
    """How often each action is taken, in all states."""
    stories: Mapping[str, tuple[str, ...]]
    """Violated properties, each with a shortest way to it; the last name is the move where it is one on moves."""
    seconds: float
    """Of processor time; there is one thread."""
    all_states: int
    """Each order of requests counted: what a run without symmetry finds; so are edges and dead ends."""
    all_edges: int
    all_dead: int
    peak_bytes: int
    """Memory, at the highest."""
    num_bits: int
    """Of a packed state."""


def explore(
    model: Model,
    always: Mapping[str, Expr],
    moves: Sequence[MoveProperty] = (),
    one_pass: bool = False,
    megabytes: int = 4096,
    *,
    symmetric: bool = False,
    progress: bool | None = None,
) -> Verdict:
    """Runs the explorer to the end of the world.

    Args:
        symmetric: explore states that differ in the order of requests only once.
        progress: whether to show a bar; None: if somebody is there to see it.

    Raises:
        ToolMissing: there is no C compiler.
        MemoryError: the states need more than `megabytes`.
        ValueError: a state takes more than 128 bits.
        NotSymmetric: `symmetric`, and the world or what is promised of it tells requests apart.
    """
    symmetry = Symmetry(model) if symmetric else None
    if symmetry:
        symmetry.check(always, {move.name: move.before for move in moves})
    printer = Printer(model, Layout.of(model, symmetry.columns if symmetry else ()))
    world = header(printer, one_pass) + promises(printer, list(always.values()), [move.before for move in moves])
    with compiled("explorer.c", world) as binary:
        text = run(binary, megabytes, model.name, progress=progress)
    return _verdict(model, symmetry, printer.layout, [*always], [move.name for move in moves], text)


@contextmanager
def compiled(program: str, world: str) -> Iterator[Path]:
    """One of the programs beside this file, compiled with a world.

    Raises:
        ToolMissing: there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ToolMissing("a C compiler is needed: install the package gcc")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "world.h").write_text(world, encoding="utf-8")
        binary = Path(name) / "program"
        command = [compiler, "-Og", "-std=gnu11", "-I", name, "-o", str(binary), str(HERE / program)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        yield binary


def run(binary: Path, megabytes: int, title: str, said: str = "", progress: bool | None = None) -> str:
    """What a compiled program prints, told `said`.

    Raises:
        MemoryError: it needs more than `megabytes`.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    command = [str(binary), str(megabytes), *(["tell"] if shown else [])]
    with tempfile.TemporaryFile("w+") as heard, tempfile.TemporaryFile("w+") as printed:
        heard.write(said)
        heard.seek(0)
        child = subprocess.Popen(command, stdin=heard, stdout=printed, stderr=subprocess.PIPE, text=True)
        with child, tqdm(desc=title, unit=" states", unit_scale=True, disable=not shown) as bar:
            for line in child.stderr or ():
                done, found, edges, peak = map(int, line.split())
                bar.set_postfix(found=f"{found:,}", edges=f"{edges:,}", MB=peak >> 20, refresh=False)
                bar.update(done - bar.n)
        if child.returncode == FULL:
            raise MemoryError(f"the states of {title} need more than {megabytes} MB")
        if child.returncode:
            raise RuntimeError(f"the search of {title} ended with {child.returncode}")
        printed.seek(0)
        return printed.read()


def _verdict(
    model: Model, symmetry: Symmetry | None, layout: Layout, always: Sequence[str], moves: Sequence[str], text: str
) -> Verdict:
    found: dict[str, list[int]] = {}
    stories: dict[str, tuple[str, ...]] = {}
    seconds = 0.0
    for line in text.splitlines():
        word, *rest = line.split()
        if word == "seconds":
            seconds = float(rest[0])
            continue
        first, *numbers = map(int, rest)
        if word not in ("always", "move"):
            found[word] = [first, *numbers]
            continue
        name = (always if word == "always" else moves)[first]
        told = {name: tuple(model.actions[number].name for number in numbers)}
        for namesake, story in (symmetry.stories(name, numbers, word == "move") if symmetry else told).items():
            if namesake not in stories or len(story) < len(stories[namesake]):
                stories[namesake] = story
    (states, edges, depth, dead), (all_states, all_edges, all_dead) = found["count"], found["all"]
    fired = symmetry.evened(found["fired"]) if symmetry else tuple(found["fired"])
    return Verdict(
        states, edges, depth, dead, fired, stories, seconds, all_states, all_edges, all_dead, found["peak"][0], layout.num_bits
    )
