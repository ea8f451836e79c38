"""Every sampling parameter through the whole engine on the real CPU device: what is asked for reaches the device, and comes back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder

PROMPT = list(range(20, 60))
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def live(body: Callable[[AsyncEngine], Awaitable[Any]], **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "model": str(checkpoint_folder("small")),
        "num_threads": 1,
        "dtype": "float32",
        "max_model_len": 160,
    }

    async def main() -> Any:
        async with AsyncEngine(EngineConfig(**(settings | {"num_kv_blocks": 64} | changes))) as engine:
            return await body(engine)

    return asyncio.run(main())


async def ask(engine: AsyncEngine, params: SamplingParams, prompt: list[int] = PROMPT) -> list[RequestOutput]:
    return [output async for output in engine.generate(prompt, params)]


def test_logprobs_tell_the_sampled_token_first_and_add_up() -> None:
    async def body(engine: AsyncEngine) -> None:
        last = (await ask(engine, replace(GREEDY, logprobs=3)))[-1].outputs[0]
        assert last.logprobs is not None
        assert len(last.logprobs) == len(last.token_ids) == 12
        for token, position in zip(last.token_ids, last.logprobs, strict=True):
            assert next(iter(position)) == token
            assert position[token].rank == 1, "greedy takes the most likely"
            assert all(one.logprob <= 0 for one in position.values())
            assert len(position) in (3, 4)
        assert last.cumulative_logprob == pytest.approx(
            sum(p[t].logprob for t, p in zip(last.token_ids, last.logprobs, strict=True))
        )
        deltas = await ask(engine, replace(GREEDY, logprobs=3, output_kind="delta"))
        assert [one for output in deltas for one in output.outputs[0].logprobs or ()] == list(last.logprobs)
        whole = (await ask(engine, replace(GREEDY, max_tokens=1, logprobs=-1)))[-1].outputs[0].logprobs
        assert whole is not None
        assert math.fsum(math.exp(one.logprob) for one in whole[0].values()) == pytest.approx(1, abs=1e-4)
        assert (await ask(engine, GREEDY))[-1].outputs[0].logprobs is None

    live(body)


@pytest.mark.parametrize("budget", [512, 7])
def test_prompt_logprobs_tell_every_prompt_token_however_it_is_chunked_or_cached(budget: int) -> None:
    async def body(engine: AsyncEngine) -> list[float]:
        first = (await ask(engine, replace(GREEDY, prompt_logprobs=1)))[-1]
        again = (await ask(engine, replace(GREEDY, prompt_logprobs=1)))[-1]
        assert first.prompt_logprobs is not None
        assert first.prompt_logprobs[0] is None
        assert again.num_cached_tokens == 0, "the cache holds no logits"
        told = []
        for token, position in zip(PROMPT[1:], first.prompt_logprobs[1:], strict=True):
            assert position is not None
            told.append(position[token].logprob)
        assert again.prompt_logprobs is not None
        assert [p is None for p in again.prompt_logprobs] == [True] + [False] * (len(PROMPT) - 1)
        return told

    chunked = live(body, batch_invariant=True, max_num_batched_tokens=budget, max_num_seqs=4)
    whole = live(body, batch_invariant=True, max_num_batched_tokens=64, max_num_seqs=4)
    assert chunked == whole


def test_a_penalty_knows_every_token_before_at_depth_two_as_at_depth_one() -> None:
    penalized = replace(GREEDY, max_tokens=40, repetition_penalty=10.0, presence_penalty=0.7, frequency_penalty=0.4)

    async def body(engine: AsyncEngine) -> tuple[tuple[int, ...], ...]:
        longer = replace(GREEDY, max_tokens=40)
        outputs = await asyncio.gather(ask(engine, penalized), ask(engine, longer), ask(engine, penalized, PROMPT[5:]))
        return tuple(output[-1].token_ids for output in outputs)

    overlapped, apart = live(body), live(body, overlap=False)
    assert overlapped == apart
    assert overlapped[0] != overlapped[1], "the penalty changed something"


def test_a_bias_forces_and_forbids_tokens() -> None:
    async def body(engine: AsyncEngine) -> None:
        forced = (await ask(engine, replace(GREEDY, logit_bias={77: 100.0})))[-1]
        assert set(forced.token_ids) == {77}
        free = (await ask(engine, GREEDY))[-1].token_ids
        without = (await ask(engine, replace(GREEDY, logit_bias={free[0]: -100.0})))[-1].token_ids
        assert free[0] not in without
        with pytest.raises(errors.InvalidRequest, match="logit_bias"):
            await ask(engine, replace(GREEDY, logit_bias={100_000: 1.0}))

    live(body)


def test_min_tokens_keeps_stop_tokens_away_until_then() -> None:
    async def body(engine: AsyncEngine) -> None:
        eager = replace(GREEDY, ignore_eos=False, logit_bias={77: 100.0}, stop_token_ids=(77,))
        assert (await ask(engine, eager))[-1].token_ids == (77,)
        held = (await ask(engine, replace(eager, min_tokens=5)))[-1]
        assert len(held.token_ids) == 6
        assert 77 not in held.token_ids[:5]
        assert held.token_ids[5] == 77
        assert held.outputs[0].stop_reason == 77

    live(body)


def test_top_k_one_is_greedy_and_seeds_repeat_alone_and_in_a_crowd() -> None:
    async def body(engine: AsyncEngine) -> None:
        greedy = (await ask(engine, GREEDY))[-1].token_ids
        assert (await ask(engine, replace(GREEDY, temperature=1.0, top_k=1)))[-1].token_ids == greedy
        seeded = replace(GREEDY, temperature=1.3, top_p=0.9, min_p=0.01, seed=9, n=2)
        alone = [child.token_ids for child in (await ask(engine, seeded))[-1].outputs]
        crowd = await asyncio.gather(*(ask(engine, replace(seeded, seed=seed)) for seed in (8, 9, 10, 9)))
        assert [child.token_ids for child in crowd[1][-1].outputs] == alone
        assert [child.token_ids for child in crowd[3][-1].outputs] == alone
        assert alone[0] != alone[1], "each child has noise of its own"

    live(body, batch_invariant=True)
