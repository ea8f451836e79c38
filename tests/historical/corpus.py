"""Real lifecycle bugs of other engines, each put back into ours as a patch of a few lines, and hunted by the fuzzer.

A patch begins with what it is: `Class`, `Reference` (the public issue or pull request) and `Story`; then the unified diff. Nothing here is
applied to the working tree: a patched copy of the engine is made elsewhere, and the hunt runs on that one, in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATCHES = Path(__file__).parent / "patches"
SEEDS_APART = 100_000
"""Between the first seeds of two hunts."""


@dataclass(frozen=True, slots=True)
class Bug:
    name: str
    kind: str
    """Its class in the catalogue: A leak, B use after release, C lost answer, D deadlock, E double finish, F stale after wake or
    update, G admission or acknowledgement too early, H identity, I order, J counts, K death, X by reading."""
    reference: str
    story: str
    diff: str

    @property
    def num_changed(self) -> int:
        """Changed lines: those that come and those that go."""
        return sum(line[:1] in ("+", "-") and line[:3] not in ("+++", "---") for line in self.diff.splitlines())

    @property
    def files(self) -> list[str]:
        return [line.removeprefix("+++ b/") for line in self.diff.splitlines() if line.startswith("+++ ")]


@dataclass(frozen=True, slots=True)
class Found:
    """One hunt. `examples` is None where nothing was found."""

    examples: int | None
    oracle: str = ""
    failure: str = ""
    num_actions: int = 0
    num_deviations: int = 0


def load(path: Path) -> Bug:
    head, _, diff = path.read_text(encoding="utf-8").partition("\n\n")
    facts = dict(line.split(": ", 1) for line in head.splitlines())
    return Bug(path.stem, facts["Class"], facts["Reference"], facts["Story"], diff)


def corpus() -> list[Bug]:
    return [load(path) for path in sorted(PATCHES.glob("*.patch"))]


def patched_tree(bug: Bug, folder: Path) -> Path:
    """A package `quiesce` with the bug in it, under `folder`, which goes to PYTHONPATH. What is not patched are links.

    Raises:
        subprocess.CalledProcessError: the patch does not apply.
    """
    package = folder / "quiesce"
    package.mkdir(parents=True)
    for part in (ROOT / ".src" / "quiesce").iterdir():
        if part.name != "engine" and part.name != "__pycache__":
            (package / part.name).symlink_to(part.resolve())
    shutil.copytree(
        ROOT / "engine", package / "engine", ignore=shutil.ignore_patterns("__pycache__", "checkpoint", "*.safetensors")
    )
    if not (package / "engine" / "tiny" / "checkpoint").exists():
        (package / "engine" / "tiny" / "checkpoint").symlink_to(ROOT / "engine" / "tiny" / "checkpoint")
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder)}
    subprocess.run(
        ["git", "apply", "-p1", "-C1", "-"],
        cwd=package,
        input=bug.diff,
        text=True,
        check=True,
        capture_output=True,
        env=environment,
    )
    return folder


def hunts(bug: Bug, folder: Path, count: int = 1, limit: int = 1000, first: int = 0) -> list[Found]:
    """Hunts for the bug `count` times, each time from other seeds, at most `limit` examples each."""
    command = [sys.executable, str(Path(__file__).parent / "finder.py"), str(count), str(limit), str(first)]
    environment = os.environ | {"PYTHONPATH": str(patched_tree(bug, folder))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{bug.name}: {done.stderr[-2000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [Found(**one) for one in found]
