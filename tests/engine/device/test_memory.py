"""Arenas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quiesce.engine.device.memory import ALIGNMENT, Arena, aligned


def test_an_arena_reads_as_zeros_and_keeps_what_is_written() -> None:
    arena = Arena(10_000)
    view = arena.view(128, (3, 5), torch.float32)
    assert not view.any()
    view.copy_(torch.arange(15).view(3, 5))
    assert torch.equal(arena.view(128, (15,), torch.float32), torch.arange(15, dtype=torch.float32))
    assert view.data_ptr() % ALIGNMENT == 0
    del view
    arena.close()


def test_an_arena_is_private_memory_of_this_process_alone() -> None:
    arena = Arena(1 << 20)
    address = arena.view(0, (1,), torch.uint8).data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            assert line.split()[1] == "rw-p"
            assert len(line.split()) == 5  # no file behind it
            break
    else:
        pytest.fail("the arena is not mapped")
    arena.close()


def test_a_view_outside_the_arena_is_refused() -> None:
    arena = Arena(64)
    with pytest.raises(ValueError, match="do not fit"):
        arena.view(arena.num_bytes - 4, (2,), torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        arena.view(2, (1,), torch.float32)
    arena.close()


def test_close_gives_the_memory_back_and_may_be_repeated() -> None:
    arena = Arena(1 << 20)
    arena.close()
    arena.close()
    assert arena.closed
    with pytest.raises(RuntimeError, match="closed"):
        arena.view(0, (1,), torch.uint8)


def test_close_under_a_living_view_drops_the_content_and_does_not_crash() -> None:
    arena = Arena(1 << 16)
    view = arena.view(0, (8,), torch.float32)
    view.fill_(3.0)
    arena.close()
    assert not view.any()


@pytest.mark.parametrize(("size", "padded"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_sizes_are_rounded_up_to_cache_lines(size: int, padded: int) -> None:
    assert aligned(size) == padded
