"""The front ends of one core, as the core sees them: their numbers, what they wait for, and when they were heard last.

Keys of streams and calls are the front ends' own; in the core each carries its front end's number above `STREAM_BITS`, so that two front
ends never meet, and what comes late from one that is gone is nobody's: numbers are not given twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quiesce.engine.answers import Answer, Reply, Tokens
from quiesce.engine.inbox import NOBODY, Abort, AwaitReady, Control, Detach, Event, Submit
from quiesce.engine.link.letters import MAX_KEY, STREAM_BITS
from quiesce.engine.outputs import Status


@dataclass(slots=True)
class Front:
    """One front end."""

    number: int
    address: bytes
    """What the socket calls it."""
    lease_s: float
    heard_s: float
    told_s: float = 0.0
    status: Status | None = None
    """What it was told last."""
    calls: set[int] = field(default_factory=set)
    """Control calls that it waits for, by the core's keys."""
    answers: list[Answer] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    """To be told."""


def owned(event: Event, front: Front) -> Event | None:
    """A front end's event with the core's keys; None: the keys are none that a front end has."""
    key = event.stream if isinstance(event, (Submit, Abort)) else event.call
    call = event.call if isinstance(event, Abort) else None
    if not (0 < key <= MAX_KEY or (key == NOBODY and isinstance(event, Control))) or not 0 <= (call or 0) <= MAX_KEY:
        return None
    if isinstance(event, Submit):
        return replace(event, stream=_mine(key, front))
    if isinstance(event, Abort):
        return Abort(_mine(key, front), None if call is None else _mine(call, front))
    if isinstance(event, (Control, AwaitReady)):
        front.calls.add(_mine(key, front))
        return replace(event, call=_mine(key, front))
    front.calls.discard(_mine(key, front))
    return Detach(_mine(key, front))


def _mine(key: int, front: Front) -> int:
    return key and key | front.number << STREAM_BITS


def sort(answers: Sequence[Answer], fronts: dict[int, Front]) -> None:
    """Lays each answer before its front end, under that one's own keys; what is for one that is gone is dropped."""
    for answer in answers:
        if isinstance(answer, Tokens):
            for number, tokens in _shares(answer, fronts):
                if number in fronts:
                    fronts[number].answers.append(tokens)
            continue
        key = answer.call if isinstance(answer, Reply) else answer.stream
        front = fronts.get(key >> STREAM_BITS)
        if front is None:
            continue
        if isinstance(answer, Reply):
            front.calls.discard(key)
            front.answers.append(replace(answer, call=key & MAX_KEY))
        else:
            front.answers.append(replace(answer, stream=key & MAX_KEY))


def _shares(tokens: Tokens, fronts: dict[int, Front]) -> Iterator[tuple[int, Tokens]]:
    """The tokens of each front end."""
    numbers, keys = tokens.streams >> STREAM_BITS, tokens.streams & MAX_KEY
    if len(fronts) == 1 and (numbers == numbers[0]).all():
        yield int(numbers[0]), replace(tokens, streams=keys)
        return
    for number in np.unique(numbers).tolist():
        places = np.flatnonzero(numbers == number)
        logprobs = {new: tokens.logprobs[old] for new, old in enumerate(places.tolist()) if old in tokens.logprobs}
        yield number, Tokens(keys[places], tokens.children[places], tokens.token_ids[places], tokens.version, logprobs)
