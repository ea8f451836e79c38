"""What clients send, in the words of OpenAI's API, vLLM's additions to it, and the native routes of vLLM and SGLang.

Unknown keys are ignored, as the peers ignore them; values are judged by `SamplingParams`, whose error names the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from quiesce.engine.errors import InvalidRequest, shown
from quiesce.engine.sampling_params import SamplingParams

SAMPLING: Final = (
    "n", "temperature", "top_p", "top_k", "min_p", "seed", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "include_stop_str_in_output", "skip_special_tokens",
)  # fmt: skip
"""Fields that mean the same here and in `SamplingParams`; null is the default."""
UNKNOWN_HERE: Final = (
    "best_of",
    "suffix",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "tools",
)
"""What this engine cannot do: answering as if it had would be a lie."""


TOKEN_ID: Final = re.compile("[0-9]{1,9}")


class Wire(BaseModel):
    """Base: unknown keys are kept aside, so that some can be refused by name."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    def refuse_the_impossible(self) -> None:
        """Raises InvalidRequest for an option that changes what is generated and that the engine does not have."""
        for name in UNKNOWN_HERE:
            value = (self.model_extra or {}).get(name)
            if value not in (None, [], {}, "", 1):
                raise InvalidRequest(name, "is not in this engine")


class StreamOptions(BaseModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampled(Wire):
    """What every generating call of the OpenAI kind takes."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    # vLLM's
    request_id: str | None = None
    session_id: str | None = None
    priority: int = 0
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_weight_versions: bool | None = None

    def chosen(self) -> dict[str, Any]:
        """The sampling parameters that were given."""
        self.refuse_the_impossible()
        found = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        if self.logit_bias is not None:
            found["logit_bias"] = _bias(self.logit_bias)
        if self.prompt_logprobs is not None:
            found["prompt_logprobs"] = self.prompt_logprobs
        return found

    @property
    def output_kind(self) -> str:
        return "delta" if self.stream else "final"


class CompletionRequest(Sampled):
    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = False
    logprobs: int | None = None

    def params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Raises InvalidRequest: a value cannot be; names the field."""
        if self.echo:
            raise InvalidRequest("echo", "is not in this engine; prompt_logprobs gives the prompt's own logprobs")
        tokens = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return SamplingParams.of(
            **{**defaults, **self.chosen(), **tokens, "logprobs": self.logprobs, "output_kind": self.output_kind}
        )


class ChatRequest(Sampled):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    def params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """As of a completion, but that a chat without a limit runs to its end.

        Raises:
            InvalidRequest: a value cannot be; names the field.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs", "needs logprobs")
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return SamplingParams.of(
            **{**defaults, **self.chosen(), "max_tokens": limit, "logprobs": logprobs, "output_kind": self.output_kind}
        )


class TokensRequest(Wire):
    """vLLM's token-in/token-out: `POST /inference/v1/generate`."""

    token_ids: list[int]
    sampling_params: dict[str, Any] = Field(default_factory=dict)
    request_id: str | None = None
    model: str | None = None
    session_id: str | None = None
    priority: int = 0
    stream: bool | None = False

    def params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Raises InvalidRequest: a value cannot be; names the field."""
        return native_params(self.sampling_params, defaults, "delta" if self.stream else "final")


class GenerateRequest(Wire):
    """SGLang's native route: `POST /generate`."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: dict[str, Any] | None = None
    stream: bool = False
    rid: str | list[str] | None = None
    return_logprob: bool = False
    top_logprobs_num: int = 0

    def params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Raises InvalidRequest: a value cannot be; names the field."""
        given = dict(self.sampling_params or {})
        for theirs, ours in (("max_new_tokens", "max_tokens"), ("min_new_tokens", "min_tokens")):
            if theirs in given:
                given[ours] = given.pop(theirs)
        if self.return_logprob:
            given["logprobs"] = self.top_logprobs_num
        return native_params({"max_tokens": 128, **given}, defaults, "cumulative" if self.stream else "final")


class TokenizeRequest(Wire):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = False
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Wire):
    tokens: list[int]


def native_params(given: Mapping[str, Any], defaults: Mapping[str, Any], output_kind: str) -> SamplingParams:
    """Sampling parameters of a native route: names of ours count, others are ignored.

    Raises:
        InvalidRequest: a value cannot be; names the field.
    """
    names = (*SAMPLING, "max_tokens", "logprobs", "prompt_logprobs")
    found = {**defaults, **{name: given[name] for name in names if given.get(name) is not None}, "output_kind": output_kind}
    if given.get("logit_bias") is not None:
        found["logit_bias"] = _bias(given["logit_bias"])
    return SamplingParams.of(**found)


def _bias(given: object) -> dict[int, float]:
    """JSON knows only texts as keys."""
    if not isinstance(given, Mapping) or not all(TOKEN_ID.fullmatch(str(key)) for key in given):
        raise InvalidRequest("logit_bias", f"must map token ids to numbers, not {shown(given)}")
    return {int(key): value for key, value in given.items()}
