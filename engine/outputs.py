"""What callers get back: outputs in vLLM's shapes, control results, and the status."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from quiesce.engine.measures import Measured
from quiesce.spec.vocabulary import RequestState

Admission = Literal["accept", "queue", "reject"]
LIVE = (RequestState.received, RequestState.admitted, RequestState.running, RequestState.retracting)


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times of one request, in seconds on the engine's clock; None until it has happened."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token at one position."""

    logprob: float
    """Natural log of the model's own probability, before temperature and masks."""
    rank: int
    """1 is the most likely."""
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated sequence."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    """For each token: token id -> logprob, the sampled one first."""
    finish_reason: str | None = None
    """`stop | length | abort | error`, None while it goes on."""
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended it, None for the end-of-sequence token."""
    weight_versions: tuple[tuple[int | str, int, int], ...] = ()
    """[(version, start, end)], half-open over the generated tokens."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What is known of a request. Cumulative by default: each output repeats what came before."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    num_cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""
    metrics: RequestMetrics | None = None
    prompt_logprobs: tuple[dict[int, Logprob] | None, ...] | None = None
    """For each prompt token, None for the first."""
    error: str | None = None
    """Why it ended, where `finish_reason` is `error`."""
    seed: int | None = None
    """The seed of its sampling noise, also when the engine drew it."""
    retryable: bool = False
    """Whether it ended with its core and a new core is coming: the same call may be made again."""

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[0].finish_reason


@dataclass(frozen=True, slots=True)
class AbortResult:
    """Which requests an abort ended, and which ids named nothing live."""

    aborted: tuple[str, ...]
    not_found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Transition:
    """The result of a control call. Success means that the effect holds."""

    state: str
    changed: bool
    epoch: int
    duration_s: float = 0.0
    freed_bytes: int = 0
    aborted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blocks:
    """KV blocks by owner. Always total = free + cached + held + fenced."""

    total: int
    free: int
    """Nothing in them."""
    cached: int
    """Kept for prefix hits; given up when somebody needs them."""
    held: int
    """Of requests that run."""
    fenced: int
    """Of requests that are over or retracting, until the last step that names them has retired."""

    @property
    def balanced(self) -> bool:
        return self.total == self.free + self.cached + self.held + self.fenced


@dataclass(frozen=True, slots=True)
class Status:
    """The one truth about an engine; health, readiness and metrics are projections of it.

    A snapshot is published before the answers of its pass are delivered. Always accepted = Σ live requests + Σ finished.
    """

    engine: str
    admission: Admission
    memory: MappingProxyType[str, str]
    weights: tuple[int | str, str]
    pause_owners: MappingProxyType[str, str]
    operation: str | None
    requests: MappingProxyType[str, int]
    """Requests by state; only states that hold some."""
    sessions: int
    streams: int
    steps_in_flight: int
    blocks: Blocks
    epoch: int
    accepted: int
    rejected: int
    finished: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))
    measured: Measured = field(default_factory=Measured)
    """What happened so far: tokens, prefix hits, preemptions, times."""

    def _repr_html_(self) -> str:
        """Notebooks show a small table."""
        from quiesce.engine.reprs import status_html

        return status_html(self)

    def seen_from(self, streams: int, refused: int, sessions: int = 0) -> Status:
        """The snapshot with a front end's own counts: its streams and sessions, and the calls it refused before the core saw them."""
        return replace(self, streams=streams, sessions=sessions, rejected=self.rejected + refused)

    @property
    def live(self) -> int:
        return sum(self.requests.get(state, 0) for state in LIVE)

    @property
    def balanced(self) -> bool:
        return self.blocks.balanced and self.accepted == self.live + sum(self.finished.values())
