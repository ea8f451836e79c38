"""Finds stop strings in text that arrives in pieces, also where a string is split over pieces.

The core looks, because it decides when a request ends. The front end shows text only as far as no stop string could still begin in it:
`held_back` says how many characters that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """A stop string was found."""

    stop: str
    text_end: int
    """Characters of the output's text to keep."""


class StopMatcher:
    """One request's search. Where several strings match the one that begins first wins, then the longer."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._include = include
        self._tail = ""
        """The end of the text so far in which a string may have begun."""
        self._told = 0
        """Characters before the tail."""

    def skip(self, piece: str) -> None:
        """Takes a piece in which no string may begin (`min_tokens`)."""
        self._told += len(self._tail) + len(piece)
        self._tail = ""

    def feed(self, piece: str) -> Match | None:
        """Takes the next piece of text."""
        text = self._tail + piece
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, stop = min(found, key=lambda match: match[0])
            return Match(stop, self._told + place + (len(stop) if self._include else 0))
        keep = min(len(text), held_back(self._stops))
        self._told += len(text) - keep
        self._tail = text[len(text) - keep :]
        return None


def held_back(stops: Sequence[str]) -> int:
    """Characters at the end of a text that may belong to a stop string which is not complete yet."""
    return max((len(stop) for stop in stops), default=1) - 1
