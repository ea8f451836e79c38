"""Memory that leaves and comes back: how much, what of its content, at which addresses, and what happens when it cannot."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from quiesce.engine.device.memory import Arena
from quiesce.engine.messages import FROM_DEVICE, Adjustment, Moved, TokenLogprobs
from quiesce.stateful.minted import map_effect, unmap_effect
from tests.engine.device.sleep_tools import nameless_files, open_files, rss

if TYPE_CHECKING:
    from tests.engine.device.conftest import Bench, Harness

PROMPT = [5, 9, 2, 44, 17, 8, 30]
KV, WEIGHTS = "kv_cache", "weights"
both = pytest.mark.parametrize("device_kind", ["cpu", "cuda"])
"""What is true of the CUDA device, too, which is on a dry platform."""
BIG_BLOCKS = 63
"""With the zero block and `big_info` 64 MiB of KV."""


@pytest.fixture(autouse=True)
def _spill_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def big(bench: Callable[..., Bench], harness: type[Harness]) -> Callable[[str], tuple[Bench, torch.Tensor]]:
    """A device with 64 MiB under a tag, all of it written; and the whole of that memory as one tensor."""

    def make(tag: str) -> tuple[Bench, torch.Tensor]:
        if tag == KV:
            info = harness.info(num_layers=4, num_kv_heads=8, num_heads=8, head_dim=64)
            b = bench(num_blocks=BIG_BLOCKS, info=info, block_size=64).load()
            everything = b.runner.kv.view(-1)
        else:
            b = bench(info=harness.info(vocab_size=8192, hidden_size=2048, num_layers=1)).load()
            everything = b.runner.weights.arena.view(0, (b.runner.weights.arena.num_bytes // 4,), torch.float32)
        torch.arange(everything.numel(), out=everything)
        assert everything.nbytes >= 64 << 20
        return b, everything

    return make


@pytest.mark.parametrize("tag", [KV, WEIGHTS])
def test_offloaded_memory_falls_by_the_arena_and_comes_back_as_it_was(
    tag: str, big: Callable[[str], tuple[Bench, torch.Tensor]]
) -> None:
    b, everything = big(tag)
    size, address, full = everything.nbytes, everything.data_ptr(), rss()
    out = b.unmap(tag, "offload", range(BIG_BLOCKS))
    assert out == Moved(tag, "released", out.num_bytes)
    assert 0.95 * size < out.num_bytes <= size + mmap.PAGESIZE
    assert full - rss() > 0.95 * size
    back = b.map(tag, "offload")
    assert back == Moved(tag, "restored", back.num_bytes)
    assert 0.95 * size < back.num_bytes <= size + mmap.PAGESIZE
    assert abs(full - rss()) < 0.05 * size
    assert everything.data_ptr() == address
    kept = everything if tag == WEIGHTS else b.runner.kv[:, :, :BIG_BLOCKS]
    expected = torch.arange(everything.numel(), dtype=torch.float32)
    assert torch.equal(kept, expected if tag == WEIGHTS else expected.view(b.runner.kv.shape)[:, :, :BIG_BLOCKS])


@pytest.mark.parametrize("tag", [KV, WEIGHTS])
def test_discarded_memory_falls_by_the_arena_and_comes_back_as_zeros(
    tag: str, big: Callable[[str], tuple[Bench, torch.Tensor]]
) -> None:
    b, everything = big(tag)
    size, address, full = everything.nbytes, everything.data_ptr(), rss()
    out = b.unmap(tag, "discard", [0, 1])
    assert out.error is None
    assert 0.95 * size < out.num_bytes <= size + mmap.PAGESIZE
    assert full - rss() > 0.95 * size
    assert nameless_files() == 0
    assert b.map(tag, "discard") == Moved(tag, "restored", 0)  # pages come when they are written, as in a new arena
    if tag == KV:
        assert b.moved() == Moved(KV, "zeroed")
    assert everything.data_ptr() == address
    assert not everything.any()
    everything.fill_(1)
    assert abs(full - rss()) < 0.05 * size


@pytest.mark.parametrize("policy", ["offload", "discard"])
def test_weights_that_have_served_leave_no_other_form_of_themselves(
    bench: Callable[..., Bench], harness: type[Harness], policy: str
) -> None:
    """Products may be made with rearranged copies: those go, too, and follow what comes back."""
    b = bench(info=harness.info(vocab_size=8192, hidden_size=2048, num_layers=1, tie_word_embeddings=False)).load()
    size, digest = b.runner.weights.arena.num_bytes, b.checksum()
    step = [harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=number) for number in range(3)]
    token = b.run(step[0]).token_ids[0]
    full = rss()
    assert b.unmap(WEIGHTS, policy).num_bytes > 0.95 * size
    assert full - rss() > 0.95 * size
    assert b.map(WEIGHTS, policy).error is None
    zeros = policy == "discard"
    assert b.run(step[1]).token_ids[0] == (0 if zeros else token)
    assert (b.checksum() == digest) != zeros


def test_what_was_given_back_is_counted_for_this_arena_alone() -> None:
    arena, stop = Arena(8 << 20), threading.Event()

    def churn() -> None:
        while not stop.is_set():
            bytearray(4 << 20)

    noise = threading.Thread(target=churn)
    noise.start()
    try:
        everything = arena.view(0, (8 << 20,), torch.uint8)
        for pages in (0, 1, 100, 2048):
            everything[: pages * mmap.PAGESIZE].fill_(1)
            assert everything[-1] in (0, 1)  # a read of an untouched page takes no memory
            assert arena.resident_bytes() == pages * mmap.PAGESIZE
            arena.drop()
            assert arena.resident_bytes() == 0
    finally:
        stop.set()
        noise.join()
        arena.close()


@both
def test_tokens_after_both_tags_went_and_came_are_bit_identical(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    """And so are their probabilities. The row keeps the token it sampled last: the step after takes it from the device."""

    def answers(sleep: bool) -> list[TokenLogprobs]:
        b, blocks, report = bench().load(), [9, 4, 5, 30], [Adjustment(0, num_logprobs=5)]
        prompt = harness.Chunk(PROMPT, 0, blocks, row=3, temperature=1.0, key=8)
        found = [b.run(harness.step(prompt, number=0, adjustments=report)).logprobs[0][1]]
        for number in range(1, 8):
            if sleep:
                assert b.unmap(KV, "offload", blocks).error is None
                assert b.unmap(WEIGHTS, "offload").error is None
                assert b.runner.weights.arena.resident_bytes() == b.runner.kv_arena.resident_bytes() == 0
                assert b.map(WEIGHTS, "offload").error is None
                assert b.map(KV, "offload").error is None
            chunk = harness.Chunk([FROM_DEVICE], len(PROMPT) + number - 1, blocks, row=3, temperature=1.0, key=8)
            found.append(b.run(harness.step(chunk, number=number, adjustments=report)).logprobs[0][1])
        assert len({report.token_ids[0] for report in found}) > 3
        return found

    assert answers(sleep=True) == answers(sleep=False)


@both
@pytest.mark.parametrize("blocks", [[], [31], [0, 1, 2], [30, 3, 4, 9, 4]])
def test_of_the_kv_the_listed_blocks_are_kept_and_the_rest_is_zero(bench: Callable[..., Bench], blocks: list[int]) -> None:
    b = bench().load()
    kv = b.runner.kv
    kv[:, :, :32] = torch.randn(kv[:, :, :32].shape)
    before = kv.clone()
    assert b.unmap(KV, "offload", blocks).error is None
    assert b.map(KV, "offload").error is None
    others = [block for block in range(33) if block not in blocks]  # 32 is the zero block
    assert torch.equal(kv[:, :, blocks], before[:, :, blocks])
    assert not kv[:, :, others].any()


@both
def test_nothing_touches_memory_that_is_away(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    step = harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=1)
    assert b.run(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=0)).error is None
    b.unmap(KV, "offload", [0, 1])
    with pytest.raises(RuntimeError, match="while kv_cache are away"):
        b.launch(step)
    with pytest.raises(RuntimeError, match="memory is away"):
        b.device.poison([0])
    b.unmap(WEIGHTS, "discard")
    with pytest.raises(RuntimeError, match="weights and kv_cache are away"):
        b.launch(step)
    error = b.write([("model.norm.weight", np.ones(32, np.float32))])
    assert "weights is away" in str(error)
    b.device.checksum(1)
    assert "weights is away" in str(getattr(b.next(), "error", None))
    assert b.runner.weights.arena.resident_bytes() == b.runner.kv_arena.resident_bytes() == 0
    b.map(KV, "offload")
    with pytest.raises(RuntimeError, match="weights are away"):
        b.launch(step)
    b.device.poison([0])
    b.map(WEIGHTS, "discard")
    assert b.run(step).error is None


@both
def test_a_tag_moves_only_from_where_it_is_under_its_own_policy_and_effect(bench: Callable[..., Bench]) -> None:
    b = bench().load()
    unmap, map_ = b.device.unmap, b.device.map
    with pytest.raises(RuntimeError, match="left under None"):
        map_(map_effect(KV), KV, "offload")
    with pytest.raises(RuntimeError, match="effect of tag 0"):
        unmap(unmap_effect(WEIGHTS), KV, "offload", [])
    for tag, policy, blocks in ((KV, "keep", []), ("graphs", "offload", []), (KV, "offload", [32]), (KV, "offload", [-1])):
        with pytest.raises(ValueError, match=r"not a valid Tag|none under which|must be in 0\.\.31"):
            unmap(unmap_effect(KV), tag, policy, blocks)
    unmap(unmap_effect(KV), KV, "offload", [])
    with pytest.raises(RuntimeError, match="while it is moving, not here"):
        unmap(unmap_effect(KV), KV, "offload", [])
    assert b.moved().error is None
    with pytest.raises(RuntimeError, match="while it is away, not here"):
        unmap(unmap_effect(KV), KV, "offload", [])
    with pytest.raises(RuntimeError, match="left under offload"):
        map_(map_effect(KV), KV, "discard")
    assert b.map(KV, "offload").error is None
    with pytest.raises(RuntimeError, match="while it is here, not away"):
        map_(map_effect(KV), KV, "offload")


@both
def test_moves_wait_for_the_steps_launched_before_them(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    b.gate.clear()
    b.launch(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=0))
    b.device.unmap(unmap_effect(KV), KV, "discard", [])
    b.gate.set()
    assert b.landed().error is None
    assert b.moved().to == "released"


def test_fifty_cycles_leave_nothing_behind(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench(num_blocks=1023).load()
    step = harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=0)
    token = b.run(step).token_ids[0]
    b.runner.kv[:, :, :1023].fill_(1)

    def cycle(number: int) -> None:
        policy = "offload" if number % 2 else "discard"
        assert b.unmap(KV, policy, range(0, 1023, 3)).error is None
        assert b.unmap(WEIGHTS, "offload").error is None
        assert nameless_files() == (2 if policy == "offload" else 1)
        assert b.map(WEIGHTS, "offload").error is None
        assert b.map(KV, policy).error is None
        if policy == "discard":
            assert b.moved().to == "zeroed"
        assert b.run(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=number)).token_ids[0] == token

    for number in range(1, 5):
        cycle(number)
    memory, files, threads = rss(), open_files(), threading.active_count()
    for number in range(5, 55):
        cycle(number)
    assert (open_files(), threading.active_count()) == (files, threads)
    assert rss() - memory < 8 << 20  # fifty arenas would be 50


def copies_out(b: Bench) -> None:
    b.device.unmap(unmap_effect(WEIGHTS), WEIGHTS, "offload", [])


def is_away(b: Bench) -> None:
    assert b.unmap(WEIGHTS, "offload").error is None


def copies_in(b: Bench) -> None:
    b.unmap(WEIGHTS, "offload")
    b.device.map(map_effect(WEIGHTS), WEIGHTS, "offload")


def zeroes(b: Bench) -> None:
    b.unmap(KV, "discard")
    b.device.map(map_effect(KV), KV, "discard")


def fetches(b: Bench) -> None:
    """From a source that takes its time."""
    pulled = threading.Event()

    def source() -> Iterator[tuple[str, np.ndarray[tuple[int], np.dtype[np.float32]]]]:
        while True:
            pulled.set()
            time.sleep(0.01)
            yield "model.norm.weight", np.zeros(0, np.float32)

    b.device.fetch(1, source())
    assert pulled.wait(60)


def sums_up(b: Bench) -> None:
    b.device.checksum(1)


@both
@pytest.mark.parametrize("moment", [copies_out, is_away, copies_in, zeroes, fetches, sums_up])
def test_close_at_any_moment_ends_soon_and_leaves_no_file(bench: Callable[..., Bench], moment: Callable[[Bench], None]) -> None:
    b = bench().load()
    moment(b)
    weights, kv = b.runner.weights.arena, b.runner.kv_arena
    b.device.close()
    assert not b.device._thread.is_alive()
    assert b.device.poll() == []
    assert weights.closed
    assert kv.closed
    assert nameless_files() == 0
    with pytest.raises(RuntimeError, match="not loaded"):
        b.device.unmap(unmap_effect(KV), KV, "offload", [])
