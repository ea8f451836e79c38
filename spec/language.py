"""The language of rows: what a declaration may say, and nothing more.

A machine is a list of events and, for every cell (state, event), one decision:

    Row       the event moves the machine (or stays, when `target` is None) if the guard `when` holds
    Ignored   the event is harmless here; the reason is written down
    Refused   the event is illegal here; the caller is told what to call first

The first row whose guard holds is taken. Where a cell has rows and no guard holds, its `Ignored` or `Refused` entry decides; without
one the event waits, as none of a client or an operator may. `ELSEWHERE` stands for every state not otherwise decided.

Guards (`when`), updates (`sets`) and joint moves (`also`) are texts in the closed grammar of `spec/guards.py`. Everything is checked
when `spec` is imported: a malformed table is refused with its file, its row and the reason (`spec/check.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto

ELSEWHERE: tuple[str, ...] = ("*",)
"""In `states`: every state of the machine in which the event is not decided by a row or another entry."""

BIT = ("no", "yes")


class SpecError(ValueError):
    """A declaration is malformed; the text names the file, the row and the reason."""


class Owner(StrEnum):
    """Who causes an event."""

    client = auto()
    operator = auto()
    core = auto()
    device = auto()
    timer = auto()
    environment = auto()


class Fairness(StrEnum):
    """What is promised about an event of one instance: nothing; if enabled for good it happens; if enabled again and again it happens."""

    none = auto()
    weak = auto()
    strong = auto()


class Error(StrEnum):
    """What a refused caller meets (`engine/errors.py`), or `defect`: a broken promise of our own."""

    InvalidRequest = "InvalidRequest"
    DuplicateRequest = "DuplicateRequest"
    TransitionConflict = "TransitionConflict"
    Unavailable = "Unavailable"
    EngineDead = "EngineDead"
    defect = "defect"


@dataclass(frozen=True, slots=True)
class Event:
    """An event, who causes it, and what is promised about it. Fairness belongs to the event of one instance, never to a row."""

    name: str
    owner: Owner
    fairness: Fairness = Fairness.none
    mechanism: str = ""
    """What provides the fairness; strong fairness must name it."""
    boundary: bool = False
    """Urgent: the core fires it to a fixpoint before it takes the next client or operator event (rule R1)."""
    takes: tuple[str, ...] = ()
    """Names of the data the event carries, used in guards as `event.<name>`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One move."""

    event: str
    source: tuple[str, ...]
    target: str | None
    why: str
    when: str = "true"
    sets: tuple[str, ...] = ()
    """Updates of variables, all read in the state before the move: `begun := yes`, `request[*].stale := each.state == draining`."""
    also: tuple[str, ...] = ()
    """Events of other machines that happen in the same instant, all or nothing: `pause_token[shutdown].hold`."""
    effects: tuple[str, ...] = ()
    """What the move asks for, minted by the gate: `free_blocks(cache)`, `terminal(abort)`."""
    shifts: bool = False
    """The newer instance takes the place of this one, with its members (steps only)."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Cells in which an event is harmless."""

    event: str
    states: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Cells in which an event is illegal, the error its caller meets, and what to do first."""

    event: str
    states: tuple[str, ...]
    error: Error
    how_to: str
    when: str = "true"
    """Of several entries for one cell the first whose guard holds speaks."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One lifecycle."""

    name: str
    file: str
    purpose: str
    states: type[StrEnum]
    initial: str
    terminal: tuple[str, ...]
    meanings: Mapping[str, str]
    """One sentence for each state."""
    events: tuple[Event, ...]
    rows: tuple[Row, ...]
    ignored: tuple[Ignored, ...]
    refused: tuple[Refused, ...]
    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """State beside the named states: variable -> its values, the first is the initial one."""
    instances: tuple[str, ...] = ()
    """Fixed instances (tags, owners, slots); empty for one, or for as many as there are requests, streams or sessions."""

    def event(self, name: str) -> Event:
        return next(event for event in self.events if event.name == name)


@dataclass(frozen=True, slots=True)
class Fact:
    """A named guard, used everywhere by its name. `of` is the machine whose record it is about, empty for the whole engine."""

    name: str
    of: str
    when: str
    sentence: str


class Modality(StrEnum):
    always = auto()
    sometimes = auto()
    eventually = auto()
    on_every_move = auto()


class Judge(StrEnum):
    """Who holds the engine to a property."""

    model = auto()
    any_n_proof = auto()
    monitor = auto()
    test = auto()


@dataclass(frozen=True, slots=True)
class Property:
    """A promise, as a sentence with a modality, and who judges it."""

    name: str
    modality: Modality
    sentence: str
    judges: tuple[Judge, ...]
    when: str = ""
    """`always` and `sometimes`: the guard-language predicate, where it can be said as one. `eventually`: the trigger."""
    then: str = ""
    """`eventually`: what follows the trigger."""
    machine: str = ""
    """Predicates about one record name its machine."""
    despite: tuple[str, ...] = ()
    """`eventually`: events that need not happen for it, whatever is promised of them: `request.eos`."""
