"""How a machine shows itself in a notebook: drawn where Graphviz is installed, as Mermaid text where it is not."""

from __future__ import annotations

import html
import subprocess
from shutil import which
from typing import Final

from quiesce.spec.language import Machine
from quiesce.statemachine.diagram import dot, mermaid

DOT_TIMEOUT_S: Final = 20.0


def machine_svg(machine: Machine) -> str | None:
    """The machine as Graphviz draws it; None where its `dot` is not installed or cannot draw it."""
    program = which("dot")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-Tsvg"], input=dot(machine), capture_output=True, text=True, check=True, timeout=DOT_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout[max(done.stdout.find("<svg"), 0) :]


def machine_html(machine: Machine) -> str:
    """The machine drawn, or as Mermaid text where it cannot be."""
    return machine_svg(machine) or f"<pre>{html.escape(mermaid(machine))}</pre>"
