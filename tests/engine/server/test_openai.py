"""The `openai` client, unmodified, against `quiesce serve`: what it gets is what the engine says in Python."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from quiesce import AsyncEngine, EngineConfig, SamplingParams
from quiesce.engine.outputs import RequestOutput
from tests.engine.server.served import SMALL, Served, until

PROMPT = "hello"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("--dtype", "float32", "--batch-invariant") as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def truth() -> RequestOutput:
    """What the engine itself generates."""

    async def generated() -> RequestOutput:
        config = EngineConfig(model=SMALL, dtype="float32", batch_invariant=True)
        async with AsyncEngine(config) as engine:
            return [
                output async for output in engine.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12, logprobs=2))
            ][-1]

    return asyncio.run(generated())


def test_a_completion_has_the_engines_text_and_counts(client: openai.OpenAI, truth: RequestOutput) -> None:
    found = client.completions.create(model="small", prompt=PROMPT, temperature=0, max_tokens=12)
    assert found.choices[0].text == truth.text
    assert found.choices[0].finish_reason == truth.finish_reason
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(truth.prompt_token_ids), len(truth.token_ids))


def test_a_stream_says_the_same_in_pieces_and_its_usage_last(client: openai.OpenAI, truth: RequestOutput) -> None:
    stream = client.completions.create(
        model="small", prompt=PROMPT, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    frames = list(stream)
    assert "".join(frame.choices[0].text for frame in frames if frame.choices) == truth.text
    assert [frame.choices[0].finish_reason for frame in frames if frame.choices][-1] == truth.finish_reason
    assert frames[-1].choices == []
    assert frames[-1].usage is not None
    assert frames[-1].usage.completion_tokens == len(truth.token_ids)


def test_logprobs_are_the_engines(client: openai.OpenAI, truth: RequestOutput) -> None:
    found = (
        client.completions.create(model="small", prompt=PROMPT, temperature=0, max_tokens=12, logprobs=2).choices[0].logprobs
    )
    assert found is not None
    assert truth.outputs[0].logprobs is not None
    expected = [position[token].logprob for token, position in zip(truth.token_ids, truth.outputs[0].logprobs, strict=True)]
    assert found.token_logprobs == pytest.approx(expected, rel=1e-6)
    assert "".join(found.tokens or []) == truth.text + "<|im_end|>"
    assert found.text_offset is not None
    assert found.text_offset[0] == 0


def test_chat_is_the_template_and_then_a_completion(client: openai.OpenAI, server: Served) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    found = client.chat.completions.create(
        model="small",
        messages=messages,
        temperature=0,
        max_tokens=8,
        logprobs=True,
        top_logprobs=2,
    )
    ids = server.post("/tokenize", {"messages": messages}).json()["tokens"]
    same = client.completions.create(model="small", prompt=ids, temperature=0, max_tokens=8)
    assert found.choices[0].message.content == same.choices[0].text
    assert found.choices[0].logprobs is not None
    assert found.choices[0].logprobs.content is not None
    assert all(len(position.top_logprobs) == 2 for position in found.choices[0].logprobs.content)


def test_a_chat_stream_begins_with_the_role_and_every_choice_ends_once(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "hi"}], max_tokens=6, n=2, seed=7, stream=True
    )
    frames = [frame.choices[0] for frame in stream if frame.choices]
    for index in (0, 1):
        mine = [choice for choice in frames if choice.index == index]
        assert mine[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in mine].count(None) == len(mine) - 1
        assert mine[-1].finish_reason in ("stop", "length")


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    prompts = ["one", "two", "three"]
    together = client.completions.create(model="small", prompt=prompts, temperature=0, max_tokens=5)
    alone = [client.completions.create(model="small", prompt=prompt, temperature=0, max_tokens=5) for prompt in prompts]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone]
    assert [choice.index for choice in together.choices] == [0, 1, 2]


def test_stop_strings_end_a_completion(client: openai.OpenAI, truth: RequestOutput) -> None:
    stop = truth.text[3:5]
    found = client.completions.create(model="small", prompt=PROMPT, temperature=0, max_tokens=12, stop=[stop])
    assert found.choices[0].finish_reason == "stop"
    assert found.choices[0].text == truth.text[: truth.text.index(stop)]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"n": "many"}, "n"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": []}, "prompt"),
        ({"suffix": "behind"}, "suffix"),
        ({"prompt": [100_000]}, "prompt"),
    ],
)
def test_a_value_that_cannot_be_is_answered_400_and_named(server: Served, body: dict[str, object], named: str) -> None:
    answer = server.post("/v1/completions", {"model": "small", "prompt": "hi", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == named


def test_unknown_keys_are_ignored_and_an_unknown_model_is_not(server: Served, client: openai.OpenAI) -> None:
    assert server.post("/v1/completions", {"prompt": "hi", "max_tokens": 1, "metadata": {"a": 1}}).status_code == 200
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt", prompt="hi")
    assert server.post("/v1/completions", content=b"{not json").status_code == 400


def test_a_client_that_leaves_a_stream_leaves_nothing_behind(client: openai.OpenAI, server: Served) -> None:
    before = server.lifecycle()
    with until(server, "request abort", "request ended reap"):
        stream = client.completions.create(
            model="small", prompt="hi", max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    after = server.lifecycle()
    assert after["streams"] == 0
    assert after["requests"] == {}
    assert after["finished"]["abort"] == before["finished"]["abort"] + 1
    assert after["accepted"] == sum(after["finished"].values())


def test_a_client_that_leaves_before_its_answer_leaves_nothing_behind(server: Served) -> None:
    with until(server, "request abort", "request ended reap"), pytest.raises(openai.APITimeoutError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=0.3).completions.create(
            model="small", prompt="hi", max_tokens=1900, extra_body={"ignore_eos": True}
        )
    assert server.lifecycle()["streams"] == 0
