"""The declaration as it was at a revision of git, or as it stands in the checkout, read by another process."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from quiesce.spec.language import (
    Error,
    Event,
    Fact,
    Fairness,
    Ignored,
    Judge,
    Machine,
    Modality,
    Owner,
    Property,
    Refused,
    Row,
)

CHECKOUT: Final = "the checkout"
TIMEOUT_S: Final = 60.0
T = TypeVar("T")


class RevisionError(ValueError):
    """There is no declaration to compare with; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What `spec/` says, in the language of today."""

    name: str
    machines: dict[str, Machine]
    facts: dict[str, Fact]
    properties: dict[str, Property]
    pass_order: tuple[str, ...]


def two(text: str, folder: Path | None = None) -> tuple[Declaration, Declaration]:
    """The declarations to compare: `REV` against the checkout as it stands, or `REV..REV2`.

    Args:
        folder: any folder of the checkout; None: the present one.

    Raises:
        RevisionError: no checkout, no such revision, no `spec/` in it, or one that is malformed or of another language.
    """
    root = Path(_git(folder or Path.cwd(), "rev-parse", "--show-toplevel").decode().strip())
    first, dots, second = text.partition("..")
    if not first or (dots and not second):
        raise RevisionError(f"{text!r} is neither REV nor REV..REV2")
    return _at(root, first), _at(root, second) if dots else _as_it_stands(root)


def _git(folder: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise RevisionError("git is not installed; it comes with the Debian package git") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise RevisionError(f"git {arguments[0]}: {lines[-1]}")
    return done.stdout


def _at(root: Path, revision: str) -> Declaration:
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    except RevisionError as error:
        raise RevisionError(f"{revision} is no revision of this repository; a shallow clone has only the last ones") from error
    if not _git(root, "ls-tree", "--name-only", commit, "spec/__init__.py").strip():
        raise RevisionError(f"{revision} has no spec/")
    with (
        tempfile.TemporaryDirectory() as temporary,
        tarfile.open(fileobj=io.BytesIO(_git(root, "archive", commit, "spec"))) as packed,
    ):
        packed.extractall(Path(temporary) / "quiesce", filter="data")
        return _read(Path(temporary), revision)


def _as_it_stands(root: Path) -> Declaration:
    if not (root / "spec" / "__init__.py").exists():
        raise RevisionError(f"{root} has no spec/")
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copytree(root / "spec", Path(temporary) / "quiesce" / "spec", ignore=shutil.ignore_patterns("__pycache__"))
        return _read(Path(temporary), CHECKOUT)


def _read(folder: Path, name: str) -> Declaration:
    """What `snapshot.py` finds in a folder, in the language of today."""
    (folder / "quiesce" / "__init__.py").touch()
    command = [sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name("snapshot.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise RevisionError(f"{name}: its declaration cannot be read: {lines[-1]}")
    found = json.loads(done.stdout)
    try:
        machines = [_machine(one) for one in found["machines"]]
        facts = [Fact(**one) for one in found["facts"]]
        properties = [_property(one) for one in found["properties"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RevisionError(f"{name}: its declaration is in another language than today's: {error}") from error
    return Declaration(
        name,
        {one.name: one for one in machines},
        {one.name: one for one in facts},
        {one.name: one for one in properties},
        tuple(found["pass_order"]),
    )


def _machine(data: dict[str, Any]) -> Machine:
    words: Any = StrEnum("States", [(word, word) for word in data["states"]])  # type: ignore[misc]  # as many as the table has
    return Machine(
        **_lists_as_tuples(data)
        | {
            "states": words,
            "events": tuple(_one(Event, one, owner=Owner, fairness=Fairness) for one in data["events"]),
            "rows": tuple(_one(Row, one) for one in data["rows"]),
            "ignored": tuple(_one(Ignored, one) for one in data["ignored"]),
            "refused": tuple(_one(Refused, one, error=Error) for one in data["refused"]),
            "variables": {name: tuple(values) for name, values in data["variables"].items()},
        }
    )


def _property(data: dict[str, Any]) -> Property:
    return _one(Property, data, modality=Modality, judges=lambda words: tuple(map(Judge, words)))


def _one(kind: Callable[..., T], data: dict[str, Any], **readers: Callable[[Any], object]) -> T:
    values = _lists_as_tuples(data)
    return kind(**values | {name: read(values[name]) for name, read in readers.items() if name in values})


def _lists_as_tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
