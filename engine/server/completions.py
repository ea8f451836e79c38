"""OpenAI's generating routes: completions and chat completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from quiesce.engine import errors
from quiesce.engine.model import Prompt
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.server.bodies import JsonRoute
from quiesce.engine.server.host import Host
from quiesce.engine.server.replies import Wording, broken_reply, new_id
from quiesce.engine.server.serving import Outputs, finals, stream, unless_gone
from quiesce.engine.server.wire import ChatRequest, CompletionRequest, Sampled

MAX_PROMPTS = 256
"""Prompts of one completion call."""


def router(host: Host) -> APIRouter:
    """The routes, for one engine."""
    routes = APIRouter(tags=["openai"], route_class=JsonRoute)

    @routes.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        host.check_model(asked.model)
        params = asked.params(host.defaults)
        prompts = _prompts(asked.prompt)
        wording = _wording(host, asked, "cmpl", params, params.logprobs or 0)
        return await _answered(request, asked, wording, _generated(host, asked, prompts, params, wording.id))

    @routes.post("/v1/chat/completions")
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        host.check_model(asked.model)
        params = asked.params(host.chat_defaults)
        prompt = host.chat_prompt(asked.messages, asked.add_generation_prompt, asked.chat_template_kwargs or {})
        wording = _wording(host, asked, "chatcmpl", params, asked.top_logprobs or 0)
        return await _answered(request, asked, wording, _generated(host, asked, [prompt], params, wording.id))

    return routes


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    """One prompt or several; a list of numbers is one prompt of token ids."""
    prompts = [cast("Prompt", prompt) for prompt in given]
    if isinstance(given, str) or (prompts and isinstance(prompts[0], int)):
        return [cast("Prompt", given)]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise errors.InvalidRequest("prompt", f"must be 1 to {MAX_PROMPTS} prompts, not {len(prompts)}")
    return prompts


def _wording(host: Host, asked: Sampled, kind: str, params: SamplingParams, num_top: int) -> Wording:
    options = asked.stream_options
    return Wording(
        id=asked.request_id or new_id(kind), model=asked.model or host.name, created=int(time.time()), is_chat=kind == "chatcmpl",
        n=params.n, num_top=num_top, with_token_ids=bool(asked.return_token_ids), tokens_as_ids=bool(asked.return_tokens_as_token_ids),
        with_versions=bool(asked.return_weight_versions), include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
    )  # fmt: skip


def _generated(host: Host, asked: Sampled, prompts: Sequence[Prompt], params: SamplingParams, name: str) -> list[Outputs]:
    """One request for each prompt; nothing is submitted before the first output is asked for."""
    ids = [name] if len(prompts) == 1 else [f"{name}-{place}" for place in range(len(prompts))]
    return [
        host.engine.generate(prompt, params, request_id=each, session_id=asked.session_id, priority=asked.priority)
        for each, prompt in zip(ids, prompts, strict=True)
    ]


async def _answered(request: Request, asked: Sampled, wording: Wording, requests: list[Outputs]) -> Response:
    if asked.stream:
        return await stream(request, requests, wording.frames)
    outputs = await unless_gone(request.receive, finals(requests))
    body = wording.whole(outputs)
    return broken_reply(outputs, body) or JSONResponse(body)
