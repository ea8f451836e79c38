"""What a measurement gives: samples and the bounds they are held against. Everything that is printed or written is read from here."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

VERSION: Final = 1
QUARTILES: Final = 4


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the suite: a figure measured several times, or the reason why it was not."""

    row: str
    """The row of the suite it belongs to: gate, host, lifecycle, boundary, http, decode or mixed."""
    name: str
    unit: str
    samples: tuple[float, ...] = ()
    floor: float | None = None
    """What must be reached; None: shown for comparison."""
    aim: float | None = None
    at_most: bool = True
    """Whether less is better."""
    skipped: str = ""
    """Why there are no samples."""

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The spread: a quarter of the samples is below, a quarter above."""
        if not self.samples:
            return None
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        cuts = statistics.quantiles(self.samples, n=QUARTILES, method="inclusive")
        return cuts[0], cuts[-1]

    @property
    def verdict(self) -> str:
        """`aim`, `met` (the floor), `missed`, `skipped`, or nothing where there is no bound."""
        median = self.median
        if median is None:
            return "skipped"
        if self.floor is None:
            return ""
        if self.aim is not None and _reaches(median, self.aim, self.at_most):
            return "aim"
        return "met" if _reaches(median, self.floor, self.at_most) else "missed"

    def as_json(self) -> dict[str, Any]:
        quartiles = self.quartiles
        return {
            "row": self.row,
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "quartile_low": quartiles[0] if quartiles else None,
            "quartile_high": quartiles[1] if quartiles else None,
            "num_samples": len(self.samples),
            "floor": self.floor,
            "aim": self.aim,
            "better": "lower" if self.at_most else "higher",
            "verdict": self.verdict,
            "skipped": self.skipped,
        }


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """The sample below which `percent` of them lie, nearest rank; None of no samples."""
    if not samples:
        return None
    ordered = sorted(samples)
    return ordered[min(math.ceil(percent / 100 * len(ordered)), len(ordered)) - 1]


def _reaches(value: float, bound: float, at_most: bool) -> bool:
    return value <= bound if at_most else value >= bound


def ratio(
    row: str, name: str, ours: Sequence[float], theirs: Sequence[float], floor: float, aim: float | None = None
) -> Figure:
    """How many times faster than a peer, from pairs of times (or of anything of which less is better) taken in turns."""
    samples = tuple(their / our for our, their in zip(ours, theirs, strict=True))
    return Figure(row, name, "x", samples, floor, aim, at_most=False)


def machine_facts() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "num_processors": os.cpu_count(),
    }
    if hasattr(os, "getloadavg"):
        facts["load_average_1min"] = round(os.getloadavg()[0], 2)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(figures: Sequence[Figure]) -> Table:
    """One line for each figure, floors beside them."""
    made = Table(title="Quiesce benchmark suite", title_style="bold", header_style="bold")
    made.add_column("row")
    made.add_column("what")
    for head in ("median", "quartiles", "unit", "floor", "aim", "verdict"):
        made.add_column(head, justify="left" if head in ("unit", "verdict") else "right", no_wrap=True)
    styles = {"aim": "bold green", "met": "green", "missed": "bold red", "skipped": "yellow", "": ""}
    shown = ""
    for figure in figures:
        sign = "<=" if figure.at_most else ">="
        quartiles = figure.quartiles
        made.add_row(
            figure.row if figure.row != shown else "",
            figure.name + (f": {figure.skipped}" if figure.skipped else ""),
            _number(figure.median),
            f"{_number(quartiles[0])} - {_number(quartiles[1])}" if quartiles else "",
            figure.unit,
            f"{sign} {figure.floor:g}" if figure.floor is not None else "",
            f"{sign} {figure.aim:g}" if figure.aim is not None else "",
            figure.verdict,
            style=styles[figure.verdict] if figure.verdict in ("missed", "skipped") else "",
        )
        shown = figure.row
    return made


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def write(path: Path, document: dict[str, Any]) -> None:
    """Writes a result as JSON; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def console() -> Console:
    """As wide as a table needs where there is no terminal."""
    made = Console()
    return made if made.is_terminal else Console(width=140)
