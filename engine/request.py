"""A request: its lifecycle record, and what the scheduler needs to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from quiesce.engine.inbox import Submit
from quiesce.engine.stop_strings import StopMatcher
from quiesce.engine.tokenizer import IncrementalDecoder, Tokenizer
from quiesce.spec.vocabulary import FinishReason
from quiesce.statemachine.records import RequestRecord, World

NO_ROW = -1
NAN = float("nan")


class Home(Protocol):
    """Who keeps the indexes of the requests it owns."""

    def request_moved(self, request: Request, source: str, target: str) -> None:
        """Called right after the gate has moved the request."""


class Request(RequestRecord):
    """One request, from its acceptance to its last block. `key` grows with arrival and is never used again."""

    __slots__ = (
        "arrival_s",
        "blocks",
        "child",
        "client_aborts",
        "decoder",
        "error",
        "finish_reason",
        "first_token_s",
        "hashes",
        "home",
        "in_session",
        "last_token_s",
        "matcher",
        "num_cached_tokens",
        "num_prompt_tokens",
        "params",
        "priority",
        "row",
        "seed",
        "started_s",
        "stop_reason",
        "stream",
        "text_end",
        "token_ids",
    )

    def __init__(
        self,
        world: World,
        home: Home,
        key: int,
        submit: Submit,
        seed: int,
        arrival_s: float,
        child: int = 0,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__(world, key, submit.request_id if submit.params.n == 1 else f"{submit.request_id}/{child}")
        self.home = home
        self.child = child
        """Which of the `n` sequences of its stream."""
        stops = submit.params.stop_strings
        self.matcher = StopMatcher(stops, submit.params.include_stop_str_in_output) if stops else None
        self.decoder = IncrementalDecoder(tokenizer, submit.params.skip_special_tokens) if stops and tokenizer else None
        self.text_end: int | None = None
        self.client_aborts = False
        self.in_session = submit.in_session
        self.stream = submit.stream
        self.token_ids = submit.token_ids
        """Prompt and output so far, while the request has no batch row; the row is the truth while it has one."""
        self.num_prompt_tokens = len(submit.token_ids)
        self.params = submit.params
        self.priority = submit.priority
        self.seed = seed
        self.row = NO_ROW
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        """Hashes of the leading full blocks whose KV has been computed."""
        self.num_cached_tokens = 0
        self.arrival_s = arrival_s
        self.started_s: float | None = None
        """When it held blocks for the first time."""
        self.first_token_s: float | None = None
        self.last_token_s = NAN
        """While the request has no batch row; the row is the truth while it has one. NaN before the first token."""
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.error: str | None = None

    def moved(self, source: str, target: str) -> None:
        super().moved(source, target)
        self.home.request_moved(self, source, target)

    @property
    def client_id(self) -> str:
        """The id the client knows: that of all `n` sequences."""
        return self.request_id if self.params.n == 1 else self.request_id.rpartition("/")[0]

    @property
    def order(self) -> tuple[int, int]:
        """Admission order: lower priority first, then arrival."""
        return (self.priority, self.key)

    def finish_reason_for(self, detail: str) -> FinishReason:
        """The reason its terminal gives: what the row says, or what the request knows itself."""
        reasons: Mapping[str, FinishReason | None] = {
            "abort": FinishReason.abort,
            "error": FinishReason.error,
            "finish": self.finish_reason,
        }
        reason = reasons[detail]
        return FinishReason.error if reason is None else reason
