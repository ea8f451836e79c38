"""The CUDA runner on a dry platform, held against the CPU's: same weights, same steps, same tokens.

Everything but the kernels and the driver is what runs on a GPU: buckets, padding, the one buffer, graphs (done again instead of
replayed), tokens that stay on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from quiesce.engine.config import EngineConfig
from quiesce.engine.device.cuda_flight import graph_sizes
from quiesce.engine.device.cuda_runner import CudaRunner
from quiesce.engine.device.cuda_step import Layout, Shape, StepTokens, input_layout
from quiesce.engine.device.dry_platform import DryPlatform, LazyPlatform
from quiesce.engine.device.runner import Landed, Runner
from quiesce.engine.messages import FROM_DEVICE, Adjustment, StepInput

if TYPE_CHECKING:
    from tests.engine.device.conftest import Harness, Reference

MODES: list[dict[str, Any]] = [{}, {"enforce_eager": True}, {"batch_invariant": True}]
names = pytest.mark.parametrize("mode", MODES, ids=["graphs", "eager", "invariant"])


def cuda_runner(config: EngineConfig, info: Any, num_blocks: int = 32, platform: DryPlatform | None = None) -> CudaRunner:
    return CudaRunner(config, info, num_blocks, platform or DryPlatform(), lambda: None, progress=False)


def spread(runner: Any) -> None:
    """Makes dummy weights large and norms unlike each other, so that tokens depend on everything."""
    generator = torch.Generator().manual_seed(1)
    for name, view in runner.weights.destinations.items():
        if name.endswith("norm.weight"):
            view.copy_(torch.rand(view.shape[-1], generator=generator) + 0.5)
        else:
            view.mul_(6.0)


@pytest.fixture
def pair(harness: type[Harness]) -> Iterator[Callable[..., tuple[CudaRunner, Runner]]]:
    made: list[Any] = []

    def make(**changes: Any) -> tuple[CudaRunner, Runner]:
        info = harness.info(**changes.pop("info", {}))
        config = harness.config(**changes)
        cuda, cpu = cuda_runner(config, info), Runner(config, info, 32, progress=False)
        made.extend((cuda, cpu))
        spread(cuda)
        spread(cpu)
        return cuda, cpu

    yield make
    for runner in made:
        runner.close()


def equal(found: Landed, expected: Landed) -> None:
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.faults == expected.faults
    assert [(index, report.token_ids, report.ranks) for index, report in found.logprobs] == [
        (index, report.token_ids, report.ranks) for index, report in expected.logprobs
    ]
    assert [report[:2] for report in found.prompt_logprobs] == [report[:2] for report in expected.prompt_logprobs]
    pairs = [(a[-1], b[-1]) for a, b in zip(found.logprobs, expected.logprobs, strict=True)]
    pairs += [(a[-1], b[-1]) for a, b in zip(found.prompt_logprobs, expected.prompt_logprobs, strict=True)]
    for a, b in pairs:
        assert np.allclose(a.logprobs, b.logprobs, atol=1e-4)


def story(harness: type[Harness], rng: np.random.Generator) -> Iterator[StepInput]:
    """Six requests of all kinds: prompts whole and in chunks, tokens told and taken from the device, filters and adjustments."""
    prompts = [rng.integers(3, 96, int(length)).tolist() for length in (7, 1, 13, 4, 9, 2)]
    blocks = [[5 * i + 1, 5 * i, 5 * i + 3, 5 * i + 2, 5 * i + 4] for i in range(6)]
    heat = [
        (0.0, 0, 1.0, 0.0),
        (1.0, 0, 1.0, 0.0),
        (0.8, 5, 1.0, 0.0),
        (1.3, 0, 0.7, 0.0),
        (1.0, 20, 0.9, 0.02),
        (0.0, 0, 1.0, 0.0),
    ]

    def chunk(i: int, tokens: list[int], start: int, sample: bool = True) -> Any:
        temperature, top_k, top_p, min_p = heat[i]
        return harness.Chunk(
            tokens, start, blocks[i], row=15 - 2 * i, sample=sample, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, key=rng.integers(0, 2**63).item() * 2 + i % 2,
        )  # fmt: skip

    asked = [
        Adjustment(0, np.array(prompts[0]), 7, num_logprobs=3, num_prompt_logprobs=2),
        Adjustment(1, bias_ids=np.array([4, 9]), bias=np.array([3.0, -2.0], np.float32), num_logprobs=0),
    ]
    yield harness.step(chunk(0, prompts[0], 0), chunk(1, prompts[1], 0), number=1, adjustments=asked)
    yield harness.step(
        chunk(2, prompts[2][:5], 0, sample=False), chunk(0, [FROM_DEVICE], 7), chunk(1, [FROM_DEVICE], 1), number=2
    )
    yield harness.step(
        chunk(3, prompts[3], 0), chunk(0, [FROM_DEVICE], 8), chunk(2, prompts[2][5:], 5), chunk(1, [11], 2), number=3
    )
    yield harness.step(*(chunk(i, [FROM_DEVICE], start) for i, start in ((2, 13), (0, 9), (3, 4))), number=4)
    yield harness.step(chunk(5, prompts[5], 0), chunk(4, prompts[4], 0), number=5)
    penalised = [
        Adjustment(1, np.array([*prompts[3], 5, 5, 9]), 4, 1.3, 0.4, 0.2, num_logprobs=2),
        Adjustment(3, banned_ids=np.arange(90), num_logprobs=1),
    ]
    singles = [chunk(i, [FROM_DEVICE], start) for i, start in ((0, 10), (3, 5), (5, 2), (4, 9), (2, 14))]
    yield harness.step(*singles, number=6, adjustments=penalised)
    for number in range(7, 12):
        starts = ((0, 11), (3, 6), (5, 3), (4, 10), (2, 15))
        yield harness.step(*(chunk(i, [FROM_DEVICE], start + number - 7) for i, start in starts), number=number)


@names
@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_step_gives_what_the_cpu_device_gives(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness], mode: dict[str, Any], seed: int
) -> None:
    cuda, cpu = pair(**mode)
    steps = list(story(harness, np.random.default_rng(seed)))
    for step in steps:
        equal(cuda.run(step), cpu.run(step))
    kinds = {"eager"} if "enforce_eager" in mode else {"graph", "eager"}
    assert {kind for kind, count in cuda.counts.items() if count} - {"captured"} == kinds


@names
@pytest.mark.parametrize("wrong", [
    {"banned_ids": np.arange(96)},
    {"bias_ids": np.array([96]), "bias": np.ones(1, np.float32)},
    {"history": np.array([5, 9, 700, 44]), "num_prompt_tokens": 4, "num_prompt_logprobs": 1},
])  # fmt: skip
def test_a_row_that_is_wrong_by_its_own_adjustment_is_a_fault_and_has_no_token_for_the_next_step(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness], mode: dict[str, Any], wrong: dict[str, Any]
) -> None:
    cuda, cpu = pair(**mode)
    good, bad = harness.Chunk([3, 8, 1], 0, [4, 5], row=2), harness.Chunk([5, 9, 2, 44], 0, [0, 1], row=1)
    first = harness.step(good, bad, number=0, adjustments=[Adjustment(1, num_logprobs=2, **wrong)])
    after = harness.step(*(harness.Chunk([FROM_DEVICE], len(c.tokens), c.blocks, row=c.row) for c in (bad, good)), number=1)
    for step, faulty in ((first, 1), (after, 0)):
        expected = cpu.run(step)
        assert [index for index, _ in expected.faults] == [faulty]
        equal(cuda.run(step), expected)


def test_a_step_of_many_passes_is_put_together_right(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch-invariant, in passes of four rows that begin and end in the middle of prompts; one prompt is reported."""
    monkeypatch.setattr("quiesce.engine.device.cuda_runner.EXACT_ROWS", 4)
    cuda, cpu = pair(batch_invariant=True, max_num_seqs=4)
    prompts = [[5, 9, 2, 44, 17, 8, 30, 11, 60], [7], [3, 3, 61, 40, 12]]
    chunks = [harness.Chunk(prompts[i], 0, [4 * i, 4 * i + 1, 4 * i + 2], row=3 - i) for i in range(3)]
    asked = Adjustment(2, np.array(prompts[2]), 5, repetition_penalty=1.5, num_logprobs=3, num_prompt_logprobs=1)
    for number, adjustments in enumerate(([], [asked])):
        step = harness.step(*chunks, number=number, adjustments=adjustments)
        equal(cuda.run(step), cpu.run(step))
        following = [harness.Chunk([FROM_DEVICE], len(prompts[i]), chunks[i].blocks, row=3 - i) for i in (2, 0, 1)]
        step = harness.step(*following, number=10 + number)
        equal(cuda.run(step), cpu.run(step))


@pytest.mark.parametrize("info", [
    {"tie_word_embeddings": False, "attention_bias": True, "output_bias": True, "mlp_bias": True},
    {"qk_norm": False, "num_heads": 6, "num_kv_heads": 2},
    {"num_heads": 2, "num_kv_heads": 2, "head_dim": 16},
])  # fmt: skip
def test_every_shape_of_model_gives_what_the_cpu_device_gives(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness], info: dict[str, Any]
) -> None:
    cuda, cpu = pair(info=info)
    for step in story(harness, np.random.default_rng(9)):
        equal(cuda.run(step), cpu.run(step))


@names
def test_tokens_are_those_of_transformers(reference: Reference, harness: type[Harness], mode: dict[str, Any]) -> None:
    runner = cuda_runner(harness.config(load_format="auto", **mode), reference.info)
    blocks = list(range(31, 0, -1))
    for chunk in (10_000, 3):
        assert harness.generate(runner, reference.prompt, blocks, len(reference.tokens), chunk) == reference.tokens
    runner.close()


def test_tokens_of_every_family_are_those_of_transformers(family_reference: Reference, harness: type[Harness]) -> None:
    runner = cuda_runner(harness.config(load_format="auto"), family_reference.info, 64)
    tokens = harness.generate(runner, family_reference.prompt, list(range(64)), len(family_reference.tokens))
    assert tokens == family_reference.tokens
    runner.close()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.04), ("float16", 0.005)])
def test_in_half_precision_probabilities_are_near_the_cpu_devices(harness: type[Harness], dtype: str, tolerance: float) -> None:
    """Rounding differs, as norms and rotations are one operation here. A decode step and a mixed one."""
    config, prompt = harness.config(dtype=dtype), [5, 9, 2, 44, 17, 8, 30]
    asked = [Adjustment(index, np.array(prompt), 7, num_logprobs=-1, num_prompt_logprobs=5) for index in (0, 1)]
    mixed = harness.step(harness.Chunk(prompt, 0, [0, 1], row=0), harness.Chunk([3], 0, [2], row=1), adjustments=asked[:1])
    decode = harness.step(harness.Chunk([4], 7, [0, 1], row=0), harness.Chunk([9], 1, [2], row=1), number=1, adjustments=asked)
    runners = cuda_runner(config, harness.info()), Runner(config, harness.info(), 32, progress=False)
    for runner in runners:
        spread(runner)
    for step in (mixed, decode):
        found = []
        for runner in runners:
            landed = runner.run(step)
            assert landed.faults == ()
            reports = [report for _, report in landed.logprobs] + [report for *_, report in landed.prompt_logprobs]
            found.append([dict(zip(report.token_ids, report.logprobs, strict=True)) for report in reports])
        for mine, theirs in zip(*found, strict=True):
            assert all(abs(mine[token] - theirs[token]) < tolerance for token in mine.keys() & theirs.keys())
            assert max(theirs.values()) - min(theirs.values()) > 10 * tolerance
    for runner in runners:
        runner.close()


def test_graphs_and_eager_work_give_the_same_bits(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness]
) -> None:
    (graphs, _), (eager, _) = pair(), pair(enforce_eager=True)
    for step in story(harness, np.random.default_rng(4)):
        graphs.run(step)
        eager.run(step)
        assert torch.equal(graphs.kv[:, :, :32], eager.kv[:, :, :32])


@names
def test_nothing_is_read_that_is_not_the_requests_own_and_nothing_is_written(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness], mode: dict[str, Any]
) -> None:
    """All KV is NaN before; afterwards the requests' own slots are not, and padding has touched the reserved block alone."""
    cuda, cpu = pair(**mode)
    cuda.kv.fill_(float("nan"))
    written = torch.zeros(33, 4, dtype=torch.bool)
    for step in story(harness, np.random.default_rng(5)):
        equal(cuda.run(step), cpu.run(step))
        tokens = StepTokens(step, 32, 4)
        written.view(-1)[torch.from_numpy(tokens.slots)] = True
    finite = cuda.kv.isfinite().all(-1)  # [layers, 2, blocks, heads, slots]
    assert torch.equal(finite[:, :, :32], written[:32].view(1, 1, 32, 1, 4).expand_as(finite[:, :, :32]))


def test_steps_read_late_are_read_right(pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness]) -> None:
    """As they are on a GPU: a step is launched, and filled in, before the one in front of it has been read."""
    cuda, cpu = pair()
    steps = [step for step in story(harness, np.random.default_rng(6)) if not step.adjustments]
    expected = [cpu.run(step) for step in steps]
    flights = [cuda.launch(steps[0])]
    for number, step in enumerate(steps[1:]):
        flights.append(cuda.launch(step))
        equal(flights[number].read(), expected[number])
    equal(flights[-1].read(), expected[-1])


def late_steps(runner: CudaRunner, steps: list[StepInput]) -> list[Landed]:
    """Two on their way at any time; each is waited for when the next has been launched."""
    found, flights = [], [runner.launch(steps[0])]
    for step in steps[1:]:
        flights.append(runner.launch(step))
        flights[0].event.synchronize()
        found.append(flights.pop(0).read())
    flights[0].event.synchronize()
    return [*found, flights[0].read()]


@names
def test_a_device_may_be_as_late_as_it_likes(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness], mode: dict[str, Any]
) -> None:
    """What a step is given lies still until the device has taken it, and what it gave until it has been read."""
    _, cpu = pair(**mode)
    late = cuda_runner(harness.config(**mode), harness.info(), platform=LazyPlatform())
    spread(late)
    steps = list(story(harness, np.random.default_rng(8)))
    for found, expected in zip(late_steps(late, steps), [cpu.run(step) for step in steps], strict=True):
        equal(found, expected)
    late.close()


def test_with_one_set_of_pinned_buffers_a_late_device_shows_it(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quiesce.engine.device.cuda_runner.DEPTH", 1)
    _, cpu = pair()
    late = cuda_runner(harness.config(), harness.info(), platform=LazyPlatform())
    spread(late)
    blocks = [[0, 1, 2], [3, 4, 5]]
    prompts = [harness.step(harness.Chunk([5 + 30 * i, 9, 2], 0, blocks[i]), number=i) for i in range(2)]
    steps = [harness.step(harness.Chunk([7 * n], 3 + n // 2, blocks[n % 2]), number=2 + n) for n in range(8)]
    for step in prompts:
        equal(late.run(step), cpu.run(step))
    found = [landed.token_ids.tolist() for landed in late_steps(late, steps)]
    assert found != [cpu.run(step).token_ids.tolist() for step in steps]
    late.close()


def test_a_bucket_pads_to_the_next_size_and_the_largest_holds_every_decode_step(harness: type[Harness]) -> None:
    assert graph_sizes(harness.config(max_num_seqs=1)) == [1]
    assert graph_sizes(harness.config(max_num_seqs=20)) == [1, 2, 4, 8, 16, 20]
    sizes = graph_sizes(harness.config(max_num_seqs=256))
    assert (sizes[-2:], len(sizes)) == ([224, 256], 17)
    runner = cuda_runner(harness.config(max_num_seqs=6), harness.info(), 32)
    for count, bucket in ((1, 1), (2, 2), (3, 4), (5, 6), (6, 6)):
        step = harness.step(*(harness.Chunk([5], 0, [i], row=i) for i in range(count)))
        assert runner._shape(StepTokens(step, 32, 4))[0].tokens == bucket
    runner.close()


def test_short_requests_have_graphs_of_their_own_and_long_ones_theirs(
    pair: Callable[..., tuple[CudaRunner, Runner]], harness: type[Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that short ones do not launch the splits of the longest."""
    monkeypatch.setattr("quiesce.engine.device.cuda_runner.CONTEXTS", (16,))
    cuda, cpu = pair(max_num_seqs=2, block_size=1)
    assert sorted({shape.width for shape in cuda._graphs}) == [16, 512]
    tokens = harness.generate(cuda, [5, 9, 2], list(range(31, -1, -1)), 25)
    assert tokens == harness.generate(cpu, [5, 9, 2], list(range(31, -1, -1)), 25)
    assert cuda.counts["graph"] == 24
    for position, width in ((15, 16), (16, 512)):
        step = harness.step(harness.Chunk([5], position, list(range(17))))
        assert cuda._shape(StepTokens(step, 32, 1))[0].width == width


def test_padding_sees_nothing_samples_greedily_and_keeps_nothing_whatever_lay_there_before(harness: type[Harness]) -> None:
    """Nothing it names may lead outside: on a GPU that ends the process."""
    shape, chunks = (
        Shape(8, 8, 0, 8, 16),
        [harness.Chunk([7 + i], 3, [i, 9], row=i, temperature=1.0, key=2**64 - 1) for i in range(3)],
    )
    layout = input_layout(shape)
    arrays = layout.arrays(torch.full((layout.num_bytes,), 0x7F, dtype=torch.uint8))
    tokens = StepTokens(harness.step(*chunks), 32, 4)
    tokens.rows(shape, 0, 3, arrays)
    own = {"ids": [7, 8, 9], "positions": [3] * 3, "slots": [3, 7, 11], "rows": [0, 1, 2], "contexts": [4] * 3, "keys": [-1] * 3,
           "sampled_at": [4] * 3, "temperature": [1] * 3, "top_k": [0] * 3, "top_p": [1] * 3, "min_p": [0] * 3, "keep": [0, 1, 2]}  # fmt: skip
    padding = {"slots": 128, "keep": -1, "top_p": 1}
    for name, values in own.items():
        assert arrays[name].tolist() == values + [padding.get(name, 0)] * 5, name
    assert arrays["ends"].tolist() == list(range(8))
    assert arrays["tables"][:3, :2].tolist() == [[0, 9], [1, 9], [2, 9]]


def test_arrays_lie_apart_and_fit_the_buffer_whatever_the_step(harness: type[Harness]) -> None:
    layout = input_layout(Shape(7, 3, 2, 4, 5))
    arrays = layout.arrays(torch.zeros(layout.num_bytes, dtype=torch.uint8))
    for number, array in enumerate(arrays.values(), 1):
        assert array.ctypes.data % 4 == 0
        array[...] = number
    assert all((array == number).all() for number, array in enumerate(arrays.values(), 1))
    nothing = Layout({})
    assert (nothing.num_bytes, nothing.tensors(torch.empty(0, dtype=torch.uint8))) == (0, {})
    runner = cuda_runner(harness.config(max_num_seqs=3, max_num_batched_tokens=11), harness.info(), 32)
    for chunks, samples in ((0, 0), (1, 0), (1, 2), (2, 3), (3, 3)):
        for tokens in range(max(1, 2 * chunks), 12):
            shape = Shape(tokens, 3 - chunks, chunks, samples, 128)
            assert input_layout(shape).num_bytes <= runner._input_bytes
    runner.close()


def test_the_smallest_engine_there_is_serves(harness: type[Harness]) -> None:
    for mode in MODES:
        config = harness.config(max_num_seqs=1, max_num_batched_tokens=1, block_size=1, max_model_len=8, **mode)
        runner = cuda_runner(config, harness.info(), 8)
        assert len(harness.generate(runner, [5, 9, 2], list(range(8)), 5, 1)) == 5
        runner.close()


class NoCapture(DryPlatform):
    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_decoding_without_a_graph_is_said_once_and_counted(harness: type[Harness], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "quiesce.device"):
        runner = cuda_runner(harness.config(max_num_seqs=2), harness.info(), 32, NoCapture())
        assert caplog.text.count("it cannot be captured") == 2
        harness.generate(runner, [5, 9, 2], [0, 1, 2], 5)
    assert caplog.text.count("operator by operator, which is slow") == 1
    assert (runner.counts["eager for want of a graph"], runner.counts["graph"]) == (4, 0)
    runner.close()
