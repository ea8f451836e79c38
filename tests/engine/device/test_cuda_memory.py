"""Virtual memory by pieces, over a driver that can refuse any call: nothing is lost, nothing is left behind, and it may be tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from quiesce.engine.device.cuda_memory import Driver, DriverError, VirtualArena
from quiesce.engine.device.cuda_residence import PinnedMemory, VirtualResidence
from quiesce.engine.device.dry_platform import HostDriver

PAGE = 4096
PIECE = 2 * PAGE
SIZE = 5 * PAGE + 100
"""Three pieces, the last of two pages."""
CPU = torch.device("cpu")


class Refusing(HostDriver):
    """Refuses the n-th call from now on, of those that CUDA may refuse; or that and all after it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.refuses: Callable[[int], bool] = lambda number: False

    def _ask(self, name: str) -> None:
        self.calls.append(name)
        if self.refuses(len(self.calls)):
            raise DriverError(f"{name}: CUDA_ERROR_OUT_OF_MEMORY")

    def reserve(self, num_bytes: int) -> int:
        self._ask("reserve")
        return super().reserve(num_bytes)

    def create(self, num_bytes: int) -> int:
        self._ask("create")
        return super().create(num_bytes)

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        self._ask("map")
        super().map(address, num_bytes, handle)

    def allow_access(self, address: int, num_bytes: int) -> None:
        self._ask("allow_access")
        super().allow_access(address, num_bytes)

    def unmap(self, address: int, num_bytes: int) -> None:
        self._ask("unmap")
        super().unmap(address, num_bytes)

    def release(self, handle: int) -> None:
        self._ask("release")
        super().release(handle)

    def pin(self, address: int, num_bytes: int) -> None:
        self._ask("pin")
        super().pin(address, num_bytes)

    @contextmanager
    def at(self, number: int, all_after: bool = False) -> Iterator[None]:
        self.calls.clear()
        self.refuses = lambda now: now >= number if all_after else now == number
        try:
            yield
        finally:
            self.refuses = lambda now: False


def arena(driver: Driver) -> VirtualArena:
    return VirtualArena(SIZE, driver, CPU, PIECE)


def residence(held: VirtualArena, driver: Driver, keeps_copy: bool = False) -> VirtualResidence:
    return VirtualResidence(held, driver, lambda: None, lambda go_on: nullcontext(), keeps_copy)


def go_on() -> None:
    """Nothing keeps it."""


def test_an_arena_is_whole_pages_in_pieces_and_its_views_write_through() -> None:
    driver = HostDriver()
    held = arena(driver)
    assert (held.num_bytes, sorted(driver.handles.values())) == (6 * PAGE, [PIECE] * 3)
    view = held.view(256, (3, 5), torch.bfloat16)
    view.copy_(torch.arange(15).view(3, 5))
    assert held.bytes[256:286].view(torch.bfloat16).tolist() == list(range(15))
    for offset, count in ((held.num_bytes - 4, 2), (2, 1)):
        with pytest.raises(ValueError, match="do not fit"):
            held.view(offset, (count,), torch.float32)
    del view
    held.close()
    held.close()
    assert (driver.ranges, driver.handles, driver.mapped) == ({}, {}, {})
    with pytest.raises(RuntimeError, match="closed"):
        held.view(0, (1,), torch.uint8)


def test_memory_that_went_comes_back_at_its_addresses_and_holds_rubbish() -> None:
    driver = HostDriver()
    held = arena(driver)
    held.bytes.zero_()
    address = held.bytes.data_ptr()
    held.drop()
    assert (held.resident_bytes(), driver.free_bytes()) == (0, driver.total_bytes)
    held.map()
    assert held.bytes.data_ptr() == address
    assert (held.bytes == 0xFF).all(), "whoever relies on zeros is found out"
    held.close()


def test_close_under_a_living_view_keeps_the_addresses_alone() -> None:
    driver = HostDriver()
    held = arena(driver)
    view = held.view(0, (8,), torch.float32)
    held.close()
    assert (driver.handles, driver.mapped) == ({}, {})
    assert list(driver.ranges) == [view.data_ptr()], "nothing else may come to lie there"


@pytest.mark.parametrize("all_after", [False, True])
def test_an_arena_that_cannot_be_made_leaves_nothing_behind(all_after: bool) -> None:
    calls = 8  # reserve, three times create and map, access
    for number in range(1, calls + 1):
        driver = Refusing()
        with driver.at(number, all_after), pytest.raises(DriverError):
            arena(driver)
        if not all_after or number <= 2:  # a driver that refuses release, too, keeps what was taken
            assert (driver.handles, driver.mapped) == ({}, {}), number
            assert not driver.ranges or all_after


@pytest.mark.parametrize("all_after", [False, True])
@pytest.mark.parametrize("keeps_copy", [False, True])
def test_refused_at_any_call_memory_is_wholly_here_or_wholly_away_and_keeps_its_content(
    keeps_copy: bool, all_after: bool
) -> None:
    for number in range(1, 12):
        driver = Refusing()
        held = arena(driver)
        where = residence(held, driver, keeps_copy)
        content = torch.arange(held.num_bytes // 4, dtype=torch.int32)
        held.bytes.view(torch.int32).copy_(content)
        for _ in range(2):
            with driver.at(number, all_after):
                try:
                    where.release([(0, held.num_bytes)], go_on)
                except DriverError:
                    assert where.mapped
                    assert torch.equal(held.bytes.view(torch.int32), content), number
                    content += 1  # work goes on, and what was copied for nothing is not what is kept next time
                    held.bytes.view(torch.int32).copy_(content)
                    where.refresh([(0, held.num_bytes)] if keeps_copy else [])
            if where.mapped:
                where.release([(0, held.num_bytes)], go_on)
            assert held.resident_bytes() == sum(driver.handles.values())
            with driver.at(number, all_after):
                try:
                    where.restore(go_on)
                except DriverError:
                    assert not where.mapped
            if not where.mapped:
                where.restore(go_on)
            assert torch.equal(held.bytes.view(torch.int32), content), number
        where.close()
        held.close()
        assert (driver.ranges, driver.handles, driver.mapped, driver.pinned) == ({}, {}, {}, set())


def test_what_cannot_leave_at_all_is_an_error_and_what_leaves_in_part_has_left(caplog: pytest.LogCaptureFixture) -> None:
    driver = Refusing()
    held = arena(driver)
    where = residence(held, driver)
    held.bytes.fill_(7)
    with driver.at(1, all_after=True), pytest.raises(DriverError, match="unmap"):
        where.release(None, go_on)
    assert (held.bytes == 7).all()
    with driver.at(3):  # the second piece
        freed = where.release(None, go_on)
    assert (freed, where.mapped, held.resident_bytes()) == (2 * PIECE, False, PIECE)
    assert "part of an arena stays" in caplog.text
    where.restore(go_on)
    where.zero()
    assert held.resident_bytes() == held.num_bytes
    assert not held.bytes.any()
    where.close()
    held.close()


def test_wake_without_enough_memory_takes_none_and_works_when_there_is_enough() -> None:
    driver = HostDriver(total_bytes=6 * PAGE)
    held = arena(driver)
    where = residence(held, driver)
    held.bytes.fill_(3)
    assert where.release([(0, held.num_bytes)], go_on) == held.num_bytes
    others = driver.create(PAGE)
    for _ in range(2):
        with pytest.raises(DriverError, match="OUT_OF_MEMORY"):
            where.restore(go_on)
        assert driver.free_bytes() == 5 * PAGE
        assert not where.mapped
    driver.release(others)
    assert where.restore(go_on) == held.num_bytes
    assert (held.bytes == 3).all()
    assert driver.pinned == set(), "what waited was given back"
    where.close()
    held.close()


def test_of_kept_spans_the_content_comes_back_and_the_rest_is_zero() -> None:
    driver = HostDriver()
    held = arena(driver)
    where = residence(held, driver)
    held.bytes.copy_(torch.randint(1, 256, (held.num_bytes,), dtype=torch.uint8))
    before, spans = held.bytes.clone(), [(0, 10), (PAGE - 3, PIECE + 9), (held.num_bytes - 1, held.num_bytes)]
    where.release(spans, go_on)
    where.restore(go_on)
    kept = torch.zeros(held.num_bytes, dtype=torch.bool)
    for begin, end in spans:
        kept[begin:end] = True
    assert torch.equal(held.bytes, before.where(kept, 0))
    where.close()
    held.close()


def test_with_a_copy_that_stays_sleep_moves_no_byte_and_the_copy_follows_what_is_written() -> None:
    driver = Refusing()
    held = arena(driver)
    where = residence(held, driver, keeps_copy=True)
    held.bytes.fill_(1)
    where.keep_copy(go_on)
    held.bytes[100:200] = 2
    where.refresh([(100, 200)])
    driver.calls.clear()

    def never() -> None:
        raise AssertionError("a copy was made")

    where.release([(0, held.num_bytes)], never)
    assert set(driver.calls) == {"unmap", "release"}
    where.restore(go_on)
    assert (held.bytes[100:200] == 2).all()
    assert (held.bytes.sum() == held.num_bytes + 100).item()
    where.release(None, go_on)
    assert not where.has_copy
    assert driver.pinned == set(), "level 2 gives the host's memory back, too"
    where.restore(go_on)
    assert not held.bytes.any(), "undefined, but nothing that somebody left there"
    where.close()
    held.close()


def test_a_copy_that_is_called_off_changes_nothing() -> None:
    driver = HostDriver()
    held = arena(driver)
    where = residence(held, driver)
    held.bytes.fill_(9)
    spans, asked = [(0, 100), (200, 300), (400, 500)], []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise RuntimeError("the device is closing")

    with pytest.raises(RuntimeError, match="closing"):
        where.release(spans, stop)
    assert where.mapped
    assert (driver.pinned, (held.bytes == 9).all().item()) == (set(), True)
    where.release(spans, go_on)
    asked.clear()
    with pytest.raises(RuntimeError, match="closing"):
        where.restore(stop)
    assert (where.mapped, held.resident_bytes()) == (False, 0)
    where.restore(go_on)
    assert held.bytes.sum() == 300 * 9
    where.close()
    held.close()


def test_host_memory_that_cannot_be_locked_is_not_kept() -> None:
    driver = Refusing()
    with driver.at(1), pytest.raises(DriverError, match="pin"):
        PinnedMemory(10_000, driver)
    memory = PinnedMemory(10_000, driver)
    assert memory.bytes.shape == (10_000,)
    memory.close()
    memory.close()
    assert driver.pinned == set()


def test_the_driver_that_stands_in_refuses_what_cuda_refuses() -> None:
    driver = HostDriver()
    address, handle = driver.reserve(PIECE), driver.create(PIECE)
    for wrong in (
        lambda: driver.unmap(address, PIECE),
        lambda: driver.allow_access(address, PIECE),
        lambda: driver.map(address, PAGE, handle),
        lambda: driver.release(handle + 1),
        lambda: driver.free_range(address, PAGE),
        lambda: driver.create(PAGE + 1),
        lambda: driver.unpin(address),
    ):
        with pytest.raises(DriverError, match="INVALID_VALUE"):
            wrong()
    driver.map(address, PIECE, handle)
    with pytest.raises(DriverError, match="cuMemMap: CUDA_ERROR_INVALID_VALUE"):
        driver.map(address, PIECE, handle)
    with pytest.raises(DriverError, match="cuMemAddressFree: CUDA_ERROR_INVALID_VALUE"):
        driver.free_range(address, PIECE)
    driver.unmap(address, PIECE)
    driver.release(handle)
    driver.free_range(address, PIECE)
