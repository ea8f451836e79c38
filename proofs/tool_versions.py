"""Which judges are on this machine, and which versions of them."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
from typing import Final

PROGRAMS: Final = {
    "cc": ("cc", "--version"),
    "SPIN": ("spin", "-V"),
    "Rumur": ("rumur", "--version"),
    "Graphviz": ("dot", "-V"),
}
"""Name -> the command that prints its version."""
PACKAGES: Final = {"z3": "z3-solver", "cvc5": "cvc5"}
"""Name -> the distribution that brings it."""


def tool_versions() -> dict[str, str]:
    """Name -> version of every tool there is; those that are missing say so."""
    found = {"Python": platform.python_version()}
    for name, command in PROGRAMS.items():
        found[name] = _printed(command) if shutil.which(command[0]) else "missing"
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _printed(command: tuple[str, ...]) -> str:
    """The first number with dots that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    number = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return number[0] if number else "there"
