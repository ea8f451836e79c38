"""n > 1, stop strings and what clients see of them, on the real core and streams."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from pathlib import Path

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.noise import noise_key
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.stop_strings import StopMatcher, held_back
from quiesce.stateful.awaits import for_every_await
from quiesce.stateful.driver import VOCAB_SIZE
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.scenario import World, prompt_of, run

PROMPT = prompt_of(5, 9)
THREE = SamplingParams(n=3, max_tokens=6, seed=4, ignore_eos=True)


def truth_of_child(child: int, seed: int = 4) -> list[int]:
    return true_tokens(PROMPT, 6, VOCAB_SIZE, noise_key(seed, child))


def test_every_child_has_noise_of_its_own_and_the_first_is_what_one_alone_would_be(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        outputs = [output async for output in world.engine.generate(PROMPT, THREE, request_id="r")]
        last = outputs[-1]
        assert [child.index for child in last.outputs] == [0, 1, 2]
        assert [list(child.token_ids) for child in last.outputs] == [truth_of_child(child) for child in range(3)]
        assert {child.finish_reason for child in last.outputs} == {"length"}
        alone = SamplingParams(max_tokens=6, seed=4, ignore_eos=True)
        single = [output async for output in world.engine.generate(PROMPT, alone)][-1]
        assert single.token_ids == last.outputs[0].token_ids
        status = world.engine.status()
        assert (status.accepted, status.finished["length"]) == (4, 4), "every child counts"

    run(ledger_folder, body)


@pytest.mark.parametrize("config", [{"max_num_seqs": 1}, {"num_kv_blocks": 16}, {"overlap": False}], ids=str)
def test_children_are_right_where_they_cannot_run_together(ledger_folder: Path, config: dict[str, int]) -> None:
    async def body(world: World) -> None:
        outputs = [output async for output in world.engine.generate(PROMPT, THREE)]
        assert [list(child.token_ids) for child in outputs[-1].outputs] == [truth_of_child(child) for child in range(3)]

    run(ledger_folder, body, None, None, **config)


def test_children_are_accepted_together_or_not_at_all(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        with pytest.raises(errors.QueueFull):
            await anext(world.engine.generate(PROMPT, THREE))
        await world.loop.wait_settled()
        status = world.engine.status()
        assert (status.accepted, status.rejected, status.live) == (0, 1, 0)

    run(ledger_folder, body, max_queue=2)


def test_an_abort_ends_all_children_as_one(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        outputs: list[RequestOutput] = []

        async def client() -> None:
            long = SamplingParams(n=3, max_tokens=40, seed=4, ignore_eos=True)
            outputs.extend([output async for output in world.engine.generate(PROMPT, long, request_id="r")])

        task = asyncio.create_task(client())
        world.loop.hold("step 5")
        await world.loop.wait_settled()
        assert (await world.engine.abort("r")).aborted == ("r",)
        await task
        assert {child.finish_reason for child in outputs[-1].outputs} == {"abort"}
        assert sum(output.finished for output in outputs) == 1
        assert world.engine.status().finished["abort"] == 3
        world.loop.release("step 5")

    run(ledger_folder, body, max_num_seqs=2)


def test_a_client_cancelled_at_any_await_leaves_no_child(ledger_folder: Path) -> None:
    def scenario(loop: DeterministicLoop) -> None:
        async def body(world: World) -> None:
            async def client() -> None:
                async with aclosing(world.engine.generate(PROMPT, THREE)) as outputs:
                    async for _ in outputs:
                        pass

            task = asyncio.create_task(client(), name="victim")
            await asyncio.wait([task])

        run(ledger_folder, body, loop=loop, max_num_seqs=2)

    assert for_every_await(scenario, "victim") >= 3


def test_deltas_of_children_add_up(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        params = SamplingParams(n=3, max_tokens=6, seed=4, ignore_eos=True, output_kind="delta")
        got: dict[int, list[int]] = {0: [], 1: [], 2: []}
        async for output in world.engine.generate(PROMPT, params):
            for child in output.outputs:
                got[child.index] += child.token_ids
        assert got == {child: truth_of_child(child) for child in range(3)}

    run(ledger_folder, body, max_num_seqs=2)


# ---- stop strings ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stops", "found", "text_end"),
    [
        ("one two three", ("two",), "two", 4),
        ("aaab", ("aab", "ab"), "aab", 1),
        ("abc", ("c", "bc"), "bc", 1),
        ("xyz", ("yz", "y"), "yz", 1),
    ],
)
def test_a_stop_string_is_found_at_every_split(text: str, stops: tuple[str, ...], found: str, text_end: int) -> None:
    for cuts in itertools.product((False, True), repeat=len(text) - 1):
        pieces, piece = [], text[0]
        for cut, letter in zip(cuts, text[1:], strict=True):
            if cut:
                pieces.append(piece)
                piece = ""
            piece += letter
        matcher = StopMatcher(stops)
        matches = [match for match in map(matcher.feed, [*pieces, piece]) if match is not None]
        assert matches, (pieces, piece)
        assert matches[0].text_end == text_end
        if matches[0].stop != found:  # a shorter string that was complete before the longer one, beginning at the same place
            assert text[text_end:].startswith(matches[0].stop)


def test_text_that_was_passed_over_is_not_looked_at() -> None:
    matcher = StopMatcher(("two",), include=True)
    matcher.skip("two tw")
    assert matcher.feed("o") is None, "it began before"
    match = matcher.feed(" two")
    assert match is not None
    assert match.text_end == len("two two two")
    assert held_back(("two", "x")) == 2


def test_a_stop_string_ends_the_answer_and_no_part_of_it_is_ever_shown() -> None:
    question = [{"role": "user", "content": "Where does a request go from draining on reap?"}]

    async def main() -> None:
        async with AsyncEngine(EngineConfig(num_threads=1, dtype="float32")) as engine:

            async def answer(**options: object) -> list[RequestOutput]:
                params = SamplingParams.of(max_tokens=40, temperature=0, **options)
                return [output async for output in engine.chat(question, params)]

            whole = (await answer())[-1].text
            assert len(whole) > 8
            for start in range(1, len(whole) - 3):
                stop = whole[start : start + 3]
                outputs = await answer(stop=[stop])
                cut = whole.index(stop)
                assert outputs[-1].text == whole[:cut]
                assert (outputs[-1].finish_reason, outputs[-1].outputs[0].stop_reason) == ("stop", stop)
                for output in outputs:
                    assert whole[:cut].startswith(output.text), "shown text never has to be taken back"
            stop = whole[4:7]
            kept = (await answer(stop=stop, include_stop_str_in_output=True))[-1]
            assert kept.text == whole[: whole.index(stop) + 3]
            deltas = await answer(stop=stop, output_kind="delta")
            assert "".join(output.text for output in deltas) == whole[: whole.index(stop)]
            unstopped = await answer(stop="\u2603 never said")
            assert unstopped[-1].text == whole
            late = await answer(stop=[whole[0]], min_tokens=5)
            assert len(late[-1].token_ids) > 5

    asyncio.run(main())


def test_stop_strings_without_a_tokenizer_are_refused(ledger_folder: Path) -> None:
    async def body(world: World) -> None:
        with pytest.raises(errors.InvalidRequest, match="stop"):
            await anext(world.engine.generate(PROMPT, SamplingParams(stop="x")))

    run(ledger_folder, body)
