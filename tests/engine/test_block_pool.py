"""KV blocks are counted so that none is lost and none is given twice, whatever the order of the calls."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from quiesce.engine.block_pool import BlockPool
from quiesce.engine.outputs import Blocks
from quiesce.engine.prefix_cache import PrefixCache
from quiesce.spec.vocabulary import EngineEvent, RequestEvent
from quiesce.statemachine.effects import FreeBlocks
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.records import RequestRecord, World


def effect_of_a_whole_life(keep: bool) -> FreeBlocks:
    """Only the gate makes effects: a request goes through its life, and the last row of it frees its blocks."""
    world, gate = World(), Gate()
    gate.fire(world.engine, EngineEvent.ready)
    request = RequestRecord(world, 1, "r")
    gate.fire(request, RequestEvent.submit)
    gate.fire(request, RequestEvent.admit)
    world.free = 1
    for event in (RequestEvent.start, RequestEvent.abort, RequestEvent.aborted):
        gate.fire(request, event)
    request.stale = not keep
    (effect,) = gate.fire(request, RequestEvent.reap).effects
    assert effect.detail == ("cache" if keep else "drop")
    return cast("FreeBlocks", effect)


KEEP, DROP = effect_of_a_whole_life(keep=True), effect_of_a_whole_life(keep=False)


def pool_of(num_blocks: int) -> BlockPool:
    return BlockPool(num_blocks, PrefixCache(block_size=4))


def release(pool: BlockPool, blocks: list[int], effect: FreeBlocks = DROP) -> list[int]:
    pool.fence(blocks)
    return pool.free(effect, blocks)


def balance(pool: BlockPool) -> tuple[int, int, int, int]:
    counts = pool.counts()
    assert counts.balanced
    pool.audit()
    return counts.free, counts.cached, counts.held, counts.fenced


def test_the_lowest_free_index_goes_first_whatever_came_back_last() -> None:
    pool = pool_of(8)
    first, second = pool.allocate(3), pool.allocate(3)
    assert (first, second) == ([0, 1, 2], [3, 4, 5])
    release(pool, second)
    release(pool, first)
    assert pool.allocate(5) == [0, 1, 2, 3, 4]


def test_too_few_blocks_are_refused_and_nothing_is_taken() -> None:
    pool = pool_of(4)
    pool.allocate(3)
    with pytest.raises(MemoryError, match="2 blocks wanted, 1 available"):
        pool.allocate(2)
    assert balance(pool) == (1, 0, 3, 0)


def test_blocks_go_from_held_over_fenced_to_free() -> None:
    pool = pool_of(4)
    blocks = pool.allocate(3)
    assert balance(pool) == (1, 0, 3, 0)
    pool.fence(blocks)
    assert balance(pool) == (1, 0, 0, 3)
    assert pool.num_available == 1, "a fenced block may still be written to"
    assert sorted(pool.free(DROP, blocks)) == blocks
    assert balance(pool) == (4, 0, 0, 0)


def test_a_second_free_is_refused() -> None:
    pool = pool_of(4)
    blocks = pool.allocate(2)
    release(pool, blocks)
    with pytest.raises(ValueError, match="freed without a fenced holder"):
        pool.free(DROP, blocks)
    assert balance(pool) == (4, 0, 0, 0)


def test_blocks_of_a_holder_that_runs_cannot_be_freed() -> None:
    pool = pool_of(4)
    blocks = pool.allocate(2)
    with pytest.raises(ValueError, match="block 1 of request 1"):
        pool.free(DROP, blocks)
    assert balance(pool) == (2, 0, 2, 0)


def test_a_shared_block_comes_home_with_its_last_holder() -> None:
    pool = pool_of(4)
    blocks = pool.allocate(2)
    pool.share(blocks)
    pool.fence(blocks)
    assert balance(pool) == (2, 0, 2, 0), "the other holder runs"
    assert pool.free(DROP, blocks) == []
    assert balance(pool) == (2, 0, 2, 0)
    assert sorted(release(pool, blocks)) == blocks


def test_sharing_a_fenced_block_makes_it_held_again_and_its_first_holder_frees_only_its_own_hold() -> None:
    pool = pool_of(4)
    blocks = pool.allocate(2)
    pool.fence(blocks)
    pool.share(blocks)
    assert balance(pool) == (2, 0, 2, 0)
    assert pool.free(DROP, blocks) == []
    assert balance(pool) == (2, 0, 2, 0)


def test_known_blocks_stay_findable_under_cache_and_not_under_drop() -> None:
    pool = pool_of(4)
    blocks = pool.allocate(2)
    for block in blocks:
        pool.prefix_cache.insert(block, b"prefix %d" % block)
    assert release(pool, blocks, KEEP) == []
    assert balance(pool) == (2, 2, 0, 0)
    assert pool.num_available == 4, "what is cached can be given up"
    pool.share(blocks)
    assert balance(pool) == (2, 0, 2, 0)
    assert sorted(release(pool, blocks, DROP)) == blocks
    assert balance(pool) == (4, 0, 0, 0)


def test_cached_blocks_are_given_up_after_the_free_ones_and_the_end_of_a_prompt_before_its_beginning() -> None:
    pool = pool_of(5)
    blocks = pool.allocate(3)
    for block in blocks:
        pool.prefix_cache.insert(block, b"prefix %d" % block)
    release(pool, blocks, KEEP)
    assert pool.allocate(4) == [3, 4, 2, 1]
    assert balance(pool) == (0, 1, 4, 0)


def test_in_use_is_what_is_held_fenced_or_cached() -> None:
    pool = pool_of(6)
    cached, fenced, held, free = (pool.allocate(1) for _ in range(4))
    pool.prefix_cache.insert(cached[0], b"cached")
    release(pool, cached, KEEP)
    pool.fence(fenced)
    release(pool, free, DROP)
    assert pool.blocks_in_use() == sorted(cached + fenced + held)


def test_dropping_what_is_cached_frees_the_idle_and_leaves_the_held() -> None:
    pool = pool_of(4)
    idle, held = pool.allocate(1), pool.allocate(1)
    pool.prefix_cache.insert(idle[0], b"idle")
    pool.prefix_cache.insert(held[0], b"held")
    release(pool, idle, KEEP)
    pool.drop_cached()
    assert balance(pool) == (3, 0, 1, 0)
    assert release(pool, held, KEEP) == held, "nobody knows its content any more"


DAMAGES: dict[str, tuple[Callable[[BlockPool], object], str]] = {
    "a block in the free list twice": (lambda pool: heapq.heappush(pool._free, pool._free[0]), "in the free list twice"),
    "a block that is lost": (lambda pool: pool._free.pop(), "has no owner"),
    "a held block in the free list": (lambda pool: heapq.heappush(pool._free, 0), "two owners"),
    "an idle block that is held": (lambda pool: pool.prefix_cache._idle.update({0: None}), "two owners"),
    "an idle block in the free list": (lambda pool: pool.prefix_cache._idle.update({5: None}), "two owners"),
    "a counter that drifted": (lambda pool: setattr(pool, "_num_used", pool._num_used + 1), "counters differ"),
    "a fence that was not counted": (lambda pool: pool._running_holders.__setitem__(0, 0), "counters differ"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_audit_finds(damage: tuple[Callable[[BlockPool], object], str]) -> None:
    plant, complaint = damage
    pool = pool_of(6)
    pool.allocate(2)
    pool.audit()
    plant(pool)
    with pytest.raises(AssertionError, match=complaint):
        pool.audit()


@dataclass
class Naive:
    """The same books, kept the slow way: who holds what is a list, and everything else follows from it."""

    total: int
    known: dict[int, bytes] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)
    holds: list[tuple[list[int], bool]] = field(default_factory=list)
    """(blocks, whether the holder runs)."""

    def held(self) -> set[int]:
        return {block for blocks, running in self.holds if running for block in blocks}

    def fenced(self) -> set[int]:
        return {block for blocks, _ in self.holds for block in blocks} - self.held()

    def free(self) -> list[int]:
        return sorted(set(range(self.total)) - self.held() - self.fenced() - set(self.idle))

    def allocate(self, count: int) -> list[int]:
        blocks = self.free()[:count]
        while len(blocks) < count:
            blocks.append(self.idle.pop(0))
            del self.known[blocks[-1]]
        self.holds.append((blocks, True))
        return blocks

    def give_back(self, place: int, keep: bool) -> None:
        blocks, _ = self.holds.pop(place)
        for block in reversed(blocks):
            if block in self.held() | self.fenced():
                continue
            if keep and block in self.known:
                self.idle.append(block)
            else:
                self.known.pop(block, None)

    def counts(self) -> Blocks:
        return Blocks(self.total, len(self.free()), len(self.idle), len(self.held()), len(self.fenced()))


@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_calls_agrees_with_the_naive_books(seed: int) -> None:
    chance = random.Random(seed)
    naive, pool = Naive(9), pool_of(9)
    for step in range(120):
        running = [place for place, (_, runs) in enumerate(naive.holds) if runs]
        over = [place for place, (_, runs) in enumerate(naive.holds) if not runs]
        match chance.choice(("allocate", "share", "insert", "fence", "free", "clear" if step % 20 == 0 else "free")):
            case "allocate":
                count = chance.randint(0, 4)
                if count > len(naive.free()) + len(naive.idle):
                    with pytest.raises(MemoryError):
                        pool.allocate(count)
                else:
                    assert pool.allocate(count) == naive.allocate(count)
            case "share" if naive.known:
                shared = chance.sample(sorted(naive.known), chance.randint(1, len(naive.known)))
                pool.share(shared)
                naive.idle = [block for block in naive.idle if block not in shared]
                naive.holds.append((shared, True))
            case "insert" if running:
                for block in naive.holds[chance.choice(running)][0]:
                    if block not in naive.known:
                        naive.known[block] = b"%d" % step + bytes([block])
                        pool.prefix_cache.insert(block, naive.known[block])
            case "fence" if running:
                place = chance.choice(running)
                pool.fence(naive.holds[place][0])
                naive.holds[place] = (naive.holds[place][0], False)
            case "free" if over:
                place, keep = chance.choice(over), chance.random() < 0.7
                was_free, blocks = naive.free(), naive.holds[place][0]
                naive.give_back(place, keep)
                freed = pool.free(KEEP if keep else DROP, blocks)
                assert sorted(freed) == sorted(set(naive.free()) - set(was_free))
            case "clear":
                pool.drop_cached()
                naive.known.clear()
                naive.idle.clear()
        assert pool.counts() == naive.counts()
        pool.audit()
