"""What the core counts beside its records: tokens, prefix hits, preemptions, and how long things took. Of the past only, never read by it.

A snapshot is part of the status that a pass publishes, so what one scrape shows belongs to one instant.

    arrival ......... started ......... first token ... token ... token ... ended
    | request_queue    | request_prefill  | inter_token    |               |
    | time_to_first_token                 | request_decode                 |
    | e2e_request_latency                                                  |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from quiesce.engine.histogram import FIRST_S, GAPS_S, TOKENS, WHOLE_S, Counts, Histogram

if TYPE_CHECKING:
    from quiesce.engine.batch_state import BatchState
    from quiesce.engine.commit import Committed
    from quiesce.engine.request import Request
    from quiesce.engine.scheduler import StepPlan

HISTOGRAMS: Final[Mapping[str, tuple[tuple[float, ...], str]]] = MappingProxyType({
    "time_to_first_token_seconds": (FIRST_S, "Seconds from arrival to the first token."),
    "inter_token_latency_seconds": (GAPS_S, "Seconds between two tokens of a sequence, each gap counted when it ends."),
    "request_time_per_output_token_seconds": (GAPS_S, "Seconds per token after the first, of sequences that ended with more than one."),
    "e2e_request_latency_seconds": (WHOLE_S, "Seconds from arrival to the end, of all that ended."),
    "request_queue_time_seconds": (WHOLE_S, "Seconds from arrival until it held blocks for the first time, of all that began."),
    "request_prefill_time_seconds": (WHOLE_S, "Seconds from then to the first token, of sequences that ended with a token."),
    "request_decode_time_seconds": (WHOLE_S, "Seconds from the first token to the last, of sequences that ended with a token."),
    "request_inference_time_seconds": (WHOLE_S, "Seconds from holding blocks to the last token, of sequences that ended with a token."),
    "request_prompt_tokens": (TOKENS, "Tokens of the prompt, of all that ended."),
    "request_generation_tokens": (TOKENS, "Tokens generated, of all that ended."),
})  # fmt: skip
"""Bounds and meaning of each, by vLLM's name. Every one of the `n` sequences of a request counts by itself, as in `accepted`."""


def _nothing() -> Mapping[str, Counts]:
    return NOTHING


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over the engine's life."""

    prompt_tokens: int = 0
    """Prompt tokens of sequences that have their first token, those from the prefix cache included."""
    prompt_tokens_cached: int = 0
    """Those of them that came from the prefix cache."""
    generation_tokens: int = 0
    """Tokens given to sequences that were not answered yet: what streams were sent."""
    prefix_cache_queries: int = 0
    """Tokens looked for in the prefix cache when a sequence began; not when it began anew after a preemption."""
    prefix_cache_hits: int = 0
    """Those of them found."""
    num_preemptions: int = 0
    """Sequences that gave up their blocks to others and were computed anew."""
    histograms: Mapping[str, Counts] = field(default_factory=_nothing, repr=False)
    """By the names of `HISTOGRAMS`."""


NOTHING: Final = MappingProxyType({name: Histogram(bounds).counts() for name, (bounds, _) in HISTOGRAMS.items()})


class Measures:
    """Counts as things happen; a step costs one look at its rows, a cohort's step none."""

    def __init__(self) -> None:
        self._prompt_tokens = self._prompt_tokens_cached = self._generation_tokens = 0
        self._queries = self._hits = self._preemptions = 0
        self._histograms = {name: Histogram(bounds) for name, (bounds, _) in HISTOGRAMS.items()}
        self._gaps = self._histograms["inter_token_latency_seconds"]
        self._measured: Measured | None = Measured()

    def snapshot(self) -> Measured:
        """As of now; the same object until something happens."""
        if self._measured is None:
            histograms = MappingProxyType({name: histogram.counts() for name, histogram in self._histograms.items()})
            self._measured = Measured(
                self._prompt_tokens, self._prompt_tokens_cached, self._generation_tokens, self._queries, self._hits, self._preemptions, histograms,
            )  # fmt: skip
        return self._measured

    def preempted(self) -> None:
        """A running sequence yielded its blocks."""
        self._preemptions += 1
        self._measured = None

    def began(self, request: Request, num_found: int, looked: bool, now_s: float) -> None:
        """A sequence got blocks, `num_found` of its tokens in them already. `looked`: the prefix cache was asked."""
        if request.started_s is not None:
            return  # it has begun before
        request.started_s = now_s
        if looked:
            self._queries += len(request.token_ids)
            self._hits += num_found
        self._add("request_queue_time_seconds", now_s - request.arrival_s)

    def landed(self, batch: BatchState, plan: StepPlan, committed: Committed, now_s: float) -> None:
        """A step gave its rows a token each."""
        rows, cohort = committed.rows, plan.cohort
        self._measured = None
        self._generation_tokens += len(rows)
        if cohort is not None and cohort.version == batch.version:  # it landed as such: every row got its token
            if cohort.landed_s is not None:
                self._gaps.add(now_s - cohort.landed_s, len(rows))
                cohort.landed_s = now_s
                batch.last_token_s[cohort.places] = now_s
                return
            cohort.landed_s = now_s
        gaps = now_s - batch.last_token_s[rows]
        batch.last_token_s[rows] = now_s
        if committed.first:
            gaps = gaps[gaps == gaps]  # NaN before the first token
            for request in committed.first:
                self._prompt_tokens += request.num_prompt_tokens
                self._prompt_tokens_cached += request.num_cached_tokens
                self._add("time_to_first_token_seconds", now_s - request.arrival_s)
        if len(gaps):
            self._gaps.add_each(gaps)

    def ended(self, request: Request, num_generated: int, last_token_s: float, now_s: float) -> None:
        """A sequence has its terminal. `last_token_s` counts where it has a token."""
        self._add("e2e_request_latency_seconds", now_s - request.arrival_s)
        self._add("request_prompt_tokens", request.num_prompt_tokens)
        self._add("request_generation_tokens", num_generated)
        first_s, started_s = request.first_token_s, request.started_s
        if first_s is None or started_s is None:
            return
        self._add("request_prefill_time_seconds", first_s - started_s)
        self._add("request_decode_time_seconds", last_token_s - first_s)
        self._add("request_inference_time_seconds", last_token_s - started_s)
        if num_generated > 1:
            self._add("request_time_per_output_token_seconds", (last_token_s - first_s) / (num_generated - 1))

    def _add(self, name: str, value: float) -> None:
        self._histograms[name].add(value)
        self._measured = None
