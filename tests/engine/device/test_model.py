"""The forward pass against transformers, and against itself in other batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from quiesce.engine.device.runner import Runner

if TYPE_CHECKING:
    from tests.engine.device.conftest import Harness, Reference


@pytest.fixture
def load(harness: type[Harness]) -> Iterator[Callable[..., Runner]]:
    made: list[Runner] = []

    def make(reference: Reference, num_blocks: int = 40, **changes: object) -> Runner:
        runner = Runner(harness.config(load_format="auto", **changes), reference.info, num_blocks, progress=False)
        made.append(runner)
        return runner

    yield make
    for runner in made:
        runner.close()


def prompt_logits(harness: type[Harness], runner: Runner, prompt: list[int], blocks: list[int]) -> torch.Tensor:
    """Logits after every prefix of the prompt, one token at a time."""
    parts = [runner.forward(harness.step(harness.Chunk([token], at, blocks))) for at, token in enumerate(prompt)]
    return torch.cat(parts)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_logits_equal_transformers_on_a_random_checkpoint(
    harness: type[Harness], load: Callable[..., Runner], reference: Reference, batch_invariant: bool
) -> None:
    runner = load(reference, batch_invariant=batch_invariant)
    decoded = prompt_logits(harness, runner, reference.prompt, list(range(30, 40)))
    assert (decoded - reference.logits).abs().max() <= 2e-4
    prefill = runner.forward(harness.step(harness.Chunk(reference.prompt, 0, list(range(10)))))
    assert (prefill[0] - reference.logits[-1]).abs().max() <= 2e-4
    assert reference.logits.abs().max() > 1.0  # the comparison compares something


@pytest.mark.parametrize("block_size", [1, 4, 16, 128])
def test_greedy_tokens_equal_transformers_over_64_steps(
    harness: type[Harness], load: Callable[..., Runner], reference: Reference, block_size: int
) -> None:
    need = -(-(len(reference.prompt) + 64) // block_size)
    runner = load(reference, num_blocks=need + 3, block_size=block_size)
    assert harness.generate(runner, reference.prompt, list(range(need + 2, 2, -1)), 64) == reference.tokens
    assert len(set(reference.tokens)) > 3


@pytest.mark.parametrize("chunk", [1, 3, 16])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_chunked_prompt_gives_the_same_tokens(
    harness: type[Harness], load: Callable[..., Runner], reference: Reference, chunk: int, batch_invariant: bool
) -> None:
    runner = load(reference, batch_invariant=batch_invariant)
    assert harness.generate(runner, reference.prompt, list(range(5, 30)), 8, chunk) == reference.tokens[:8]


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_prompts_and_decodes_of_many_lengths_in_one_step_do_not_disturb_each_other(
    harness: type[Harness], load: Callable[..., Runner], reference: Reference, batch_invariant: bool
) -> None:
    runner = load(reference, num_blocks=80, batch_invariant=batch_invariant)
    tables = np.random.default_rng(0).permutation(80).reshape(8, 10).tolist()
    lengths = [1, 2, 5, 37, 9, 30, 17, 36]
    for row, length in enumerate(lengths):  # what comes before the step
        before = length - 1 if row % 2 else length // 2
        if before:
            runner.run(harness.step(harness.Chunk(reference.prompt[:before], 0, tables[row], row=row, sample=False)))
    chunks = []
    for row, length in enumerate(lengths):
        start = length - 1 if row % 2 else length // 2
        chunks.append(harness.Chunk(reference.prompt[start:length], start, tables[row], row=row))
    logits = runner.forward(harness.step(*chunks))
    for row, length in enumerate(lengths):
        assert (logits[row] - reference.logits[length - 1]).abs().max() <= 2e-4, f"row {row}"


@pytest.mark.parametrize("group_slots", [1, 16, 100])
def test_decode_groups_of_every_size_give_the_same_logits(
    harness: type[Harness], load: Callable[..., Runner], reference: Reference, group_slots: int
) -> None:
    runner = load(reference, num_blocks=80)
    tables = np.random.default_rng(0).permutation(80).reshape(8, 10).tolist()
    lengths = [4, 30, 2, 37, 29, 8, 31, 3]
    rows = list(enumerate(lengths))
    prompts = [harness.Chunk(reference.prompt[:n], 0, tables[row], row=row, sample=False) for row, n in rows]
    runner.run(harness.step(*prompts))
    runner.shape = replace(runner.shape, group_slots=group_slots)
    decodes = [harness.Chunk([reference.prompt[n - 1]], n - 1, tables[row], row=row) for row, n in rows]
    logits = runner.forward(harness.step(*decodes))
    assert (logits - reference.logits[[n - 1 for n in lengths]]).abs().max() <= 2e-4


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_nan_in_freed_blocks_and_past_the_context_never_leaks(
    harness: type[Harness], load: Callable[..., Runner], reference: Reference, batch_invariant: bool
) -> None:
    runner = load(reference, num_blocks=40, batch_invariant=batch_invariant)
    runner.poison(np.arange(40))
    blocks = list(range(7, 37))
    assert harness.generate(runner, reference.prompt, blocks, 12, chunk=11) == reference.tokens[:12]
    # A short request beside a long one is padded to its length, and reads the NaN past its own end.
    short = harness.Chunk(reference.prompt[:1], 0, [2], row=1)
    long = harness.Chunk(reference.tokens[12 - 1 : 12], len(reference.prompt) + 11, blocks)
    logits = runner.forward(harness.step(short, long))
    assert logits.isfinite().all()
    assert (logits[0] - reference.logits[0]).abs().max() <= 2e-4
    assert int(logits[1].argmax()) == reference.tokens[12]
    # One of half the length shares the long one's batched product: its table is padded, and not with block 0.
    runner.run(harness.step(harness.Chunk(reference.prompt[:24], 0, [1, 2, 3, 4, 5, 6], row=1, sample=False)))
    middle = harness.Chunk([reference.prompt[24]], 24, [1, 2, 3, 4, 5, 6, 39], row=1)
    logits = runner.forward(harness.step(middle, long))
    assert (logits[0] - reference.logits[24]).abs().max() <= 2e-4


def test_a_block_table_that_ends_before_the_context_fails_the_step(
    harness: type[Harness], load: Callable[..., Runner], reference: Reference
) -> None:
    runner = load(reference)
    for blocks in ([0], [0, -1], [0, 40]):
        with pytest.raises(ValueError, match="names no block"):
            runner.forward(harness.step(harness.Chunk(reference.prompt[:5], 0, blocks)))
