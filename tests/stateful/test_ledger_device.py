"""The ledger device's memory and weights: what a wrong order, a lost block or a failed move shows there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from quiesce.engine.messages import Checksum, Completion, Device, Fetched, Loaded, Moved, StepInput, StepOutput, WeightsWritten
from quiesce.stateful.ledger_device import LedgerDevice, true_tokens
from quiesce.stateful.minted import launch_effect, load_effect, map_effect, unmap_effect

KV, WEIGHTS, VOCAB = "kv_cache", "weights", 97
PROMPT = [5, 9, 2, 44, 17]
BLOCKS = [6, 2, 3]


class Bench:
    """A ledger device whose work is done when it is told to."""

    def __init__(self) -> None:
        self.offered: list[str] = []
        self.device = LedgerDevice(8, 4, VOCAB, lambda name, work: self.offered.append(name))
        self.device.bind(lambda: None)
        self.device.load()
        assert self.next() == Loaded()

    def next(self) -> Completion:
        self.device.complete()
        (completion,) = self.device.poll()
        return completion

    def launch(self, number: int, tokens: list[int], start: int) -> None:
        count = len(tokens)
        step = StepInput(
            step=number,
            epoch=1,
            version=0,
            rows=np.array([1], np.int32),
            starts=np.array([start], np.int32),
            counts=np.array([count], np.int32),
            token_ids=np.array(tokens, np.int64),
            block_tables=np.array([BLOCKS], np.int32),
            samples=np.array([True]),
            temperature=np.zeros(1, np.float32),
            top_k=np.zeros(1, np.int32),
            top_p=np.ones(1, np.float32),
            min_p=np.zeros(1, np.float32),
            noise_keys=np.zeros(1, np.uint64),
        )
        self.device.launch(launch_effect(number), step)

    def sample(self, number: int, tokens: list[int], start: int) -> int:
        self.launch(number, tokens, start)
        out = self.next()
        assert isinstance(out, StepOutput)
        return int(out.token_ids[0])

    def unmap(self, tag: str, policy: str, blocks: list[int] | None = None) -> Moved:
        self.device.unmap(unmap_effect(tag), tag, policy, blocks or [])
        return self.moved()

    def map(self, tag: str, policy: str) -> Moved:
        self.device.map(map_effect(tag), tag, policy)
        return self.moved()

    def moved(self) -> Moved:
        completion = self.next()
        assert isinstance(completion, Moved)
        return completion

    def write(self, pairs: list[tuple[str, Any]]) -> Exception | None:
        self.device.load_weights(load_effect(), pairs)
        completion = self.next()
        assert isinstance(completion, WeightsWritten)
        return completion.error

    def fetch(self, source: Iterator[tuple[str, Any]]) -> Fetched:
        self.device.fetch(3, source)
        completion = self.next()
        assert isinstance(completion, Fetched)
        return completion

    def checksum(self) -> str:
        self.device.checksum(4)
        completion = self.next()
        assert completion == Checksum(4, completion.digest if isinstance(completion, Checksum) else "")
        return completion.digest


TRUE = true_tokens(PROMPT, 2, VOCAB)


def test_it_is_a_device() -> None:
    device: Device = Bench().device
    assert device.num_blocks == 8


def test_offloaded_kv_comes_back_for_the_blocks_that_were_listed() -> None:
    for kept, right in ((BLOCKS, True), ([6, 2], True), ([6], False), ([], False)):
        b = Bench()
        assert b.sample(0, PROMPT, 0) == TRUE[0]
        assert b.unmap(KV, "offload", kept).num_bytes > 0
        assert b.map(KV, "offload").error is None
        assert (b.sample(1, TRUE[:1], len(PROMPT)) == TRUE[1]) == right  # block 3 holds nothing yet


def test_discarded_kv_is_gone() -> None:
    b = Bench()
    b.sample(0, PROMPT, 0)
    b.unmap(KV, "discard", BLOCKS)
    assert b.map(KV, "discard").to == "restored"
    with pytest.raises(RuntimeError, match="launched while"):  # not zeroed yet
        b.launch(1, TRUE[:1], len(PROMPT))
    assert b.moved() == Moved(KV, "zeroed")
    assert b.sample(2, TRUE[:1], len(PROMPT)) != TRUE[1]
    assert b.sample(3, PROMPT, 0) == TRUE[0]  # computed anew it is whole


def test_weights_alone_leave_the_kv_alone() -> None:
    b = Bench()
    b.sample(0, PROMPT, 0)
    for policy in ("offload", "discard"):
        b.unmap(WEIGHTS, policy)
        assert b.map(WEIGHTS, policy).to == "restored"
    assert b.sample(1, TRUE[:1], len(PROMPT)) == TRUE[1]


@pytest.mark.parametrize("tag", [KV, WEIGHTS])
def test_nothing_happens_on_memory_that_is_not_here(tag: str) -> None:
    b = Bench()
    b.device.unmap(unmap_effect(tag), tag, "offload", [])
    for _ in range(2):  # leaving, then away
        with pytest.raises(RuntimeError, match="launched while"):
            b.launch(0, PROMPT, 0)
        with pytest.raises(RuntimeError, match="moved while"):
            b.device.unmap(unmap_effect(tag), tag, "offload", [])
        if tag == KV:
            with pytest.raises(RuntimeError, match="poisoned while"):
                b.device.poison([1])
        else:
            with pytest.raises(RuntimeError, match="written while"):
                b.device.load_weights(load_effect(), [])
        if b.device.places[tag] == "moving":
            assert b.moved().to == "released"
    with pytest.raises(RuntimeError, match="did not leave"):
        b.device.map(map_effect(tag), tag, "discard")
    if tag == WEIGHTS:
        b.device.checksum(1)
        assert isinstance(getattr(b.next(), "error", None), RuntimeError)
    b.map(tag, "offload")
    assert b.sample(1, PROMPT, 0) == TRUE[0]


def test_memory_moves_and_weights_change_under_no_step() -> None:
    b = Bench()
    b.launch(0, PROMPT, 0)
    with pytest.raises(RuntimeError, match="1 in flight"):
        b.device.unmap(unmap_effect(KV), KV, "offload", [])
    with pytest.raises(RuntimeError, match="1 steps are in flight"):
        b.device.load_weights(load_effect(), [])
    with pytest.raises(RuntimeError, match="did not leave"):
        b.device.map(map_effect(KV), KV, "offload")


@pytest.mark.parametrize("tag", [KV, WEIGHTS])
@pytest.mark.parametrize("to", ["released", "restored"])
def test_a_move_that_fails_changes_nothing_and_may_be_repeated(tag: str, to: str) -> None:
    b = Bench()
    b.sample(0, PROMPT, 0)
    b.write([("w", np.ones(3))])
    digest = b.checksum()
    b.device.fail_move = {(tag, to)}
    if to == "released":
        assert b.unmap(tag, "offload", BLOCKS).error is not None
        assert b.checksum() == digest
    assert b.unmap(tag, "offload", BLOCKS).error is None
    if to == "restored":
        assert b.map(tag, "offload").error is not None
    assert b.map(tag, "offload").error is None
    assert b.device.fail_move == set()
    assert b.checksum() == digest
    assert b.sample(1, TRUE[:1], len(PROMPT)) == TRUE[1]


def test_kv_that_is_not_zeroed_serves_nobody() -> None:
    b = Bench()
    b.device.fail_move = {(KV, "zeroed")}
    b.unmap(KV, "discard")
    b.map(KV, "discard")
    assert b.moved().error is not None
    with pytest.raises(RuntimeError, match="launched while"):
        b.launch(0, PROMPT, 0)


def test_the_checksum_is_a_function_of_what_was_written_and_not_of_its_order() -> None:
    tensors = [(f"t{number}", np.full((2, 3), number, np.float32)) for number in range(5)]
    b, other = Bench(), Bench()
    assert b.write(tensors) is None
    for pair in reversed(tensors):
        assert other.write([pair]) is None
    assert b.checksum() == other.checksum()
    digests = [b.checksum()]
    for changed in (
        ("t1", np.zeros((2, 3), np.float32)),
        ("t1", np.zeros(6, np.float32)),
        ("t1", np.zeros(6)),
        ("t9", np.zeros(6)),
    ):
        b.write([changed])
        digests.append(b.checksum())
    b.unmap(WEIGHTS, "discard")
    b.map(WEIGHTS, "discard")
    digests.append(b.checksum())
    assert len(set(digests)) == len(digests)
    b.write(tensors)
    assert b.checksum() == other.checksum()


def test_a_source_is_fetched_in_chunks_as_copies_and_fails_when_told() -> None:
    b, buffer = Bench(), np.zeros(2)

    def source() -> Iterator[tuple[str, Any]]:
        for number in range(3):
            buffer[:] = number
            yield f"t{number}", buffer

    pairs, found = source(), []
    while fetched := b.fetch(pairs).pairs:
        found.append([(name, value.tolist()) for name, value in fetched])
    assert found == [[("t0", [0.0, 0.0]), ("t1", [1.0, 1.0])], [("t2", [2.0, 2.0])]]
    b.device.fail_fetch = failure = ConnectionError("the trainer is gone")
    assert b.fetch(source()) == Fetched(3, error=failure)
    assert len(b.fetch(source()).pairs) == 2
    assert isinstance(b.fetch(iter([(1, 2, 3)])).error, ValueError)  # type: ignore[list-item] # it is what is tested


def test_a_write_that_fails_has_written_half() -> None:
    b, tensors = Bench(), [("a", np.zeros(1)), ("b", np.zeros(1))]
    digests = [b.checksum()]
    b.device.fail_write = failure = OSError("half-way")
    assert b.write(tensors) is failure
    digests.append(b.checksum())
    assert b.write(tensors) is None
    digests.append(b.checksum())
    assert all(before != after for before, after in pairwise(digests))


def test_every_piece_of_work_is_offered_and_done_in_the_order_it_was_asked_for() -> None:
    b = Bench()
    b.launch(0, PROMPT, 0)
    b.device.checksum(1)
    b.device.fetch(2, iter(()))
    assert b.offered == ["load", "step 0", "checksum 1", "fetch 2"]
    assert [type(b.next()) for _ in range(3)] == [StepOutput, Checksum, Fetched]
    b.unmap(KV, "discard")
    b.map(KV, "discard")
    b.moved()
    assert b.offered[4:] == ["unmap kv_cache", "map kv_cache", "zero kv_cache"]


def test_a_closed_device_reports_nothing() -> None:
    b = Bench()
    b.device.unmap(unmap_effect(KV), KV, "offload", [])
    b.device.close()
    b.device.complete()
    assert b.device.poll() == []
