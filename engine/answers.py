"""What one pass of the core hands to the front end, after it has acted and published its status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.messages import TokenLogprobs
from quiesce.engine.outputs import RequestMetrics, Status


@dataclass(frozen=True, slots=True)
class Ack:
    """The request is accepted."""

    stream: int
    seed: int


@dataclass(frozen=True, slots=True)
class Nak:
    """The call is refused: it was never accepted."""

    stream: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens, one each for many sequences. All [n], in the order they were sampled."""

    streams: NDArray[np.int64]
    children: NDArray[np.int32]
    token_ids: NDArray[np.int64]
    version: int | str
    logprobs: Mapping[int, TokenLogprobs]
    """Place among the n -> logprobs, where they were asked for."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Logprobs of one prompt token."""

    stream: int
    position: int
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class Terminal:
    """The one end of one sequence of a request."""

    stream: int
    child: int
    finish_reason: str
    stop_reason: int | str | None
    num_tokens: int
    """Tokens generated; the stream has been given exactly these."""
    num_cached_tokens: int
    metrics: RequestMetrics
    error: str | None = None
    text_end: int | None = None
    """Characters of the text to keep, where a stop string was found."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing of this request is left in the core: its last fence has fallen. Said where a session waits for it."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a control call: its value, or the error it raises."""

    call: int
    value: object = None
    error: Exception | None = None


Answer = Ack | Nak | Tokens | PromptLogprobs | Terminal | Ended | Reply


@dataclass(slots=True)
class Answers:
    """All answers of one pass, in order, with the status that was published before them."""

    status: Status
    answers: list[Answer] = field(default_factory=list)
