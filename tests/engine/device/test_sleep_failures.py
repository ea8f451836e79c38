"""Memory that cannot leave or cannot come back: rolled back, told, and tried again; each refusal is a real one of the system."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from quiesce.engine.device.memory import Arena, Residence
from quiesce.engine.messages import Moved
from quiesce.spec.vocabulary import Tag
from tests.engine.device.sleep_tools import largest_file, locked, nameless_files, open_files

if TYPE_CHECKING:
    from tests.engine.device.conftest import Bench, Harness

PROMPT = [5, 9, 2, 44, 17, 8, 30]
KV, WEIGHTS = "kv_cache", "weights"


@pytest.fixture(autouse=True)
def _spill_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def failing_folder(b: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TMPDIR", "/nowhere")
        yield


def full_disk(b: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with largest_file(20_000):
        yield


def full_disk_that_reserves_nothing(b: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuses(fd: int, begin: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with monkeypatch.context() as patch, largest_file(20_000):
        patch.setattr(os, "posix_fallocate", refuses)
        yield


def locked_page(b: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with locked(b.runner.kv.data_ptr(), 1), locked(b.runner.weights.embed.data_ptr(), 1):
        yield


@pytest.mark.parametrize("tag", [KV, WEIGHTS])
@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        (failing_folder, "in /nowhere"),
        (full_disk, "File too large, for"),
        (full_disk_that_reserves_nothing, "File too large, for"),
        (locked_page, "Invalid argument"),
    ],
)
def test_memory_that_cannot_leave_stays_as_it_was_and_leaves_later(
    bench: Callable[..., Bench],
    monkeypatch: pytest.MonkeyPatch,
    tag: str,
    obstacle: Callable[[Bench, pytest.MonkeyPatch], Iterator[None]],
    words: str,
    harness: type[Harness],
) -> None:
    b, blocks = bench().load(), list(range(32))
    b.runner.kv[:, :, :32] = torch.randn(b.runner.kv[:, :, :32].shape)
    digest, before, files = b.checksum(), b.runner.kv.clone(), open_files()
    with contextmanager(obstacle)(b, monkeypatch):
        out = b.unmap(tag, "offload", blocks)
        assert isinstance(out.error, OSError)
        assert words in str(out.error)
        assert out.num_bytes == 0
        assert open_files() == files
        assert torch.equal(b.runner.kv, before)
        assert b.run(harness.step(harness.Chunk(PROMPT, 0, [0, 1], row=1), number=0)).error is None
    for _ in range(2):
        before = b.runner.kv.clone()
        assert b.unmap(tag, "offload", blocks).error is None
        assert b.map(tag, "offload").error is None
        assert torch.equal(b.runner.kv, before)
        assert b.checksum() == digest


def test_a_failed_copy_leaves_the_content_where_it_is() -> None:
    arena = Arena(1 << 20)
    everything = arena.view(0, (1 << 20,), torch.uint8).fill_(7)
    residence, files, calls = Residence(arena), open_files(), []

    def fail_at_the_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")

    spans = [(begin, begin + 1000) for begin in range(0, 10_000, 1000)]
    with pytest.raises(OSError, match="Input/output error, for 10000 bytes"):
        residence.release(spans, fail_at_the_third)
    assert (everything == 7).all()
    assert open_files() == files
    residence.release(spans, lambda: None)
    calls.clear()
    with pytest.raises(OSError, match="Input/output"):
        residence.restore(fail_at_the_third)
    assert arena.resident_bytes() == 0
    residence.restore(lambda: None)
    assert residence.mapped
    assert (everything[:10_000] == 7).all()
    assert not everything[10_000:].any()
    assert open_files() == files
    arena.close()


@pytest.mark.parametrize("policy", ["offload", "discard"])
def test_memory_that_leaves_only_in_part_has_left(bench: Callable[..., Bench], policy: str) -> None:
    """A page in the middle will not go, and those before it are gone: that cannot be undone under discard, nor needs to be."""
    b, blocks = bench().load(), list(range(32))
    kv = b.runner.kv
    kv[:, :, :32] = torch.randn(kv[:, :, :32].shape)
    before, size = kv.clone(), b.runner.kv_arena.num_bytes
    with locked(kv.data_ptr() + size // 2, 1):
        out = b.unmap(KV, policy, blocks)
        assert out.error is None
        assert 0 < out.num_bytes < size
        assert b.map(KV, policy).error is None
        if policy == "discard":
            assert b.moved() == Moved(KV, "zeroed")
            assert not kv.any()
        else:
            assert torch.equal(kv, before)


@pytest.mark.parametrize("tag", [KV, WEIGHTS])
def test_memory_that_cannot_come_back_stays_away_with_its_copy(bench: Callable[..., Bench], tag: str) -> None:
    b, blocks = bench().load(), list(range(32))
    b.runner.kv[:, :, :32] = torch.randn(b.runner.kv[:, :, :32].shape)
    before, digest = b.runner.kv.clone(), b.checksum()
    arena = b.runner.kv_arena if tag == KV else b.runner.weights.arena
    assert b.unmap(tag, "offload", blocks).error is None
    residence = b.device._residences[Tag(tag)]
    assert isinstance(residence, Residence)
    spill = residence._spill
    assert spill is not None
    real, size = spill._file.fileno(), os.fstat(spill._file.fileno()).st_size
    aside = os.dup(real)
    try:
        broken = os.memfd_create("broken")
        os.truncate(broken, size // 2)
        os.dup2(broken, real)
        os.close(broken)
        for _ in range(2):
            back = b.map(tag, "offload")
            assert "ends early" in str(back.error)
            assert arena.resident_bytes() == 0
        os.dup2(aside, real)
    finally:
        os.close(aside)
    assert b.map(tag, "offload").error is None
    assert torch.equal(b.runner.kv, before)
    assert b.checksum() == digest
    assert nameless_files() == 0
