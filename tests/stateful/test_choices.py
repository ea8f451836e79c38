"""What a run chose can be written down, told, replayed and shrunk."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import find
from hypothesis import strategies as st

from quiesce.stateful.choices import POS, Choices, DelayBounded, Drawn, RandomWalk, Replay, Strategy, reduce_choices
from quiesce.stateful.loop import DeterministicLoop


def racy(loop: DeterministicLoop) -> int:
    """Six adds to a shared counter, each with an await between the read and the write. Correct: 6."""
    total = 0

    async def add() -> None:
        nonlocal total
        read = total
        replied: asyncio.Future[None] = loop.create_future()
        loop.offer("reply", lambda: replied.set_result(None))
        await replied
        total = read + 1

    async def main() -> None:
        for _ in range(3):
            pair = [asyncio.create_task(add())]
            if loop.choose("arrival", 3) == 1:
                loop.mark("they meet")
                pair.append(asyncio.create_task(add()))
                await asyncio.gather(*pair)
            else:
                await asyncio.gather(*pair)
                await add()

    loop.run(main())
    return total


STRATEGIES: list[Callable[[int], Strategy]] = [RandomWalk, POS, lambda seed: DelayBounded(seed, bound=4, horizon=12)]


@pytest.mark.parametrize("make_strategy", STRATEGIES, ids=["random", "POS", "delay-bounded"])
@pytest.mark.parametrize("adversarial", [False, True])
def test_a_record_replays_to_the_same_run(make_strategy: Callable[[int], Strategy], adversarial: bool) -> None:
    traces = set()
    for seed in range(20):
        first = DeterministicLoop(make_strategy(seed), adversarial=adversarial)
        total = racy(first)
        again = DeterministicLoop(Replay(first.choices.indices), adversarial=adversarial)
        assert racy(again) == total
        assert again.choices.taken == first.choices.taken
        assert again.choices.trace_hash() == first.choices.trace_hash()
        assert again.story == first.story
        traces.add(first.choices.trace_hash())
    assert len(traces) > 5


def test_the_delay_bound_bounds_the_exceptions() -> None:
    choices = Choices(DelayBounded(seed=3, bound=2, horizon=50))
    for _ in range(50):
        choices.choose("point", range(4))
    assert sum(index > 0 for index in choices.indices) == 2


def test_what_is_no_choice_leaves_no_record() -> None:
    choices = Choices(RandomWalk(seed=1))
    assert choices.choose("point", ["only"]) == 0
    assert choices.taken == []


def test_a_replay_is_fifo_where_its_list_does_not_fit() -> None:
    choices = Choices(Replay([5, 1]))
    assert [choices.choose("point", range(2)) for _ in range(3)] == [0, 1, 0]


def test_pos_forgets_a_priority_when_its_event_has_happened() -> None:
    strategy = POS(seed=1)
    assert {strategy.pick(["step 1", "step 2"]) for _ in range(50)} == {0, 1}


def test_pos_remembers_the_priority_of_an_event_that_waits() -> None:
    for seed in range(20):
        strategy, again = POS(seed), POS(seed)
        first = strategy.pick("abc")
        assert again.pick("abc") == first
        rest = "abc".replace("abc"[first], "")
        assert rest[strategy.pick(rest)] == rest[::-1][again.pick(rest[::-1])]  # whatever place it is offered in


def test_pos_is_fair_between_plain_alternatives() -> None:
    strategy = POS(seed=1)
    picks = [strategy.pick(range(2)) for _ in range(200)]
    num_changes = sum(a != b for a, b in itertools.pairwise(picks))
    assert 70 < num_changes < 130


def test_a_strategy_that_answers_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="chose 2 of 2"):
        Choices(Drawn(lambda num_options: num_options)).choose("point", range(2))


def test_the_story_of_a_run_tells_the_exceptions_in_words() -> None:
    loop = DeterministicLoop(Replay([1, 1, 0, 1]), adversarial=True)
    racy(loop)
    assert loop.story == [
        "arrival: 1 instead of 0",
        "turn: Task-2 instead of Task-1",
        "idle: reply instead of reply",
    ]


def test_hypothesis_drives_the_choices_and_shrinks_to_one_exception() -> None:
    def loses_an_update(indices: list[int]) -> bool:
        drawn = iter(indices)
        return racy(DeterministicLoop(Drawn(lambda num_options: min(next(drawn, 0), num_options - 1)))) < 6

    assert find(st.lists(st.integers(0, 3), max_size=20), loses_an_update) == [1]


def test_a_failure_shrinks_to_the_fewest_exceptions_to_fifo() -> None:
    def loses_an_update(indices: list[int]) -> bool:
        return racy(DeterministicLoop(Replay(indices), adversarial=True)) < 6

    for seed in range(20):
        loop = DeterministicLoop(RandomWalk(seed), adversarial=True)
        if racy(loop) < 6 and sum(map(bool, loop.choices.indices)) > 3:
            break
    reduced = reduce_choices(loop.choices.indices, loses_an_update)
    assert loses_an_update(reduced)
    assert sum(map(bool, reduced)) == 1


def test_shrinking_keeps_what_must_stay_together_and_lowers_it() -> None:
    recorded = [3, 0, 2, 1, 5, 0, 4, 1, 1]
    assert reduce_choices(recorded, lambda c: len(c) > 6 and c[0] > 0 and c[4] >= 2 and c[6] > 0) == [1, 0, 0, 0, 2, 0, 1]
    assert reduce_choices(recorded, lambda _: True) == []
    with pytest.raises(ValueError, match="do not fail"):
        reduce_choices(recorded, lambda _: False)


HASHES_OF_RUNS = """
from test_choices import POS, DeterministicLoop, racy
loops = [DeterministicLoop(POS(seed), adversarial=True) for seed in range(20)]
for loop in loops:
    racy(loop)
print([loop.choices.trace_hash() for loop in loops])
"""


def test_a_run_is_the_same_in_another_process_with_another_hash_seed() -> None:
    def hashes(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = [sys.executable, "-c", HASHES_OF_RUNS]
        return subprocess.check_output(run, env=environment, cwd=os.path.dirname(__file__), text=True)

    here = [DeterministicLoop(POS(seed), adversarial=True) for seed in range(20)]
    for loop in here:
        racy(loop)
    assert hashes("1") == hashes("2") == f"{[loop.choices.trace_hash() for loop in here]}\n"


def test_the_trace_hash_tells_marks_and_their_places_apart() -> None:
    def trace_hash(*acts: str) -> str:
        choices = Choices()
        for act in acts:
            if act:
                choices.mark(act)
            else:
                choices.choose("point", range(2))
        return choices.trace_hash()

    assert trace_hash("a", "") == trace_hash("a", "")
    assert len({trace_hash("a", ""), trace_hash("b", ""), trace_hash("", "a"), trace_hash("", "", "a")}) == 4
