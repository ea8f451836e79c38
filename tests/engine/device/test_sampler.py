"""Adjustments and log probabilities of a step, against transformers and against formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from quiesce.engine.device.runner import Landed, Runner
from quiesce.engine.messages import Adjustment, TokenLogprobs

if TYPE_CHECKING:
    from tests.engine.device.conftest import Harness, Reference

BLOCKS = list(range(10))


@pytest.fixture
def load(harness: type[Harness], one_reference: Reference) -> Iterator[Callable[..., Runner]]:
    made: list[Runner] = []

    def make(**changes: object) -> Runner:
        made.append(Runner(harness.config(load_format="auto", **changes), one_reference.info, 60, progress=False))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


def ids(*values: int) -> np.typing.NDArray[np.int64]:
    return np.array(values, np.int64)


def fixed_logits(monkeypatch: pytest.MonkeyPatch, runner: Runner, logits: np.typing.NDArray[np.float32]) -> None:
    """The model answers these logits at every row."""
    monkeypatch.setattr(Runner, "_logits", lambda self, hidden: torch.from_numpy(logits).repeat(len(hidden), 1))


def test_bias_and_repetition_penalty_are_transformers_own(
    harness: type[Harness], load: Callable[..., Runner], checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, runner = np.load(checkpoints / "processors.npz"), load()
    fixed_logits(monkeypatch, runner, arrays["logits"])
    seen: list[torch.Tensor] = []
    drawer = runner._sampler._draw
    draw = drawer.sample

    def watched(self: object, logits: torch.Tensor, *rest: Any) -> Any:
        seen.append(logits.clone())
        return draw(logits, *rest)

    monkeypatch.setattr(type(drawer), "sample", watched)
    for adjustment in (
        Adjustment(1, bias_ids=arrays["ids"], bias=arrays["bias"]),
        Adjustment(1, arrays["history"], 20, repetition_penalty=1.7, bias_ids=arrays["ids"], bias=arrays["bias"]),
    ):
        chunks = [harness.Chunk([5], 0, [row], row=row) for row in range(3)]
        landed = runner.run(harness.step(*chunks, adjustments=[adjustment]))
        wanted = torch.from_numpy(arrays["biased"] if adjustment.history is None else arrays["both"])
        assert torch.equal(seen[-1][1], wanted) or torch.allclose(seen[-1][1], wanted, atol=1e-6)
        assert torch.equal(seen[-1][0], torch.from_numpy(arrays["logits"]))  # the neighbours' stay
        assert torch.equal(seen[-1][2], torch.from_numpy(arrays["logits"]))
        assert landed.token_ids[1] == int(wanted.argmax())
    assert not torch.allclose(seen[0][1], seen[1][1])


def test_presence_and_frequency_penalties_count_the_output_alone(
    harness: type[Harness], load: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, logits = load(), np.zeros(160, np.float32)
    logits[[3, 4, 5]] = 5.0, 4.9, 4.0
    fixed_logits(monkeypatch, runner, logits)

    def token(history: Sequence[int], prompt: int, **penalties: float) -> int:
        adjustment = Adjustment(0, ids(*history), prompt, **penalties)  # type: ignore[arg-type]
        return int(runner.run(harness.step(harness.Chunk([5], 0, [0]), adjustments=[adjustment])).token_ids[0])

    assert token([3, 3, 3], 3, presence_penalty=1.0, frequency_penalty=1.0) == 3
    assert token([9, 3], 1, presence_penalty=0.2) == 4
    assert token([9, 3, 4], 1, presence_penalty=0.8) == 3
    assert token([9, 3, 4], 1, presence_penalty=1.2) == 5
    assert token([9, 3, 3, 4], 1, frequency_penalty=0.2) == 4
    assert token([9, 3, 4, 4, 4, 4], 1, frequency_penalty=0.5) == 3


def test_banned_tokens_are_never_drawn_and_logprobs_are_of_the_model_itself(
    harness: type[Harness], load: Callable[..., Runner], one_reference: Reference
) -> None:
    runner, prompt = load(), one_reference.prompt
    exact = one_reference.logits[-1].double().log_softmax(0)
    top = exact.sort(descending=True)
    banned = top.indices[:2].numpy()
    for heat in (0.0, 5.0):
        adjustment = Adjustment(0, banned_ids=banned, num_logprobs=3)
        drawn = set()
        for key in range(1 if heat == 0.0 else 40):
            chunk = harness.Chunk(prompt, 0, BLOCKS, temperature=heat, key=key)
            landed = runner.run(harness.step(chunk, adjustments=[adjustment]))
            ((index, found),) = landed.logprobs
            token = int(landed.token_ids[0])
            drawn.add(token)
            assert index == 0
            assert found.token_ids == (token, *top.indices[:3].tolist())
            assert found.logprobs == pytest.approx([float(exact[token]), *top.values[:3].tolist()], abs=2e-4)
            assert found.ranks == (top.indices.tolist().index(token) + 1, 1, 2, 3)
        assert not drawn & set(banned.tolist())
        assert (len(drawn) > 10) if heat else drawn == {int(top.indices[2])}


def test_the_whole_vocabulary_and_no_alternative_can_be_asked_for(
    harness: type[Harness], load: Callable[..., Runner], one_reference: Reference
) -> None:
    chunks = [harness.Chunk(one_reference.prompt, 0, [10 * i + b for b in range(10)], row=i) for i in range(3)]
    landed = load().run(harness.step(*chunks, adjustments=[Adjustment(0, num_logprobs=-1), Adjustment(2, num_logprobs=0)]))
    (first, whole), (second, none) = landed.logprobs
    assert (first, second) == (0, 2)
    assert sorted(whole.token_ids[1:]) == list(range(160))
    assert none.token_ids == (one_reference.tokens[0],)
    assert none.logprobs == pytest.approx(whole.logprobs[:1])


def prompt_reports(
    harness: type[Harness], runner: Runner, prompt: list[int], chunks: Sequence[int], crowd: int = 0, count: int = 4
) -> dict[int, TokenLogprobs]:
    """The prompt's log probabilities, with the prompt fed in `chunks` beside `crowd` other requests."""
    found: dict[int, TokenLogprobs] = {}
    done = 0
    for size in chunks:
        others = [harness.Chunk([7 + i, 9, 11 + i][: 1 + i % 3], 0, [20 + i], row=1 + i) for i in range(crowd)]
        mine = harness.Chunk(prompt[done : done + size], done, BLOCKS, sample=done + size == len(prompt))
        place = crowd // 2
        asked = Adjustment(place, ids(*prompt), len(prompt), num_prompt_logprobs=count)
        landed = runner.run(harness.step(*others[:place], mine, *others[place:], adjustments=[asked]))
        assert landed.faults == ()
        for index, position, report in landed.prompt_logprobs:
            assert index == place
            assert position not in found
            found[position] = report
        done += size
    assert done == len(prompt)
    return found


@pytest.mark.parametrize("chunks", [[37], [36, 1], [1] * 37, [16, 16, 5], [1, 33, 3]])
def test_every_prompt_token_but_the_first_is_reported_once_whatever_the_chunks(
    harness: type[Harness], load: Callable[..., Runner], one_reference: Reference, chunks: list[int]
) -> None:
    prompt = one_reference.prompt
    found = prompt_reports(harness, load(), prompt, chunks)
    assert sorted(found) == list(range(1, 37))
    exact = one_reference.logits.double().log_softmax(-1)
    for position, report in found.items():
        top = exact[position - 1].sort(descending=True)
        assert report.token_ids == (prompt[position], *top.indices[:4].tolist())
        wanted = [float(exact[position - 1, prompt[position]]), *top.values[:4].tolist()]
        assert report.logprobs == pytest.approx(wanted, abs=2e-4)
        assert report.ranks[0] == top.indices.tolist().index(prompt[position]) + 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logprobs_are_the_same_bits_in_every_surrounding(
    harness: type[Harness], load: Callable[..., Runner], one_reference: Reference, dtype: str
) -> None:
    runner = load(batch_invariant=True, dtype=dtype, max_num_seqs=64)
    prompt = (one_reference.prompt * 2)[:40]
    alone = prompt_reports(harness, runner, prompt, [40], count=-1)
    assert len(alone) == 39
    for chunks, crowd in (([40], 5), ([39, 1], 0), ([13, 27], 3), ([1, 31, 8], 36)):
        assert prompt_reports(harness, runner, prompt, chunks, crowd, count=-1) == alone
    # The same row, decoded: what was a prompt token is now sampled, and reported with the same bits.
    mine = harness.Chunk([prompt[20]], 20, BLOCKS, row=0, key=4, temperature=1.0)
    others = [harness.Chunk([3, 4, 5], 0, [40 + i], row=1 + i, temperature=2.0) for i in range(9)]
    for step in (
        harness.step(mine, adjustments=[Adjustment(0, num_logprobs=-1)]),
        harness.step(*others, mine, adjustments=[Adjustment(1, num_logprobs=2), Adjustment(9, num_logprobs=-1)]),
    ):
        _, decoded = runner.run(step).logprobs[-1]
        assert (decoded.token_ids[1:], decoded.logprobs[1:]) == (alone[21].token_ids[1:], alone[21].logprobs[1:])


def test_without_the_option_bits_may_differ_and_tokens_are_still_reported(
    harness: type[Harness], load: Callable[..., Runner], one_reference: Reference
) -> None:
    alone, chunked = (prompt_reports(harness, load(), one_reference.prompt, chunks) for chunks in ([37], [5, 32]))
    assert alone != chunked  # so the comparison above can fail
    assert alone.keys() == chunked.keys()


def run_adjusted(harness: type[Harness], runner: Runner, adjustment: Adjustment) -> Landed:
    chunks = [harness.Chunk([5], 0, [row], row=row) for row in range(2)]
    return runner.run(harness.step(*chunks, adjustments=[adjustment]))


@pytest.mark.parametrize(
    ("adjustment", "reason"),
    [
        (Adjustment(0, banned_ids=np.arange(160)), "leave none to sample"),
        (Adjustment(0, bias_ids=ids(3), bias=np.array([np.inf], np.float32)), "leave none to sample"),
        (Adjustment(0, bias_ids=ids(3), bias=np.array([np.nan], np.float32)), "leave none to sample"),
        (Adjustment(0, bias_ids=ids(160), bias=np.ones(1, np.float32)), "outside the vocabulary"),
        (Adjustment(0, banned_ids=ids(-1)), "outside the vocabulary"),
        (Adjustment(0, ids(2, 400), 2, num_prompt_logprobs=1), "outside the vocabulary"),
    ],
)
def test_an_adjustment_that_cannot_be_is_a_fault_of_its_request_alone(
    harness: type[Harness], load: Callable[..., Runner], adjustment: Adjustment, reason: str
) -> None:
    runner = load()
    landed = run_adjusted(harness, runner, adjustment)
    assert landed.token_ids[0] == -1
    assert landed.token_ids[1] == run_adjusted(harness, runner, Adjustment(1, num_logprobs=0)).token_ids[1] >= 0
    ((index, words),) = landed.faults
    assert index == 0
    assert reason in words


def test_prompt_logprobs_over_poisoned_memory_are_a_fault_not_numbers(
    harness: type[Harness], load: Callable[..., Runner], one_reference: Reference
) -> None:
    runner, prompt = load(), one_reference.prompt
    runner.run(harness.step(harness.Chunk(prompt[:8], 0, BLOCKS)))
    runner.poison(np.array([1]))
    asked = Adjustment(0, ids(*prompt), len(prompt), num_prompt_logprobs=1)
    landed = runner.run(harness.step(harness.Chunk(prompt[8:20], 8, BLOCKS, sample=False), adjustments=[asked]))
    assert landed.faults == ((0, "the logits are not finite"),)
    assert landed.prompt_logprobs == ()


def test_prompt_logprobs_without_the_prompt_fail_the_step(harness: type[Harness], load: Callable[..., Runner]) -> None:
    with pytest.raises(ValueError, match="without its prompt"):
        run_adjusted(harness, load(), Adjustment(0, None, 3, num_prompt_logprobs=1))
