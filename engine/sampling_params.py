"""How a request samples: vLLM's names and defaults, validated whole before anything happens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from quiesce.engine.errors import InvalidRequest, shown

OutputKind = Literal["cumulative", "delta", "final"]
MAX_TEMPERATURE = 1e6
"""Beyond it every token is equally likely already, and float32 is not far from its end."""
MAX_STOP_TOKENS = 256
MAX_N = 64
"""Children of one request; more are refused, because all of them are admitted at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request.

    Raises:
        InvalidRequest: names the field and what it may be.
    """

    n: int = 1
    """Sequences generated for the prompt; each has its own noise."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 keeps all tokens."""
    min_p: float = 0.0
    seed: int | None = None
    """None: one is drawn when the request is accepted, and reported."""
    max_tokens: int | None = 16
    """None: up to the context's end."""
    min_tokens: int = 0
    """No stop token is sampled, and no stop string looked for, before this many tokens."""
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many most likely tokens to report at each position beside the sampled one; -1: the whole vocabulary."""
    prompt_logprobs: int | None = None
    """The same for the prompt. Its KV is then computed anew: the prefix cache holds no logits."""
    logit_bias: Mapping[int, float] | None = None
    """Token id -> what is added to its logit, -100 to 100."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    output_kind: OutputKind = "cumulative"

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1)
        if self.seed is not None:
            _integer("seed", self.seed, None)
        ids: Any = self.stop_token_ids
        if not isinstance(ids, Sequence) or not all(type(token) is int and token >= 0 for token in ids):
            raise InvalidRequest("stop_token_ids", f"must be a list of token ids, not {shown(ids)}")
        if len(set(ids)) > MAX_STOP_TOKENS:
            raise InvalidRequest("stop_token_ids", f"names {len(set(ids))} tokens; at most {MAX_STOP_TOKENS} are looked for")
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(name, f"must be True or False, not {shown(getattr(self, name))}")
        if self.output_kind not in ("cumulative", "delta", "final"):
            raise InvalidRequest("output_kind", f"must be cumulative, delta or final, not {shown(self.output_kind)}")
        _integer("n", self.n, 1, MAX_N)
        _integer("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens", f"{shown(self.min_tokens)} is more than max_tokens {shown(self.max_tokens)}")
        _number("repetition_penalty", self.repetition_penalty, 0.0, 1e6, above=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), -1)
        self._check_stop()
        self._check_bias()
        object.__setattr__(
            self, "stop_token_ids", tuple(dict.fromkeys(ids))
        )  # a list that its owner changes later changes nothing here
        if not isinstance(self.stop, str):
            object.__setattr__(self, "stop", tuple(self.stop))
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_stop(self) -> None:
        stops: Any = self.stop
        if not isinstance(stops, str) and not isinstance(stops, Sequence):
            raise InvalidRequest("stop", f"must be a string or strings, not {shown(stops)}")
        for stop in self.stop_strings:
            if not isinstance(stop, str) or not stop:
                raise InvalidRequest("stop", f"must hold strings that are not empty, not {shown(stop)}")

    def _check_bias(self) -> None:
        bias: Any = self.logit_bias
        if bias is None:
            return
        if not isinstance(bias, Mapping):
            raise InvalidRequest("logit_bias", f"must map token ids to numbers, not {shown(bias)}")
        for token, value in bias.items():
            if type(token) is not int or token < 0:
                raise InvalidRequest("logit_bias", f"{shown(token)} is not a token id")
            _number("logit_bias", value, -100.0, 100.0)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if isinstance(self.stop, str):
            return (self.stop,) if self.stop else ()
        return tuple(self.stop)

    @property
    def penalizes(self) -> bool:
        """Whether sampling depends on which tokens came before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def adjusts(self) -> bool:
        """Whether a step needs an `Adjustment` for it."""
        reports = self.logprobs is not None or self.prompt_logprobs is not None
        return self.penalizes or reports or bool(self.logit_bias) or self.min_tokens > 0

    @classmethod
    def of(cls, /, **parameters: Any) -> SamplingParams:
        """Parameters by name, as clients send them.

        Raises:
            InvalidRequest: an unknown name, naming it.
        """
        known = {field.name for field in fields(cls)}
        for name in parameters:
            if name not in known:
                raise InvalidRequest(name, f"unknown parameter; known are {', '.join(sorted(known))}")
        return cls(**parameters)


def _number(field: str, value: object, low: float, high: float, above: bool = False) -> None:
    try:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    except OverflowError:  # an integer that no float holds
        good = False
    if not good or (above and value == low):
        raise InvalidRequest(field, f"must be a number {'above' if above else 'from'} {low:g} to {high:g}, not {shown(value)}")


def _integer(field: str, value: object, low: int | None, high: int | None = None) -> None:
    if type(value) is not int or (low is not None and value < low) or (high is not None and value > high):
        bounds = ("" if low is None else f" of at least {low}") + ("" if high is None else f" and at most {high}")
        raise InvalidRequest(field, f"must be an integer{bounds}, not {shown(value)}")
