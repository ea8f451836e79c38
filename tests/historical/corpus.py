"""Real lifecycle bugs of other engines, each put back into ours as a patch of a few lines, and hunted by the fuzzer.

A patch begins with what it is: `Class`, `Reference` (the public issue or pull request) and `Story`; then the unified diff. Nothing here is
applied to the working tree: a patched copy of the engine is made elsewhere, and the hunt runs on that one, in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SEEDS_APART = 100_000
"""Between the first seeds of two hunts."""
PATCHES, WITNESSES = Path(__file__).parent / "patches", Path(__file__).parent / "witnesses"


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
    def digest(self) -> str:
        """Another patch has another one."""
        return hashlib.sha256(self.diff.encode()).hexdigest()[:12]

    @property
    def files(self) -> list[str]:
        return [line.removeprefix("+++ b/") for line in self.diff.splitlines() if line.startswith("+++ ")]


@dataclass(frozen=True, slots=True)
class Found:
    """One hunt. `examples` is None where nothing was found, and all else is empty."""

    examples: int | None
    oracle: str = ""
    """Who noticed first, the outside before the inside."""
    failure: str = ""
    outside: tuple[str, ...] = ()
    """All that somebody outside noticed, with the monitor off."""
    monitor: str = ""
    """What the monitor says of it when it is on."""
    num_actions: int = 0
    num_deviations: int = 0
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """The witness, made small."""


def load(path: Path) -> Bug:
    head, _, diff = path.read_text(encoding="utf-8").partition("\n\n")
    facts = dict(line.split(": ", 1) for line in head.splitlines())
    return Bug(path.stem, facts["Class"], facts["Reference"], facts["Story"], diff)


def corpus() -> list[Bug]:
    return [load(path) for path in sorted(PATCHES.glob("*.patch"))]


def patched_tree(bug: Bug, folder: Path) -> Path:
    """A package `quiesce` with the bug in it, under `folder`, which goes to PYTHONPATH. What is not patched are links.

    Raises:
        ValueError: the patch does not apply.
    """
    package = folder / "quiesce"
    package.mkdir(parents=True)
    for part in (ROOT / ".src" / "quiesce").iterdir():
        if part.name != "engine" and part.name != "__pycache__":
            (package / part.name).symlink_to(part.resolve())
    shutil.copytree(ROOT / "engine", package / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    if not applies(bug, package):
        raise ValueError(f"{bug.name} does not apply")
    return folder


def applies(bug: Bug, package: Path) -> bool:
    """Puts the bug into this package, if it can be."""
    done = subprocess.run(
        ["git", "apply", "-p1", "-C1", "-"],
        cwd=package,
        input=bug.diff,
        text=True,
        check=False,
        capture_output=True,
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(package.parent)},
    )
    return done.returncode == 0


def finder(bug: Bug, folder: Path, *arguments: object, cpu_s: int = 0) -> list[Found]:
    """What `finder.py` says with the bug in the engine, as far as it comes in so many seconds of CPU (0: to its end).

    Raises:
        RuntimeError: it fails.
    """
    tree = folder if (folder / "quiesce").exists() else patched_tree(bug, folder)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "finder.py"), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))) if cpu_s else None,
    )
    if done.returncode not in (0, -signal.SIGXCPU):
        raise RuntimeError(f"{bug.name}: {done.stderr[-2000:]}")
    whole = done.stdout[: done.stdout.rfind("\n") + 1]
    return [from_json(json.loads(line)) for line in whole.splitlines()]


def hunts(bug: Bug, folder: Path, count: int = 1, limit: int = 1000, first: int = 0, cpu_s: int = 0) -> list[Found]:
    """Hunts for the bug `count` times, each time from other seeds, at most `limit` examples each."""
    return finder(bug, folder, count, limit, first, SEEDS_APART, cpu_s=cpu_s)


def from_json(said: Mapping[str, Any]) -> Found:
    """A hunt, as the finder prints it."""
    return Found(**{**said, "outside": tuple(said.get("outside", ()))})


def witness_of(bug: Bug) -> Path:
    """Where the smallest schedule is that shows the bug: one of the fuzzer's files."""
    return WITNESSES / f"{bug.name}.json"
