"""Which part of the declaration is explored: the machines of a world, how many instances each has, and what is left out.

A smaller world is a world all the same: it says what is not in it (`without`), and reports say so with every figure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from quiesce.proofs.environment import LINK, SESSION, Surroundings
from quiesce.proofs.environment_queue import queue
from quiesce.spec.vocabulary import Mode, OperationKind, Policy, Tag, TokenOwner


@dataclass(frozen=True, slots=True)
class World:
    """Which machines, and how many instances of each."""

    name: str
    instances: Mapping[str, tuple[str, ...]]
    capacity: int = 0
    """Requests that may hold a block at the same time."""
    without: frozenset[str] = frozenset()
    """Events that do not happen in this world, unless together with another: `engine.clear`, `request.device_fault`."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    """What it has beside the tables, or says instead of them."""
    carried: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Data of events that takes fewer values here than there are."""

    @property
    def size(self) -> str:
        """How many, and what else bounds it: `N=3, K=2, without engine.clear`."""
        number = len(self.instances.get("request") or self.instances["operation"])
        words = [f"N={number}"]
        words += [f"K={self.capacity}"] if 0 < self.capacity < number else []
        owners = set(self.instances.get("pause_token", ())) - {
            owner.value for owner in TokenOwner if owner is not TokenOwner.caller
        }
        words += [f"{len(owners)} callers"] if self.name == "engine" and len(owners) != 1 else []
        words += [f"{name}s {', '.join(values)}" for name, values in self.carried.items()]
        words += [f"without {', '.join(sorted(self.without))}"] if self.without else []
        return ", ".join(words)

    @staticmethod
    def engine(
        num_requests: int, capacity: int | None = None, callers: Sequence[str] = ("caller",), without: Collection[str] = ()
    ) -> World:
        """World A: the engine, its tokens, tags, weights, two step slots and some requests."""
        owners = (*callers, *(owner.value for owner in TokenOwner if owner is not TokenOwner.caller))
        instances = {
            "engine": ("",), "pause_token": owners, "memory": tuple(tag.value for tag in Tag), "weights": ("",), "step": ("0", "1"),
            "request": tuple(str(number) for number in range(num_requests)),
        }  # fmt: skip
        return World("engine", instances, num_requests if capacity is None else capacity, frozenset(without))

    @staticmethod
    def link(num_requests: int, without: Collection[str] = ()) -> World:
        """World B: front end and core, with some streams and their requests, mailboxes between them, and one control call."""
        return World("link", _calls(num_requests), num_requests, frozenset(without), LINK)

    @staticmethod
    def session(num_sessions: int, without: Collection[str] = ()) -> World:
        """World C: the link world, with a session around each stream."""
        instances = _calls(num_sessions)
        instances["session"] = instances["stream"]
        return World("session", instances, num_sessions, frozenset(without), SESSION)

    @staticmethod
    def operation(num_places: int, kinds: Collection[str] = tuple(OperationKind), without: Collection[str] = ()) -> World:
        """World D: the queue of control calls, what they wait for, and calls of these kinds."""
        places = tuple(map(str, range(num_places)))
        single = ("gate", "update", "clear", "life")
        carried = {} if set(kinds) == set(OperationKind) else {"kind": tuple(map(str, kinds))}
        instances = {"operation": places, "verbs": places, "tags": tuple(map(str, Tag)), **dict.fromkeys(single, ("",))}
        return World("operation", instances, 0, frozenset(without), queue(num_places), carried)


def _calls(number: int) -> dict[str, tuple[str, ...]]:
    slots = tuple(map(str, range(number)))
    return {
        "link": ("",),
        "admission": ("",),
        "call": ("",),
        **dict.fromkeys(("stream", "to_core", "to_client", "request"), slots),
    }


CARRIED = {
    "mode": tuple(Mode),
    "policy": tuple(Policy),
    "weights": tuple(Policy),
    "kv_cache": tuple(Policy),
    "tags": (*Tag, "both"),
    "kind": tuple(OperationKind),
}
"""Values of the data that events carry; owners and requests depend on the world."""
NARROWED = {("shutdown", "mode"): (Mode.wait, Mode.abort)}
"""Events whose callers send fewer values than there are."""
