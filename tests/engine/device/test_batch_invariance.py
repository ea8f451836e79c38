"""`batch_invariant=True`: a request's logits are the same bits whatever is computed around it.

The cases move the one thing each: neighbours, place in the step, chunks, blocks, block order. The last test keeps the property
honest: without the option the same cases differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.device.runner import Runner

if TYPE_CHECKING:
    from tests.engine.device.conftest import Harness

PROMPT = np.random.default_rng(1).integers(0, 96, 150).tolist()
SIZES = {
    "even": {
        "hidden_size": 128,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 32,
        "intermediate_size": 256,
        "vocab_size": 512,
    },
    "odd": {"hidden_size": 60, "num_heads": 3, "num_kv_heads": 1, "head_dim": 10, "intermediate_size": 1100, "vocab_size": 101},
}


# On two threads one case, and a short one: a busy machine makes torch's threads wait for each other at every product.
CASES = [(dtype, sizes) for dtype in ("float32", "bfloat16") for sizes in SIZES]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def runner(request: pytest.FixtureRequest, harness: type[Harness]) -> Iterator[Runner]:
    dtype, sizes = request.param
    info: ModelInfo = harness.info(**SIZES[sizes])
    made = Runner(harness.config(dtype=dtype, batch_invariant=True), info, 200, progress=False)
    spread(made)
    yield made
    made.close()


def spread(runner: Runner) -> None:
    """Makes dummy weights large, so that rounding shows everywhere."""
    for name, view in runner.weights.destinations.items():
        if not name.endswith("norm.weight"):
            view.mul_(8.0)


def last_logits(harness: type[Harness], runner: Runner, blocks: list[int], chunks: list[int], crowd: list[int]) -> torch.Tensor:
    """Logits after PROMPT, fed in `chunks`, in steps where requests of the lengths `crowd` come first and last."""
    done, logits = 0, torch.empty(0)
    others = [100 + i for i in range(100) if 100 + i not in blocks]
    for number, size in enumerate(chunks):
        mine = harness.Chunk(PROMPT[done : done + size], done, blocks, row=9)
        around = []
        for i, length in enumerate(crowd):
            need = -(-length // 4)
            tokens = [(7 * i + 13 * number + j) % 96 for j in range(length)]
            around.append(harness.Chunk(tokens, 0, others[i * 9 : i * 9 + need], row=i))
        place = len(around) // 2
        logits = runner.forward(harness.step(*around[:place], mine, *around[place:]))
        logits = logits[place]
        done += size
    assert done == len(PROMPT)
    return logits


def test_logits_are_the_same_bits_in_every_surrounding(harness: type[Harness], runner: Runner) -> None:
    plain = list(range(40))
    alone = last_logits(harness, runner, plain, [150], [])
    assert alone.isfinite().all()
    assert len(set(alone.tolist())) > 50
    surroundings: list[tuple[list[int], list[int], list[int]]] = [
        (list(range(60, 100))[::-1], [149, 1], []),  # in other blocks, the last token decoded
        (plain, [1, 31, 32, 33, 53], []),  # chunked
        (plain, [150], [1, 5, 33]),  # beside others, at another place among the rows
        (plain, [77, 72, 1], [3, 1, 1, 30]),
    ]
    for blocks, chunks, crowd in surroundings:
        assert torch.equal(alone, last_logits(harness, runner, blocks, chunks, crowd)), (chunks, crowd)


def test_a_cached_prefix_changes_no_bit(harness: type[Harness], runner: Runner) -> None:
    whole = runner.forward(harness.step(harness.Chunk(PROMPT, 0, list(range(40)))))
    shared = [*range(10), *range(50, 80)]  # the first 40 tokens are another request's
    rest = runner.forward(harness.step(harness.Chunk(PROMPT[40:], 40, shared)))
    assert torch.equal(whole, rest)


def test_a_row_gives_the_same_bits_at_every_place_of_the_product(harness: type[Harness], runner: Runner) -> None:
    first: torch.Tensor | None = None
    for place in range(33):
        chunks = [harness.Chunk([(place * 5 + i) % 96], 0, [i], row=0) for i in range(40)]
        chunks[place] = harness.Chunk([17], 0, [150], row=0)
        logits = runner.forward(harness.step(*chunks))[place]
        first = logits if first is None else first
        assert torch.equal(first, logits), place


def test_two_threads_split_no_row_differently(harness: type[Harness]) -> None:
    runner = Runner(harness.config(batch_invariant=True), harness.info(**SIZES["even"], num_layers=1), 64, progress=False)
    spread(runner)
    torch.set_num_threads(2)
    first: torch.Tensor | None = None
    for place in (0, 1, 15, 16, 31):
        chunks = [harness.Chunk([(place * 5 + i) % 96], 0, [i]) for i in range(32)]
        chunks[place] = harness.Chunk([17], 0, [50])
        logits = runner.forward(harness.step(*chunks))[place]
        first = logits if first is None else first
        assert torch.equal(first, logits), place
    torch.set_num_threads(1)
    runner.close()


def test_without_the_option_surroundings_do_change_bits(harness: type[Harness]) -> None:
    runner = Runner(harness.config(), harness.info(**SIZES["even"]), 200, progress=False)
    spread(runner)
    alone = last_logits(harness, runner, list(range(40)), [150], [])
    decoded = last_logits(harness, runner, list(range(40)), [149, 1], [1] * 7)
    assert not torch.equal(alone, decoded)
    assert (alone - decoded).abs().max() < 1e-3
    runner.close()
