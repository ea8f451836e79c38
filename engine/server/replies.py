"""What clients get, in the shapes of OpenAI's API. Plain dictionaries: the engine made the values, there is nothing to validate."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from quiesce.engine import errors
from quiesce.engine.outputs import CompletionOutput, Logprob, RequestOutput
from quiesce.engine.server.serving import Frame

TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 409: "conflict_error", 413: "invalid_request_error",
         429: "rate_limit_error", 500: "internal_server_error", 501: "not_implemented_error", 503: "service_unavailable_error",
         504: "timeout_error"}  # fmt: skip
"""The envelope's `type` for each status."""


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def envelope(status: int, message: str, param: str | None = None, **more: Any) -> dict[str, Any]:
    """OpenAI's error body, with what else is known."""
    return {"error": {"message": message, "type": TYPES.get(status, "api_error"), "param": param, "code": status, **more}}


def error_body(error: errors.EngineError) -> dict[str, Any]:
    """An engine's error: the state it met, what would be legal and what to call first, where it says so."""
    more = {
        name: getattr(error, name)
        for name in ("state", "event", "allowed", "how_to", "superseded_by", "retry_after", "request_id")
        if getattr(error, name, None) not in (None, (), "")
    }
    return envelope(error.http_status, str(error), getattr(error, "field", None), **more)


def broken_body(output: RequestOutput) -> dict[str, Any]:
    """Of a request that ended with an error: whether it is worth being sent again, for a new core is coming."""
    if output.retryable:
        return envelope(503, output.error or "", retryable=True)
    return envelope(500, output.error or "")


def broken_reply(outputs: Iterable[RequestOutput], partial: Any) -> JSONResponse | None:
    """The answer where a request ended with an error: its tokens so far are the client's all the same."""
    broken = next((output for output in outputs if output.error is not None), None)
    if broken is None:
        return None
    body = broken_body(broken)
    return JSONResponse({**body, "partial": partial}, body["error"]["code"], {"Retry-After": "1"} if broken.retryable else None)


def usage(outputs: Iterable[RequestOutput]) -> dict[str, Any]:
    """Token counts of finished requests."""
    found = list(outputs)
    prompt = sum(len(output.prompt_token_ids) for output in found)
    completion = sum(len(child.token_ids) for output in found for child in output.outputs)
    return _usage(prompt, completion, sum(output.num_cached_tokens for output in found))


def _usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


@dataclass(slots=True)
class Wording:
    """How one call's answers are worded."""

    id: str
    model: str
    created: int
    is_chat: bool
    n: int
    num_top: int = 0
    """Most likely tokens to tell at each position."""
    with_token_ids: bool = False
    tokens_as_ids: bool = False
    with_versions: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    first_frame_seen: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    text_offset: dict[int, int] = field(default_factory=dict)

    # ---- whole answers --------------------------------------------------------------------------------------------------------

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """A finished completion or chat completion."""
        choices = [
            self._choice(place * self.n + child.index, child, output)
            for place, output in enumerate(outputs)
            for child in output.outputs
        ]
        return {
            "id": self.id, "object": "chat.completion" if self.is_chat else "text_completion", "created": self.created,
            "model": self.model, "choices": choices, "usage": usage(outputs),
        }  # fmt: skip

    def _choice(self, index: int, child: CompletionOutput, output: RequestOutput) -> dict[str, Any]:
        body: dict[str, Any] = (
            {"message": {"role": "assistant", "content": child.text}} if self.is_chat else {"text": child.text}
        )
        choice = {"index": index, **body, **self._ending(child), "logprobs": self._logprobs(index, child)}
        if output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = [None if one is None else _by_token(one) for one in output.prompt_logprobs]
        if self.with_token_ids:
            choice |= {"token_ids": list(child.token_ids), "prompt_token_ids": list(output.prompt_token_ids)}
        return choice

    def _ending(self, child: CompletionOutput) -> dict[str, Any]:
        found: dict[str, Any] = {"finish_reason": child.finish_reason, "stop_reason": child.stop_reason}
        if self.with_versions:
            found["weight_versions"] = [
                {"version": str(version), "start": start, "end": end} for version, start, end in child.weight_versions
            ]
        return found

    # ---- frames ---------------------------------------------------------------------------------------------------------------

    async def frames(self, outputs: AsyncIterator[tuple[int, RequestOutput]]) -> AsyncGenerator[Frame, None]:
        """Server-sent events: deltas, then usage if asked for, then `[DONE]`. A refusal that comes late is an event, too."""
        prompts: dict[int, RequestOutput] = {}
        completion = 0
        try:
            async for place, output in outputs:
                prompts[place] = output
                for child in output.outputs:
                    completion += len(child.token_ids)
                    for frame in self._deltas(place * self.n + child.index, child, output):
                        if self.continuous_usage:
                            frame["usage"] = self._so_far(prompts, completion)
                        yield frame
                if output.finished and output.error is not None:
                    yield broken_body(output)
        except errors.EngineError as error:
            yield error_body(error)
        if self.include_usage:
            yield {**self._frame([]), "usage": self._so_far(prompts, completion)}
        yield "[DONE]"

    def _so_far(self, prompts: Mapping[int, RequestOutput], completion: int) -> dict[str, Any]:
        prompt = sum(len(output.prompt_token_ids) for output in prompts.values())
        return _usage(prompt, completion, sum(output.num_cached_tokens for output in prompts.values()))

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _deltas(self, index: int, child: CompletionOutput, output: RequestOutput) -> Iterable[dict[str, Any]]:
        if index in self.ended:
            return
        if self.is_chat and index not in self.first_frame_seen:
            self.first_frame_seen.add(index)
            yield self._frame(
                [{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}]
            )
        if child.finish_reason is not None:
            self.ended.add(index)
        elif not child.text and not child.token_ids:
            return
        body: dict[str, Any] = {"delta": {"content": child.text}} if self.is_chat else {"text": child.text}
        choice = {"index": index, **body, **self._ending(child), "logprobs": self._logprobs(index, child)}
        if self.with_token_ids:
            choice["token_ids"] = list(child.token_ids)
        yield self._frame([choice])

    # ---- logprobs -------------------------------------------------------------------------------------------------------------

    def _logprobs(self, index: int, child: CompletionOutput) -> dict[str, Any] | None:
        if child.logprobs is None:
            return None
        return self._chat_logprobs(child) if self.is_chat else self._completion_logprobs(index, child)

    def _chat_logprobs(self, child: CompletionOutput) -> dict[str, Any]:
        content = []
        for token, position in zip(child.token_ids, child.logprobs or (), strict=True):
            tops = [self._told(other, logprob) for other, logprob in position.items() if logprob.rank <= self.num_top]
            content.append({**self._told(token, position[token]), "top_logprobs": tops})
        return {"content": content}

    def _told(self, token: int, logprob: Logprob) -> dict[str, Any]:
        text = self._token_text(token, logprob)
        return {"token": text, "logprob": logprob.logprob, "bytes": list(text.encode())}

    def _completion_logprobs(self, index: int, child: CompletionOutput) -> dict[str, Any]:
        tokens, chosen, tops, offsets = [], [], [], []
        offset = self.text_offset.get(index, 0)
        for token, position in zip(child.token_ids, child.logprobs or (), strict=True):
            text = self._token_text(token, position[token])
            tokens.append(text)
            chosen.append(position[token].logprob)
            tops.append({self._token_text(other, logprob): logprob.logprob for other, logprob in position.items()})
            offsets.append(offset)
            offset += len(text)
        self.text_offset[index] = offset
        return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets}

    def _token_text(self, token: int, logprob: Logprob) -> str:
        return f"token_id:{token}" if self.tokens_as_ids or logprob.decoded_token is None else logprob.decoded_token


def _by_token(position: Mapping[int, Logprob]) -> dict[str, dict[str, Any]]:
    return {
        str(token): {"logprob": one.logprob, "rank": one.rank, "decoded_token": one.decoded_token}
        for token, one in position.items()
    }
