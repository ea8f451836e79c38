"""What happened in a run, in words: for people, as lines; for pages, as a Mermaid sequence diagram."""

from __future__ import annotations

from typing import NamedTuple

from quiesce.engine.outputs import RequestOutput
from quiesce.stateful.fuzz.alphabet import Action

NOTED = ("advance", "settle", "pass_time", "stall", "go_on", "read", "hang_up")
"""Verbs that nobody else tells of."""


class Line(NamedTuple):
    sender: str
    receiver: str
    """Empty: a note."""
    text: str


class Chronicle:
    """Lines in the order in which things happened. `kept=False` keeps none, for volume."""

    def __init__(self, kept: bool = True) -> None:
        self.lines: list[Line] = []
        self._kept = kept

    def _add(self, sender: str, receiver: str, text: str) -> None:
        if self._kept:
            self.lines.append(Line(sender, receiver, text))

    def note(self, text: str) -> None:
        self._add("engine", "", text)

    def played(self, action: Action) -> None:
        if action.verb in NOTED:
            self.note(" ".join([action.verb, *map(str, action.given.values())]))

    def asks(self, who: str, text: str) -> None:
        self._add(who, "engine", text)

    def answered(self, who: str, text: str) -> None:
        self._add("engine", who, text)

    def told(self, who: str, output: RequestOutput) -> None:
        if self._kept:
            ends = [
                f"{len(child.token_ids)} tokens{f', {child.finish_reason}' if child.finish_reason else ''}"
                for child in output.outputs
            ]
            self._add("engine", who, "; ".join(ends))

    def __str__(self) -> str:
        width = max((len(line.sender) for line in self.lines), default=0)
        return "\n".join(
            f"{line.sender:>{width}} -> {line.receiver}: {line.text}" if line.receiver else f"{'':>{width}}    ({line.text})"
            for line in self.lines
        )

    def mermaid(self) -> str:
        """A sequence diagram."""
        names = dict.fromkeys(
            name for line in self.lines for name in (line.sender, line.receiver) if name not in ("", "engine")
        )
        head = ["sequenceDiagram", *(f"    participant {name}" for name in (*names, "engine"))]
        return "\n".join([*head, *(f"    {_arrow(line)}" for line in self.lines)]) + "\n"


def _arrow(line: Line) -> str:
    text = line.text.replace(";", ",").replace("#", "no. ").replace(":", " -")
    if not line.receiver:
        return f"Note over {line.sender}: {text}"
    return f"{line.sender}{'-->>' if line.sender == 'engine' else '->>'}{line.receiver}: {text}"
