"""Token-in/token-out, which RL trainers use: vLLM's route and SGLang's; and the tokenizer as a service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from quiesce.engine import errors
from quiesce.engine.model import Prompt
from quiesce.engine.outputs import CompletionOutput, RequestOutput
from quiesce.engine.server.bodies import JsonRoute
from quiesce.engine.server.host import Host
from quiesce.engine.server.replies import broken_body, broken_reply, error_body, new_id, usage
from quiesce.engine.server.serving import Frame, finals, stream, unless_gone
from quiesce.engine.server.wire import DetokenizeRequest, GenerateRequest, TokenizeRequest, TokensRequest


def router(host: Host) -> APIRouter:
    """The routes, for one engine."""
    routes = APIRouter(tags=["tokens"], route_class=JsonRoute)

    @routes.post("/inference/v1/generate")
    async def token_ids(asked: TokensRequest, request: Request) -> Response:
        host.check_model(asked.model)
        params = asked.params(host.defaults)
        outputs = host.engine.generate(
            asked.token_ids,
            params,
            request_id=asked.request_id or new_id("gen"),
            session_id=asked.session_id,
            priority=asked.priority,
        )
        if asked.stream:
            return await stream(request, [outputs], _token_frames)
        return _told(await unless_gone(request.receive, finals([outputs])), _choices_of)

    @routes.post("/generate")
    async def generate(asked: GenerateRequest, request: Request) -> Response:
        prompts, single = _prompts(asked)
        params = asked.params(host.defaults)
        requests = [
            host.engine.generate(prompt, params, request_id=name)
            for name, prompt in zip(_rids(asked, len(prompts)), prompts, strict=True)
        ]
        if asked.stream:
            return await stream(request, requests, lambda outputs: _native_frames(outputs, single))
        return _told(await unless_gone(request.receive, finals(requests)), lambda found: _native_all(found, single))

    @routes.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        tokenizer = host.tokenizer("prompt")
        if (asked.prompt is None) == (asked.messages is None):
            raise errors.InvalidRequest("prompt", "give a prompt or messages, and not both")
        text = asked.prompt if asked.messages is None else host.chat_prompt(asked.messages, asked.add_generation_prompt, {})
        ids = tokenizer.encode(text or "", asked.add_special_tokens)
        words = {"token_strs": [tokenizer.decode([token], False) for token in ids]} if asked.return_token_strs else {}
        return {"count": len(ids), "max_model_len": host.engine.model.max_model_len, "tokens": ids, **words}

    @routes.post("/detokenize")
    async def detokenize(asked: DetokenizeRequest) -> dict[str, Any]:
        vocab_size = host.engine.model.info.vocab_size
        for token in asked.tokens:
            if not 0 <= token < vocab_size:
                raise errors.InvalidRequest("tokens", f"token id {token} is outside the vocabulary of {vocab_size}")
        return {"prompt": host.tokenizer("tokens").decode(asked.tokens, False)}

    return routes


def _told(outputs: list[RequestOutput], body: Any) -> Response:
    told = body(outputs)
    return broken_reply(outputs, told) or JSONResponse(told)


# ---- vLLM's ---------------------------------------------------------------------------------------------------------------------


def _choices_of(outputs: list[RequestOutput]) -> dict[str, Any]:
    (output,) = outputs
    return {"request_id": output.request_id, "choices": [_choice(child) for child in output.outputs], "usage": usage(outputs)}


def _choice(child: CompletionOutput) -> dict[str, Any]:
    logprobs = None
    if child.logprobs is not None:
        content = [
            {
                "token": f"token_id:{token}", "logprob": position[token].logprob,
                "top_logprobs": [{"token": f"token_id:{other}", "logprob": one.logprob} for other, one in position.items()],
            }
            for token, position in zip(child.token_ids, child.logprobs, strict=True)
        ]  # fmt: skip
        logprobs = {"content": content}
    versions = [{"version": str(version), "start": start, "end": end} for version, start, end in child.weight_versions]
    return {
        "index": child.index, "token_ids": list(child.token_ids), "finish_reason": child.finish_reason, "logprobs": logprobs,
        "weight_versions": versions,
    }  # fmt: skip


async def _token_frames(outputs: AsyncIterator[tuple[int, RequestOutput]]) -> AsyncGenerator[Frame, None]:
    try:
        async for _, output in outputs:
            yield {"request_id": output.request_id, "choices": [_choice(child) for child in output.outputs]}
            if output.error is not None:
                yield broken_body(output)
    except errors.EngineError as error:
        yield error_body(error)
    yield "[DONE]"


# ---- SGLang's -------------------------------------------------------------------------------------------------------------------


def _prompts(asked: GenerateRequest) -> tuple[list[Prompt], bool]:
    """The prompts, and whether there is one that is not in a list: its answer is not in one either."""
    if (asked.text is None) == (asked.input_ids is None):
        raise errors.InvalidRequest("text", "give text or input_ids, and not both")
    given: Any = asked.text if asked.text is not None else asked.input_ids
    single = isinstance(given, str) or not given or isinstance(given[0], int)
    return ([given], True) if single else (list(given), False)


def _rids(asked: GenerateRequest, count: int) -> list[str]:
    if asked.rid is None:
        name = new_id("rid")
        return [name] if count == 1 else [f"{name}-{place}" for place in range(count)]
    names = [asked.rid] if isinstance(asked.rid, str) else list(asked.rid)
    if len(names) != count:
        raise errors.InvalidRequest("rid", f"names {len(names)} requests of {count}")
    return names


def _native_all(outputs: list[RequestOutput], single: bool) -> Any:
    answers = [_native(child, output) for output in outputs for child in output.outputs]
    return answers[0] if single and len(answers) == 1 else answers


def _native(child: CompletionOutput, output: RequestOutput) -> dict[str, Any]:
    reason = None if child.finish_reason is None else {"type": child.finish_reason, "matched": child.stop_reason}
    meta: dict[str, Any] = {
        "id": output.request_id, "finish_reason": reason, "prompt_tokens": len(output.prompt_token_ids),
        "completion_tokens": len(child.token_ids), "cached_tokens": output.num_cached_tokens,
        "weight_version": str(child.weight_versions[-1][0]) if child.weight_versions else None,
    }  # fmt: skip
    if child.logprobs is not None:
        pairs = list(zip(child.token_ids, child.logprobs, strict=True))
        meta["output_token_logprobs"] = [
            [position[token].logprob, token, position[token].decoded_token] for token, position in pairs
        ]
        meta["output_top_logprobs"] = [
            [[one.logprob, other, one.decoded_token] for other, one in position.items()] for _, position in pairs
        ]
    return {"text": child.text, "output_ids": list(child.token_ids), "meta_info": meta}


async def _native_frames(outputs: AsyncIterator[tuple[int, RequestOutput]], single: bool) -> AsyncGenerator[Frame, None]:
    """Cumulative, as SGLang's are."""
    try:
        async for place, output in outputs:
            for child in output.outputs:
                yield {**_native(child, output), **({} if single else {"index": place})}
            if output.error is not None:
                yield broken_body(output)
    except errors.EngineError as error:
        yield error_body(error)
    yield "[DONE]"
