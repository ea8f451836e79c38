"""A seeded mixture of everything, with cohorts and without; and the same on the real CPU device."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quiesce.engine.api import AsyncEngine
from quiesce.engine.cohort import Cohort
from quiesce.engine.config import EngineConfig
from quiesce.engine.noise import noise_key
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.pipeline import Pipeline
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder
from quiesce.stateful.choices import RandomWalk
from quiesce.stateful.driver import VOCAB_SIZE
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.scenario import prompt_of
from tests.engine.cohort_paths import Played, Story, Teller, count_cohorts, play, truth


@dataclass
class Asked:
    """What one request of a mixture is, and what it is answered when nothing comes between."""

    name: str
    prompt: list[int]
    max_tokens: int
    params: dict[str, Any]

    def expected(self, child: int) -> list[int]:
        key = noise_key(self.params["seed"], child) if "seed" in self.params else 0
        tokens = true_tokens(self.prompt, self.max_tokens, VOCAB_SIZE, key)
        stops = [place for place, token in enumerate(tokens) if token in self.params.get("stop_token_ids", ())]
        return tokens[: stops[0] + 1] if stops else tokens

    def assert_answered_rightly(self, outputs: list[RequestOutput]) -> None:
        for child in outputs[-1].outputs:
            tokens, expected = list(child.token_ids), self.expected(child.index)
            assert tokens == expected[: len(tokens)], self.name
            assert child.finish_reason in ("abort", "error") or len(tokens) == len(expected), self.name


def mixture(seed: int) -> tuple[Story, list[Asked], dict[str, Any]]:
    """Requests of every kind that come, stop, fail and are aborted in steps that a seed chooses, on an engine that it chooses, too."""
    rng = random.Random(seed)
    block_size = rng.choice([1, 2, 4, 8])
    config = {
        "overlap": rng.random() < 0.7, "enable_prefix_caching": rng.random() < 0.6, "block_size": block_size,
        "max_num_seqs": rng.choice([1, 2, 4, 6]), "num_kv_blocks": rng.choice([64, 90, 128, 400]) // block_size,
    }  # fmt: skip
    faults = {(rng.randint(1, 40), rng.randrange(3)) for _ in range(rng.randrange(3))}
    asked = []
    for number in range(7):
        one = Asked(f"r{number}", prompt_of(rng.randrange(4), rng.randint(1, 24)), rng.randint(1, 30), {})
        if rng.random() < 0.4:
            one.params["stop_token_ids"] = [rng.choice(truth(one.prompt, one.max_tokens)), *([1] * rng.randrange(2))]
        if rng.random() < 0.3:
            one.params |= {"n": rng.randint(1, 3), "temperature": 1.0, "seed": rng.randrange(9)}
        if rng.random() < 0.1:
            one.params["logit_bias"] = {9: 0.0}
        asked.append(one)
    waits = [(rng.randint(1, 40) if rng.random() < 0.5 else 0, rng.random() < 0.25, rng.randrange(12)) for _ in asked]

    async def client(teller: Teller, one: Asked, begins: int, aborts: bool, later: int) -> None:
        if begins:
            await teller.until_step(begins)
            teller.go_on(begins)
        task = teller.begin(one.name, one.prompt, one.max_tokens, **one.params)
        if aborts:
            await teller.until_step(begins + later)
            await teller.engine.abort(one.name)
            teller.go_on(begins + later)
        await task

    async def story(teller: Teller) -> None:
        teller.device.fault_at |= faults
        await asyncio.gather(*(client(teller, one, *wait) for one, wait in zip(asked, waits, strict=True)))

    return story, asked, config


@pytest.mark.parametrize("batch", range(10))
def test_both_ways_are_the_same_whatever_happens(ledger_folder: Path, batch: int) -> None:
    """Bit for bit without `prepare`, which gives blocks a pass earlier: who is admitted when, and which cached block goes, may then differ."""
    num_landed = num_preempted = 0
    for seed in range(15 * batch, 15 * batch + 15):
        story, asked, config = mixture(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pipeline, "prepare", lambda pipeline: None)
            plain = play(ledger_folder, story, False, RandomWalk(seed), **config)
            quick = play(ledger_folder, story, True, RandomWalk(seed), **config)
        assert quick.seen() == plain.seen(), seed
        prepared = play(ledger_folder, story, True, RandomWalk(seed), **config)
        for played, one in itertools.product((quick, prepared), asked):
            one.assert_answered_rightly(played.outputs[one.name])
        num_landed += quick.landed
        num_preempted += len(prepared.preempted)
    assert num_landed > 50
    assert num_preempted


def test_the_cpu_device_is_given_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch-invariant, so that the bits do not depend on when a thread runs. One request has a stop string, which no cohort looks for."""
    greedy = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    stop = SamplingParams(max_tokens=24, temperature=0, stop="te")
    rest = (
        greedy,
        replace(greedy, temperature=0.9, seed=5, n=2),
        replace(greedy, max_tokens=60),
        replace(greedy, ignore_eos=False),
    )
    config = EngineConfig(
        model=str(checkpoint_folder("small")), num_threads=1, dtype="float32", batch_invariant=True, max_model_len=160,
        num_kv_blocks=200, block_size=4, max_num_seqs=8, max_num_batched_tokens=64, poison_freed_blocks=True,
    )  # fmt: skip

    async def ask(engine: AsyncEngine, params: SamplingParams) -> list[tuple[object, ...]]:
        question = [{"role": "user", "content": "Which events are legal for a request that is running?"}]
        last = [output async for output in engine.chat(question, params)][-1]
        return [(child.token_ids, child.text, child.finish_reason, child.stop_reason) for child in last.outputs]

    async def main() -> list[list[tuple[object, ...]]]:
        async with AsyncEngine(config) as engine:
            answers = await asyncio.gather(*(ask(engine, params) for params in (*rest, stop)))
            answers += await asyncio.gather(*(ask(engine, params) for params in rest))
            status = engine.status()
        assert (status.blocks.held, status.blocks.fenced, status.live) == (0, 0, 0)
        return answers

    quick, plain = Played(), Played()
    with pytest.MonkeyPatch.context() as patch:
        count_cohorts(patch, quick)
        answers = asyncio.run(main())
    monkeypatch.setattr(Cohort, "fits", staticmethod(lambda *_: False))
    count_cohorts(monkeypatch, plain)
    assert asyncio.run(main()) == answers
    assert plain.launched == []
    assert quick.landed > 20
    assert answers[4][0][2:] == ("stop", "te")
