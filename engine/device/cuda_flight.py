"""A step on its way: the pinned memory that it goes and comes in, and what is known of it on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cuda_residence import PinnedMemory
from quiesce.engine.device.cuda_step import Shape
from quiesce.engine.device.platform import Event
from quiesce.engine.device.runner import Landed
from quiesce.engine.messages import TokenLogprobs

CONTEXTS = (4096,)
"""Tokens up to which there are graphs of their own beside those for the longest request, so that short ones launch few splits."""


@dataclass(slots=True)
class Extra:
    """What a step with adjustments knows besides what the device gives back."""

    faults: dict[int, str] = field(default_factory=dict)
    reports: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    """Request to how many log probabilities it wants, and its raw logits."""
    prompt_logprobs: tuple[tuple[int, int, TokenLogprobs], ...] = ()


@dataclass(frozen=True, slots=True)
class Flight:
    """A step on the device."""

    event: Event
    """Reached when its results are here."""
    read: Callable[[], Landed]
    """Its results, once the event is reached."""


@dataclass(slots=True)
class Staging:
    """Pinned memory of one step on its way: what it is given, and what comes back. A step has several passes at most."""

    inputs: PinnedMemory
    results: PinnedMemory
    arrays: dict[tuple[Shape, int], dict[str, NDArray[Any]]] = field(default_factory=dict)
    """By shape and place, of the shapes that come again and again."""


def graph_sizes(config: EngineConfig) -> list[int]:
    """Rows of the graphs, rising; the largest holds every decode step."""
    most = config.max_num_seqs
    usual = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, most + 1, 64)]
    return sorted({size for size in usual if size < most} | {most})
