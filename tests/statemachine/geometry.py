"""Where Graphviz puts things: boxes of states, boxes of labels and the points of arrows, in points."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from tests.statemachine.tools import require_tool

PADDING = 4.0
"""Of the two spaces at each end of a label, so much may be touched."""
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


@dataclass(slots=True)
class Picture:
    """A picture as it is laid out."""

    states: dict[str, Box] = field(default_factory=dict)
    labels: dict[str, Box] = field(default_factory=dict)
    arrows: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of states or labels that cover each other."""
        boxes = [*self.states.items(), *self.labels.items()]
        return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if _touch(one, other)]

    def crossed_labels(self) -> list[tuple[str, str]]:
        """Labels that an arrow runs through."""
        return [
            (label, arrow)
            for label, box in self.labels.items()
            for arrow, points in self.arrows.items()
            if any(box[0] + PADDING < x < box[2] - PADDING and box[1] < y < box[3] for x, y in points)
        ]


def laid_out(text: str) -> Picture:
    """The layout of a digraph, asked of `dot`."""
    program = require_tool("dot", "graphviz")
    done = subprocess.run([program, "-Tjson"], input=text, capture_output=True, text=True, check=True)
    found, picture = json.loads(done.stdout), Picture()
    for node in found["objects"]:
        x, y = map(float, node["pos"].split(","))
        width, height = float(node["width"]) * 72, float(node["height"]) * 72
        picture.states[node["name"]] = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    for number, edge in enumerate(found.get("edges", [])):
        name = f"{number} {edge['tail']} -> {edge['head']}"
        picture.arrows[name] = [point for op in edge["_draw_"] if op["op"] == "b" for point in _along(op["points"])]
        written = _written(edge.get("_ldraw_", []))
        if written:
            picture.labels[name] = written
    return picture


def _written(drawing: list[dict[str, Any]]) -> Box | None:
    """The box around a label's text, with the spaces at its ends."""
    boxes, size = [], 10.0
    for op in drawing:
        size = op.get("size", size)
        if op["op"] == "T":
            (x, y), width = op["pt"], op["width"]
            left = {"l": x, "c": x - width / 2, "r": x - width}[op["align"]]
            boxes.append((left, y - size / 4, left + width, y + size * 3 / 4))
    return (
        (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
        if boxes
        else None
    )


def _along(points: list[list[float]]) -> list[tuple[float, float]]:
    """Points on a chain of Bézier curves."""
    found = []
    for first in range(0, len(points) - 3, 3):
        a, b, c, d = points[first : first + 4]
        for step in range(21):
            t = step / 20
            weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t * t, t**3)
            x, y = (sum(w * p[axis] for w, p in zip(weights, (a, b, c, d), strict=True)) for axis in (0, 1))
            found.append((x, y))
    return found


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
