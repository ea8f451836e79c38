"""`Engine`: the same verbs without an event loop, over the shipped model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.blocking import Engine
from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.sampling_params import SamplingParams

GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=None, ignore_eos=True)


def config(**changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {"num_threads": 1, "num_kv_blocks": 256, "max_num_seqs": 4, "max_num_batched_tokens": 64}
    return EngineConfig(**(settings | changes))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(config()) as made:
        yield made
    assert made.status().engine == "stopped"


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Engine) -> Iterator[None]:
    yield
    wait_until(lambda: engine.status().live == 0 and not engine.request_ids())
    status = engine.status()
    assert status.engine == "running"
    assert status.balanced


def wait_until(true: Any, seconds: float = 60.0) -> None:
    """Waits for another thread; what is waited for must come true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("quiesce")}


def test_outputs_come_in_the_order_of_the_prompts_whoever_ends_first(engine: Engine) -> None:
    prompts: list[Any] = [[5, 6, 7], [8], {"prompt_token_ids": [9, 10]}, "What is a fence?", [5, 6, 7], [11] * 40]
    params = [SamplingParams(max_tokens=count, temperature=0, ignore_eos=True) for count in (9, 1, 3, 2, 9, 1)]
    outputs = engine.generate(prompts, params, use_tqdm=False)
    assert [len(output.token_ids) for output in outputs] == [9, 1, 3, 2, 9, 1]
    assert [output.prompt_token_ids for output in outputs[:3]] == [(5, 6, 7), (8,), (9, 10)]
    assert outputs[3].prompt == "What is a fence?"
    assert outputs[0].token_ids == outputs[4].token_ids
    assert all(output.finished and output.finish_reason == "length" for output in outputs)


@pytest.mark.parametrize(
    "prompt", ["What is a fence?", [5, 6, 7], {"prompt_token_ids": [5, 6, 7]}], ids=["text", "ids", "mapping"]
)
def test_one_prompt_is_a_batch_of_one(engine: Engine, prompt: Any) -> None:
    (output,) = engine.generate(prompt, GREEDY, use_tqdm=False)
    assert len(output.token_ids) == 4


def test_no_prompts_are_no_outputs(engine: Engine) -> None:
    assert engine.generate([], GREEDY, use_tqdm=False) == []


def test_an_invalid_prompt_surfaces_as_itself_and_nothing_of_the_batch_is_left_running(engine: Engine) -> None:
    prompts: list[Any] = [[5, 6], [7, 8], []]
    with pytest.raises(InvalidRequest, match="prompt: is empty") as refusal:
        engine.generate(prompts, ENDLESS, use_tqdm=False)
    assert not isinstance(refusal.value, BaseExceptionGroup)
    wait_until(lambda: engine.status().live == 0 and not engine.request_ids())
    (output,) = engine.generate([5, 6, 7], GREEDY, use_tqdm=False)
    assert output.finish_reason == "length"


def test_as_many_parameters_as_prompts_or_one_for_all(engine: Engine) -> None:
    before = engine.status().accepted
    with pytest.raises(InvalidRequest, match=r"^sampling_params: 1 for 2 prompts"):
        engine.generate([[5], [6]], [GREEDY], use_tqdm=False)
    with pytest.raises(InvalidRequest, match=r"^sampling_params: "):
        engine.generate([[5], [6]], [5, 5], use_tqdm=False)  # type: ignore[list-item]
    assert engine.status().accepted == before


@pytest.mark.parametrize("prompts", [5, None, True], ids=repr)
def test_something_that_is_no_prompt_is_an_invalid_request(engine: Engine, prompts: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt"):
        engine.generate(prompts, GREEDY, use_tqdm=False)


def test_a_batch_longer_than_the_queue_waits_instead_of_being_refused() -> None:
    with Engine(config(max_queue=2, max_num_seqs=2, num_kv_blocks=128)) as small:
        outputs = small.generate([[5 + number] for number in range(9)], GREEDY, use_tqdm=False)
        assert [output.prompt_token_ids for output in outputs] == [(5 + number,) for number in range(9)]
        assert small.status().rejected == 0


def in_thread(work: Any) -> tuple[threading.Thread, list[Any]]:
    """Runs `work` in a thread; the list gets its result or what it raised."""
    found: list[Any] = []

    def target() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001  handed to the test
            found.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread, found


def test_aborting_everybody_ends_a_batch_with_its_tokens_so_far(engine: Engine) -> None:
    thread, found = in_thread(lambda: engine.generate([[5], [6]], ENDLESS, use_tqdm=False))
    wait_until(lambda: engine.status().requests.get("running") == 2)
    assert len(engine.abort_all().aborted) == 2
    thread.join(60)
    (outputs,) = found
    assert [output.finish_reason for output in outputs] == ["abort", "abort"]
    assert engine.abort("nobody").not_found == ("nobody",)


def test_ctrl_c_during_generate_aborts_the_batch_and_the_engine_goes_on(engine: Engine) -> None:
    def interrupt() -> None:
        wait_until(lambda: engine.status().requests.get("running") == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread, _ = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[5], [6]], ENDLESS, use_tqdm=False)
    thread.join(60)
    wait_until(lambda: engine.status().live == 0)
    (output,) = engine.generate([5, 6, 7], GREEDY, use_tqdm=False)
    assert output.finish_reason == "length"


def test_after_shutdown_only_status_and_shutdown_work_and_no_thread_is_left() -> None:
    before = our_threads()
    mine = Engine(config())
    assert our_threads() > before
    mine.check_health()
    assert (mine.shutdown().state, mine.status().engine) == ("stopped", "stopped")
    again = mine.shutdown(timeout=0)
    assert (again.state, again.changed) == ("stopped", False)
    for call in (
        lambda: mine.generate([5], GREEDY, use_tqdm=False),
        lambda: mine.abort("r"),
        mine.abort_all,
        mine.check_health,
    ):
        with pytest.raises(errors.EngineDead, match="stopped"):
            call()
    assert mine.request_ids() == ()
    assert our_threads() == before


def test_shutdown_under_a_running_batch_answers_it() -> None:
    mine = Engine(config())
    thread, found = in_thread(lambda: mine.generate([[5], [6]], ENDLESS, use_tqdm=False))
    wait_until(lambda: mine.status().requests.get("running") == 2)
    mine.shutdown(timeout=0)
    thread.join(60)
    assert not thread.is_alive()
    assert [output.finish_reason for output in found[0]] == ["abort", "abort"]


def test_a_call_of_another_thread_never_hangs_when_the_engine_is_shut_down() -> None:
    mine = Engine(config())
    release = threading.Event()

    async def slow_call() -> None:
        release.set()
        await asyncio.sleep(0.2)

    thread, _ = in_thread(lambda: mine._run(slow_call()))
    assert release.wait(60)
    mine.shutdown(timeout=0)
    thread.join(60)
    assert not thread.is_alive()


LOADING = """
import os, signal, threading, time
from quiesce.engine.blocking import Engine
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cpu import CpuDevice
loading, go_on, load = threading.Event(), threading.Event(), CpuDevice._load
def slow(device):
    loading.set(); go_on.wait(60)
    return load(device)
def interrupt():
    loading.wait(60); os.kill(os.getpid(), signal.SIGINT)
CpuDevice._load = slow
threading.Thread(target=interrupt).start()
try:
    Engine(EngineConfig(num_threads=1, num_kv_blocks=200))
except KeyboardInterrupt:
    go_on.set()
deadline = time.monotonic() + 30
def left():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("quiesce")]
while left() and time.monotonic() < deadline:
    time.sleep(0.01)
print("left:", left(), flush=True)
os._exit(0)
"""


def test_ctrl_c_while_loading_leaves_no_thread() -> None:
    """In a process of its own: what is left over there cannot disturb the tests here."""
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout.strip() == "left: []", done.stderr


def test_what_kept_it_from_loading_is_raised_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = our_threads()

    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("quiesce.engine.device.cpu.Runner", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        Engine(config())
    wait_until(lambda: our_threads() == before)
