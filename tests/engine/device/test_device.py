"""Devices as the control plane sees them: order, depth, chaining, faults, errors, close. The CUDA device is on a dry platform."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from quiesce.engine.errors import InvalidRequest
from quiesce.engine.messages import FROM_DEVICE, Adjustment, Device, Loaded

if TYPE_CHECKING:
    from tests.engine.device.conftest import Bench, Harness, Reference

PROMPT = [5, 9, 2, 44, 17, 8, 30]


@pytest.fixture(params=["cpu", "cuda"])
def device_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_is_a_device(bench: Callable[..., Bench]) -> None:
    device: Device = bench().device
    assert (device.num_blocks, device.block_size) == (32, 4)


def test_two_launched_steps_run_in_order_and_a_third_is_refused(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    b.gate.clear()
    for number in (1, 2):
        b.launch(harness.step(harness.Chunk(PROMPT, 0, [number * 2, number * 2 + 1], row=number), number=number))
    with pytest.raises(RuntimeError, match="2 steps are launched"):
        b.launch(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=3))
    assert b.device.poll() == []
    b.gate.set()
    first, second = b.landed(), b.landed()
    assert [first.step, second.step, *b.began] == [1, 2, 1, 2]
    assert first.epoch == 7
    assert first.token_ids.tolist() == second.token_ids.tolist()
    assert 0 < first.started_s <= first.ended_s <= second.started_s <= second.ended_s
    assert b.run(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=3)).error is None


def test_tokens_taken_from_the_device_equal_tokens_sent_by_the_host(
    bench: Callable[..., Bench], reference: Reference, harness: type[Harness]
) -> None:
    b = bench(info=reference.info, load_format="auto").load()
    blocks, tokens = list(range(20, 32)), []
    length = len(reference.prompt)
    b.launch(harness.step(harness.Chunk(reference.prompt, 0, blocks, row=3), number=0))
    for number in range(1, 10):  # always one step ahead of the host
        b.launch(harness.step(harness.Chunk([FROM_DEVICE], length + number - 1, blocks, row=3), number=number))
        tokens.append(int(b.landed().token_ids[0]))
    assert tokens == reference.tokens[:9]


def test_rows_keep_their_tokens_apart(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    a, c = harness.Chunk(PROMPT, 0, [0, 1, 2], row=4), harness.Chunk(PROMPT[::-1], 0, [3, 4, 5], row=1)
    first = b.run(harness.step(a, c, number=0)).token_ids
    for number, order in enumerate(([4, 1], [1, 4])):
        rows = {4: (first[0], [0, 1, 2]), 1: (first[1], [3, 4, 5])}
        told = [harness.Chunk([int(rows[row][0])], 7, rows[row][1], row=row) for row in order]
        taken = [harness.Chunk([FROM_DEVICE], 7, rows[row][1], row=row) for row in order]
        b.run(harness.step(a, c, number=10 * number + 1))
        by_device = b.run(harness.step(*taken, number=10 * number + 2)).token_ids
        assert by_device.tolist() == b.run(harness.step(*told, number=10 * number + 3)).token_ids.tolist()


def test_a_row_that_is_not_finite_is_a_fault_and_the_others_go_on(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    good = harness.Chunk(PROMPT, 0, [0, 1, 2], row=0)
    alone = b.run(harness.step(good, number=0)).token_ids[0]
    b.run(harness.step(harness.Chunk(PROMPT, 0, [4, 5, 6], row=1), number=1))
    b.device.poison([4])  # row 1 decodes over it
    bad = harness.Chunk([3], 7, [4, 5, 6], row=1)
    out = b.run(harness.step(bad, good, number=2))
    assert out.error is None
    assert out.token_ids.tolist() == [-1, alone]
    assert out.faults == ((0, "the logits are not finite"),)
    # A step that was launched before the fault was known has no token to go on with.
    after = b.run(harness.step(good, harness.Chunk([FROM_DEVICE], 8, [4, 5, 6], row=1), number=3))
    assert after.token_ids.tolist() == [alone, -1]
    assert after.faults == ((1, "the step before gave this row no token"),)


def test_a_row_without_a_token_is_a_fault_though_its_logits_are_finite(
    bench: Callable[..., Bench], harness: type[Harness]
) -> None:
    b = bench().load()
    out = b.run(harness.step(harness.Chunk([FROM_DEVICE], 0, [0], row=6), harness.Chunk(PROMPT, 0, [1, 2]), number=0))
    assert out.token_ids[0] == -1
    assert out.token_ids[1] >= 0
    assert out.faults == ((0, "the step before gave this row no token"),)


def test_a_chunk_that_samples_nothing_answers_no_token(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    out = b.run(harness.step(harness.Chunk(PROMPT, 0, [0, 1], sample=False), number=0))
    assert (out.token_ids.tolist(), out.faults, out.error) == ([-1], (), None)


def test_poison_waits_for_the_steps_launched_before_it(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    b.run(harness.step(harness.Chunk(PROMPT, 0, [0, 1, 2]), number=0))
    b.gate.clear()
    decode = harness.Chunk([3], 7, [0, 1, 2])
    b.launch(harness.step(decode, number=1))
    b.device.poison([0])
    b.launch(harness.step(decode, number=2))
    b.gate.set()
    assert b.landed().faults == ()
    assert len(b.landed().faults) == 1


def test_a_step_that_raises_lands_with_its_error(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    out = b.run(harness.step(harness.Chunk(PROMPT, 0, [0, -1], row=0), number=5))
    assert isinstance(out.error, ValueError)
    assert (out.step, out.token_ids.tolist()) == (5, [-1])


def test_a_launch_needs_the_effect_of_its_own_step(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench().load()
    with pytest.raises(RuntimeError, match="by the effect of step 8"):
        b.device.launch(harness.launch_effect(8), harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=9))


def test_a_failed_load_is_reported_and_steps_after_it_fail(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench(load_format="auto")
    b.device.load()
    loaded = b.next()
    assert isinstance(loaded, Loaded)
    assert isinstance(loaded.error, InvalidRequest)
    assert "nowhere" in str(loaded.error)
    assert b.run(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=0)).error is not None


def test_close_waits_for_the_running_step_reports_nothing_and_may_be_repeated(
    bench: Callable[..., Bench], harness: type[Harness]
) -> None:
    b = bench().load()
    b.gate.clear()
    for number in (0, 1):
        b.launch(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=number))
    while not b.began:
        time.sleep(0.001)
    closer = threading.Thread(target=b.device.close)
    closer.start()

    def refusal() -> str:
        with pytest.raises(RuntimeError) as error:
            b.launch(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=2))
        return str(error.value)

    while "not loaded" not in refusal():  # until close has begun
        time.sleep(0.001)
    assert closer.is_alive()
    b.gate.set()
    closer.join(60)
    assert not closer.is_alive()
    assert b.began == [0]  # the step that had not begun never did
    assert b.device.poll() == []
    b.device.close()
    assert "not loaded" in refusal()


def test_close_before_load_is_fine(bench: Callable[..., Bench]) -> None:
    device = bench().device
    device.close()
    device.close()
    with pytest.raises(RuntimeError, match="before close"):
        device.load()


def test_sampled_tokens_do_not_depend_on_the_batch(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    b = bench(batch_invariant=True).load()
    mine = harness.Chunk(PROMPT, 0, [0, 1], row=0, temperature=1.5, top_p=0.95, key=2**63 + 5)
    alone = b.run(harness.step(mine, number=0)).token_ids[0]
    others = [harness.Chunk(PROMPT[i:], 0, [2 + 2 * i, 3 + 2 * i], row=1 + i, temperature=float(i), key=i) for i in range(5)]
    for number, place in enumerate((0, 2, 5), 1):
        step = harness.step(*others[:place], mine, *others[place:], number=number)
        assert b.run(step).token_ids[place] == alone
    keys = {
        int(b.run(harness.step(harness.Chunk(PROMPT, 0, [0, 1], temperature=1.5, key=key), number=9 + key)).token_ids[0])
        for key in range(20)
    }
    assert len(keys) > 5


def test_auto_dtype_is_bfloat16_exactly_where_torch_reports_it() -> None:
    from quiesce.engine.checkpoint import compute_dtype
    from quiesce.engine.config import EngineConfig

    reports = [getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    expected = "bfloat16" if any(report() for report in reports) else "float32"
    assert compute_dtype(EngineConfig()) == expected
    assert compute_dtype(EngineConfig(dtype="float16")) == "float16"


def test_log_probabilities_arrive_with_the_step(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    asked = Adjustment(1, np.array(PROMPT), len(PROMPT), num_logprobs=2, num_prompt_logprobs=0)
    chunks = [harness.Chunk(PROMPT, 0, [2 * row, 2 * row + 1], row=row) for row in range(2)]
    out = bench().load().run(harness.step(*chunks, adjustments=[asked]))
    ((index, sampled),) = out.logprobs
    assert (index, sampled.token_ids[0], sampled.ranks) == (1, out.token_ids[1], (1, 1, 2))
    assert [(index, position, report.token_ids) for index, position, report in out.prompt_logprobs] == [
        (1, position, (PROMPT[position],)) for position in range(1, len(PROMPT))
    ]


def test_outputs_are_of_the_declared_types(bench: Callable[..., Bench], harness: type[Harness]) -> None:
    out = bench().load().run(harness.step(harness.Chunk(PROMPT, 0, [0, 1]), number=0))
    assert out.token_ids.dtype == np.int64
    assert isinstance(out.faults, tuple)
