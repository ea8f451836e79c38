"""What travels between a front end and a core in a process of its own. Data alone; `engine/link/codec.py` knows these kinds and no others.

    front end -> core    Hello, Beat, Post, Bye
    core -> front end    Welcome, Beat, News, Over

Every letter goes in an envelope: the epoch of the core it belongs to, and the number the core gave the front end (0 before Welcome).
A letter of another epoch or number is of the past, and dropped (R35).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quiesce.engine.answers import Answer
from quiesce.engine.inbox import Event
from quiesce.engine.measures import Measured
from quiesce.engine.outputs import Status

STREAM_BITS = 40
MAX_KEY = 2**STREAM_BITS - 1
"""Keys of streams and calls are 1 to this; above them the core puts the front end's number."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A front end is there. It is taken for dead when nothing of it has come for `lease_s` seconds."""

    lease_s: float


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Post:
    """An event for the core's inbox."""

    event: Event


@dataclass(frozen=True, slots=True)
class Bye:
    """The front end leaves; whatever is still its own is aborted."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The core takes letters under this number."""

    number: int
    process: int
    """Of the core."""
    model: str = ""
    max_model_len: int = 0


@dataclass(frozen=True, slots=True)
class News:
    """What one pass of the core has to say to one front end, in the order in which it is to be taken."""

    status: Status | None
    """Without `measured`; None: as before."""
    measured: Measured | None = None
    """None: as before."""
    answers: list[Answer] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    """Of the trace."""


@dataclass(frozen=True, slots=True)
class Over:
    """The core ends; this is its last letter. `cause`: what killed it."""

    cause: Exception | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """In place of a source of weights: tensors by file."""

    files: Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class Feed:
    """In place of a source of weights: a socket beside the core's own, at which whoever connects is given the tensors."""

    socket: str


ToCore = Hello | Beat | Post | Bye
ToFront = Welcome | Beat | News | Over


@dataclass(frozen=True, slots=True)
class Envelope:
    """A letter, and where it belongs."""

    epoch: int
    front: int
    letter: ToCore | ToFront
