"""Full blocks are found by what they hold, never by what they held, and the least recently used is given up first."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quiesce.engine.prefix_cache import PrefixCache

SIZE = 4


def ids(*token_ids: int) -> NDArray[np.int32]:
    return np.array(token_ids, np.int32)


def sequence(length: int, first: int = 0) -> NDArray[np.int32]:
    return np.arange(first, first + length, dtype=np.int32)


def insert_all(cache: PrefixCache, token_ids: NDArray[np.int32], blocks: list[int], version: int | str = 0) -> list[bytes]:
    """Tells the cache that `blocks` hold the leading full blocks of these tokens."""
    hashes = [cache.root(version)]
    for number, block in enumerate(blocks):
        hashes.append(cache.extend(hashes[-1], token_ids[number * SIZE : (number + 1) * SIZE]))
        cache.insert(block, hashes[-1])
    return hashes[1:]


@pytest.mark.parametrize(
    ("length", "found"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3), (40, 3)], ids=lambda value: str(value)
)
def test_the_longest_known_prefix_is_found_and_leaves_a_token_to_compute(length: int, found: int) -> None:
    cache = PrefixCache(SIZE)
    hashes = insert_all(cache, sequence(12), [7, 5, 6])
    blocks, known_as = cache.match(sequence(length), 0)
    assert blocks == [7, 5, 6][:found]
    assert known_as == hashes[:found]
    assert length - found * SIZE >= 1


def test_a_prefix_that_differs_in_one_token_is_found_only_up_to_there() -> None:
    cache = PrefixCache(SIZE)
    insert_all(cache, sequence(12), [0, 1, 2])
    other = sequence(20)
    other[5] += 1
    assert cache.match(other, 0)[0] == [0]


def test_the_same_tokens_behind_another_prefix_are_another_block() -> None:
    cache = PrefixCache(SIZE)
    insert_all(cache, ids(1, 1, 1, 1, 5, 6, 7, 8), [0, 1])
    assert cache.match(ids(5, 6, 7, 8, 9), 0) == ([], [])
    assert cache.match(ids(2, 2, 2, 2, 5, 6, 7, 8, 9), 0) == ([], [])


def test_a_hole_in_the_chain_hides_what_is_behind_it() -> None:
    cache = PrefixCache(SIZE)
    insert_all(cache, sequence(12), [0, 1, 2])
    cache.forget(1)
    assert cache.match(sequence(13), 0)[0] == [0]


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, "1"), ("a", "b")], ids=str)
def test_a_prefix_of_another_weight_version_is_never_found(one: int | str, other: int | str) -> None:
    cache = PrefixCache(SIZE)
    insert_all(cache, sequence(8), [0, 1], version=one)
    assert cache.match(sequence(9), one)[0] == [0, 1]
    assert cache.match(sequence(9), other)[0] == []


def test_two_block_sizes_never_share_a_root() -> None:
    assert PrefixCache(4).root(0) != PrefixCache(8).root(0)


def test_a_hash_depends_on_the_ids_and_not_on_their_type() -> None:
    cache = PrefixCache(SIZE)
    assert cache.extend(cache.root(0), sequence(4)) == cache.extend(cache.root(0), sequence(4).astype(np.int64))


def test_a_prefix_that_two_blocks_hold_stays_with_the_first() -> None:
    cache = PrefixCache(SIZE)
    insert_all(cache, sequence(4), [3])
    insert_all(cache, sequence(4), [8])
    assert cache.match(sequence(5), 0)[0] == [3]
    assert not cache.retire(8), "the second was never known: its last holder gives it back at once"
    cache.forget(3)
    assert cache.match(sequence(5), 0)[0] == []


def test_a_block_is_known_as_one_thing_at_a_time() -> None:
    cache = PrefixCache(SIZE)
    insert_all(cache, sequence(4), [3])
    insert_all(cache, sequence(4, first=50), [3])
    assert cache.match(sequence(5), 0)[0] == [3]
    assert cache.match(sequence(5, first=50), 0)[0] == []


def test_the_least_recently_used_idle_block_is_given_up_first_and_found_no_more() -> None:
    cache = PrefixCache(SIZE)
    for block in range(3):
        insert_all(cache, sequence(4, first=10 * block), [block])
    for block in (1, 0, 2):
        assert cache.retire(block)
    cache.revive(1)  # used again, so it is the youngest when it comes back
    assert cache.retire(1)
    assert [cache.evict() for _ in range(3)] == [0, 2, 1]
    assert cache.match(sequence(5), 0)[0] == []
    with pytest.raises(MemoryError):
        cache.evict()


def test_a_block_that_has_a_holder_again_is_not_given_up() -> None:
    cache = PrefixCache(SIZE)
    insert_all(cache, sequence(4), [0])
    cache.retire(0)
    cache.revive(0)
    assert (cache.num_idle, list(cache.idle_blocks())) == (0, [])
    with pytest.raises(MemoryError):
        cache.evict()
    assert cache.match(sequence(5), 0)[0] == [0], "held blocks are shared, too"


def test_clearing_forgets_everything_and_tells_which_blocks_were_idle() -> None:
    cache = PrefixCache(SIZE)
    insert_all(cache, sequence(8), [4, 2])
    cache.retire(2)
    assert cache.clear() == [2]
    assert cache.num_idle == 0
    assert cache.match(sequence(9), 0)[0] == []
    assert not cache.retire(4), "held while it was cleared: not known any more"
    insert_all(cache, sequence(8), [4, 2])
    assert cache.match(sequence(9), 0)[0] == [4, 2], "and it can learn anew"


def test_forgetting_what_is_not_known_does_nothing() -> None:
    PrefixCache(SIZE).forget(0)


def test_switched_off_it_never_knows_anything() -> None:
    cache = PrefixCache(SIZE, enabled=False)
    insert_all(cache, sequence(8), [0, 1])
    assert cache.match(sequence(9), 0) == ([], [])
    assert not cache.retire(0)
