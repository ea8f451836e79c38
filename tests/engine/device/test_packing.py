"""Matrices in the processor's own layout: the same numbers, in memory once, and gone when the weights go."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from quiesce.engine.device import packing
from quiesce.engine.device.runner import Runner
from quiesce.kernels.linear import can_pack, linear, pack

if TYPE_CHECKING:
    from tests.engine.device.conftest import Bench, Harness

DTYPES = ("float32", "bfloat16")
LARGE: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_layers": 8,
    "tie_word_embeddings": False,
}

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="torch was built without oneDNN")


def made(harness: type[Harness], dtype: str = "float32", **sizes: Any) -> Runner:
    if not can_pack(getattr(torch, dtype)):
        pytest.skip(f"no packing in {dtype} on this processor")
    return Runner(harness.config(dtype=dtype), harness.info(**sizes), 8, progress=False)


def memory() -> int:
    """Bytes of this process that lie in no file: pages of libraries come and go with the system's mood."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 7, 32, 100])
def test_a_packed_matrix_multiplies_like_the_plain_one(dtype: torch.dtype, rows: int) -> None:
    if not can_pack(dtype):
        pytest.skip(f"no packing in {dtype} on this processor")
    x, w, b = torch.randn(rows, 50).to(dtype), torch.randn(70, 50).to(dtype), torch.randn(70).to(dtype)
    packed = pack(w)
    assert torch.equal(packed.to_dense(), w)
    eps = torch.finfo(dtype).eps
    for bias in (None, b):
        assert torch.allclose(linear(x, packed, bias), linear(x, w, bias), rtol=4 * eps, atol=60 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_a_step_packs_the_weights_and_who_asks_for_them_gets_their_bits(harness: type[Harness], dtype: str, tied: bool) -> None:
    runner = made(harness, dtype, tie_word_embeddings=tied)
    before = {name: view.clone() for name, view in runner.weights.destinations.items()}
    step = harness.step(harness.Chunk([5, 9, 2, 44], 0, [3]))
    first = runner.forward(step)
    assert runner.model.weights.is_packed
    assert all(layer.qkv.is_mkldnn and layer.down.is_mkldnn for layer in runner.model.weights.layers)
    after = runner.weights.destinations
    assert all(torch.equal(after[name], view) for name, view in before.items())
    assert torch.equal(runner.forward(step), first)
    runner.close()


@torch.inference_mode()
def test_weights_written_between_two_steps_are_those_of_the_second(harness: type[Harness]) -> None:
    runner, other = made(harness), made(harness)
    step = harness.step(harness.Chunk([5, 9, 2, 44], 0, [3]))
    first = runner.forward(step)
    for each in (runner, other):
        each.weights.destinations["model.layers.1.mlp.down_proj.weight"].mul_(3.0)
        each.weights.destinations["model.embed_tokens.weight"].mul_(2.0)
    assert torch.equal(runner.forward(step), other.forward(step))
    assert not torch.equal(runner.forward(step), first)
    runner.close()
    other.close()


@torch.inference_mode()
def test_packed_weights_are_in_memory_once(harness: type[Harness]) -> None:
    runner = made(harness, **LARGE)
    arena = runner.weights.arena
    plain = arena.resident_bytes()
    assert plain > 0.95 * arena.num_bytes
    runner.forward(harness.step(harness.Chunk([5, 9, 2, 44], 0, [3])))
    tables = runner.model.weights.embed.nbytes
    assert tables <= arena.resident_bytes() < tables + 0.05 * arena.num_bytes
    assert runner.weights.arena.resident_bytes() == plain
    runner.close()


@pytest.mark.parametrize("policy", ["offload", "discard"])
def test_weights_that_leave_packed_leave_nothing_behind(
    bench: Callable[..., Bench], harness: type[Harness], policy: str
) -> None:
    b = bench(info=harness.info(**LARGE)).load()
    size = b.runner.weights.arena.num_bytes
    step = harness.step(harness.Chunk([5, 9, 2, 44], 0, [3]))
    token = b.run(step).token_ids
    assert b.runner.model.weights.is_packed
    full = memory()
    out = b.unmap("weights", policy)
    assert 0.95 * size < out.num_bytes <= size + mmap.PAGESIZE
    assert full - memory() > 0.95 * size
    assert b.map("weights", policy).error is None
    if policy == "offload":
        assert b.run(step).token_ids == token
        assert b.runner.model.weights.is_packed


@torch.inference_mode()
def test_packing_that_fails_halfway_leaves_the_weights_as_they_were(
    harness: type[Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = made(harness, **LARGE)
    before = {name: view.clone() for name, view in runner.weights.destinations.items()}
    calls = []

    def fails(weight: torch.Tensor) -> torch.Tensor:
        calls.append(weight)
        if len(calls) == 4:
            raise MemoryError("no room")
        return pack(weight)

    step = harness.step(harness.Chunk([5, 9, 2, 44], 0, [3]))
    with monkeypatch.context() as patch:
        patch.setattr(packing, "pack", fails)
        with pytest.raises(MemoryError, match="no room"):
            runner.forward(step)
    assert not runner.model.weights.is_packed
    assert all(torch.equal(view, before[name]) for name, view in runner.weights.destinations.items())
    assert runner.forward(step).isfinite().all()
    runner.close()
