"""What may happen "from outside" a program: completions that the loop can let land between any two of its turns.

A device step that comes back, a reply, a disconnect: the scenario offers it, the loop chooses when it happens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Offer:
    """Something that may complete. Offers on one channel complete in the order in which they were made."""

    name: str
    callback: Callable[[], object]
    channel: Hashable | None
    since: int  # the loop's round in which it could first happen: fairness counts from here

    def __str__(self) -> str:
        return self.name


class Outside:
    """The pending offers, oldest first, and the names that are held back."""

    def __init__(self) -> None:
        self._offers: list[Offer] = []
        self._held: set[str] = set()

    def __iter__(self) -> Iterator[Offer]:
        return iter(self._offers)

    def __len__(self) -> int:
        return len(self._offers)

    def add(self, offer: Offer) -> None:
        self._offers.append(offer)

    def take(self, offer: Offer) -> None:
        self._offers.remove(offer)

    def clear(self) -> None:
        self._offers.clear()

    def hold(self, name: str) -> None:
        self._held.add(name)

    def release(self, name: str, now: int) -> None:
        self._held.discard(name)
        for offer in self._offers:
            offer.since = max(offer.since, now)

    def open(self) -> list[Offer]:
        """Those that may happen now: the head of each channel unless it is held. It stalls what is behind it."""
        if len(self._offers) == 1 and not self._held:
            return list(self._offers)
        heads: list[Offer] = []
        channels: set[Hashable] = set()
        for offer in self._offers:
            if offer.channel is not None:
                if offer.channel in channels:
                    continue
                channels.add(offer.channel)
            if offer.name not in self._held:
                heads.append(offer)
        return heads

    def held(self) -> list[str]:
        return [offer.name for offer in self._offers if offer.name in self._held]
