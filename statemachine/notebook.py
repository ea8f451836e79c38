"""How a machine shows itself in a notebook: drawn where Graphviz is installed, as Mermaid text where it is not."""

from __future__ import annotations

import html
import subprocess

from quiesce.spec.language import Machine
from quiesce.statemachine.diagram import mermaid
from quiesce.statemachine.graphviz import ToolMissing, dot, svg


def machine_svg(machine: Machine) -> str | None:
    """The machine as Graphviz draws it; None where its `dot` is not installed or cannot draw it."""
    try:
        return svg(dot(machine))
    except (ToolMissing, OSError, subprocess.SubprocessError):
        return None


def machine_html(machine: Machine) -> str:
    """The machine drawn, or as Mermaid text where it cannot be."""
    return machine_svg(machine) or f"<pre>{html.escape(mermaid(machine))}</pre>"
