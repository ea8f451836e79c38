"""Host time: from a landed step to the next launch, on the real core over a device that computes nothing.

The device stamps the time when it is given a step, so what counts as the way to the launch is what the core really does before it.
The front end's half (delivery, detokenising) is measured apart: it is not on that way, but done between two passes on the same core
it takes the core's data out of the processor's caches, so steps are also timed with it in between.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from quiesce.engine.answers import Answers
from quiesce.engine.bench.result import Figure
from quiesce.engine.checkpoint import ModelInfo, read_model_info
from quiesce.engine.config import EngineConfig
from quiesce.engine.core import Core
from quiesce.engine.inbox import Event
from quiesce.engine.messages import Checksum, Completion, Fetched, Loaded, Moved, StepInput, StepOutput, WeightsWritten
from quiesce.engine.outputs import Status
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.stream import FrontEnd, Stream
from quiesce.engine.tiny import checkpoint_folder
from quiesce.engine.tokenizer import Tokenizer
from quiesce.statemachine.effects import LaunchStep, LoadWeights, Map, Unmap

BOUNDS: Final = {1: (60.0, 30.0), 32: (100.0, 40.0), 256: (300.0, 60.0)}
"""Requests in the batch -> microseconds: floor and aim."""
BLOCK_SIZE: Final = 16
CONTEXT: Final = 1024
"""Tokens of a request, about, while it is measured."""
WARM_STEPS: Final = 20
EOS: Final = 2


class NullDevice:
    """`messages.Device` that answers at once, when told to, with tokens that never end a request."""

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int) -> None:
        self.num_blocks, self.block_size, self.vocab_size = num_blocks, block_size, vocab_size
        self.launched: deque[StepInput] = deque()
        self.launched_ns = self.launched_cpu_ns = 0
        """When the last launch reached the device: wall, and processor time of the calling thread."""
        self._rng = np.random.default_rng(0)
        self._done: list[Completion] = []

    def bind(self, wake: Callable[[], None]) -> None:
        """Nobody waits: passes are run by hand."""

    def load(self) -> None:
        self._done.append(Loaded())

    def launch(self, effect: LaunchStep, step: StepInput) -> None:
        self.launched_ns, self.launched_cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        self.launched.append(step)

    def land(self) -> None:
        """The oldest launched step is done."""
        step = self.launched.popleft()
        tokens = self._rng.integers(EOS + 1, self.vocab_size, len(step.rows))
        now_s = time.perf_counter()
        self._done.append(StepOutput(step.step, step.epoch, np.where(step.samples, tokens, -1), started_s=now_s, ended_s=now_s))

    def poll(self) -> list[Completion]:
        done, self._done = self._done, []
        return done

    def poison(self, blocks: Sequence[int]) -> None:
        """There is nothing in them."""

    def unmap(self, effect: Unmap, tag: str, policy: str, blocks: Sequence[int]) -> None:
        self._done.append(Moved(tag, "released"))

    def map(self, effect: Map, tag: str, policy: str) -> None:
        self._done += [Moved(tag, "restored"), Moved("kv_cache", "zeroed")]

    def fetch(self, ticket: int, source: Iterator[tuple[str, Any]]) -> None:
        self._done.append(Fetched(ticket, tuple(source)))

    def load_weights(self, effect: LoadWeights, pairs: Sequence[tuple[str, Any]]) -> None:
        self._done.append(WeightsWritten())

    def checksum(self, ticket: int) -> None:
        self._done.append(Checksum(ticket, "nothing"))

    def close(self) -> None:
        self.launched.clear()


class ByHand:
    """`stream.Link` whose passes are run by whoever measures."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def start(self, deliver: Callable[[Answers], None], ended: Callable[[BaseException | None], None]) -> None:
        """Nothing runs by itself."""

    def post(self, event: Event) -> None:
        self.core.inbox.post(event)

    def status(self) -> Status:
        return self.core.status

    def join(self) -> None:
        """There is no thread."""


@dataclass(frozen=True, slots=True)
class PassTimes:
    """One pass, microseconds."""

    launch: float
    """From the landed step to the launch."""
    launch_cpu: float
    """The same, processor time."""
    rest: float
    """From the launch to the end of the pass: checks, trace, status."""
    deliver: float
    """Front end: tokens to their streams."""
    take: float
    """Front end: every stream's output made and detokenised."""


class HostLoop:
    """A batch in steady state: `batch` requests decode, a step has always just been launched."""

    def __init__(self, batch: int, steps: int, folder: Path) -> None:
        rng = random.Random(batch)
        longest = CONTEXT + steps + 2 * WARM_STEPS + 2 * BLOCK_SIZE
        self.config = EngineConfig(
            model=str(folder), load_format="dummy", max_num_seqs=batch, max_num_batched_tokens=batch * CONTEXT,
            max_queue=max(batch, 1),
        )  # fmt: skip
        self._tokenizer = Tokenizer(checkpoint_folder())
        info = _info(folder, 2 * longest, self._tokenizer.vocab_size)
        self.device = NullDevice(batch * (-(-longest // BLOCK_SIZE) + 1), BLOCK_SIZE, info.vocab_size)
        self.core = Core(self.config, info, self.device, max_model_len=longest)
        self.link = ByHand(self.core)
        self.front = FrontEnd(self.link, self.core.trace, self.core.clock, self.core.started_s, self.core.config)
        self._answers: list[Answers] = []
        self.core.deliver = self._answers.append
        self.front.connect()
        self.device.load()
        self.core.step()
        self.streams = [self._open(rng, number, info.vocab_size, longest) for number in range(batch)]
        for _ in range(WARM_STEPS):
            self._turn()
        if not self._decoding():
            raise RuntimeError(f"a batch of {batch} does not decode after {WARM_STEPS} steps: {self.core.status}")

    def _open(self, rng: random.Random, number: int, vocab_size: int, longest: int) -> Stream:
        ids = [rng.randrange(EOS + 1, vocab_size) for _ in range(CONTEXT - rng.randrange(2 * BLOCK_SIZE))]
        params = SamplingParams(max_tokens=longest, temperature=0, output_kind="delta")
        return self.front.open(f"r{number}", None, ids, params, 0, self._tokenizer)

    def _decoding(self) -> bool:
        """Whether every request has its first token."""
        batch = self.core.batch
        return bool((batch.running & (batch.num_tokens > batch.num_prompt_tokens)).all())

    def take(self) -> None:
        """Every client reads."""
        for stream in self.streams:
            stream.take()

    def _turn(self) -> None:
        if self.device.launched:
            self.device.land()
        self.core.step()
        if self.core.failure is not None:
            raise self.core.failure
        for answers in self._answers:
            self.front.deliver(answers)
        self._answers.clear()

    def step(self, takes: bool = True) -> PassTimes:
        """Lands a step, and times what follows. `takes`: the clients read; else what they are sent waits for them."""
        self.device.land()
        cpu, began = time.thread_time_ns(), time.perf_counter_ns()
        self.core.step()
        ended = time.perf_counter_ns()
        for answers in self._answers:
            self.front.deliver(answers)
        delivered = time.perf_counter_ns()
        if takes:
            self.take()
        taken = time.perf_counter_ns()
        self._answers.clear()
        launched, launched_cpu = self.device.launched_ns, self.device.launched_cpu_ns
        return PassTimes(
            (launched - began) / 1e3,
            (launched_cpu - cpu) / 1e3,
            (ended - launched) / 1e3,
            (delivered - ended) / 1e3,
            (taken - delivered) / 1e3,
        )


def _info(folder: Path, context: int, vocab_size: int) -> ModelInfo:
    """The facts of a model that nobody computes, with the vocabulary of the shipped tokenizer."""
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": vocab_size,
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": context,
        "tie_word_embeddings": True, "eos_token_id": EOS, "hidden_act": "silu", "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_model_info(folder)


def measure(quick: bool) -> list[Figure]:
    """The row `host`. Batches take turns, so that a slow moment of the machine strikes all of them."""
    steps, rounds = (20, 2) if quick else (100, 8)
    with tempfile.TemporaryDirectory() as folder:
        loops = {batch: HostLoop(batch, 2 * steps * rounds, Path(folder)) for batch in BOUNDS}
        found: dict[int, list[PassTimes]] = {batch: [] for batch in BOUNDS}
        alone: dict[int, list[PassTimes]] = {batch: [] for batch in BOUNDS}
        for loop in loops.values():
            for _ in range(WARM_STEPS):
                loop.step()
        for _ in range(rounds):
            for batch, loop in loops.items():
                alone[batch] += [loop.step(takes=False) for _ in range(steps)]
                loop.take()
                found[batch] += [loop.step() for _ in range(steps)]
    figures = []
    for batch, (floor, aim) in BOUNDS.items():
        times = found[batch]
        launches = tuple(t.launch for t in alone[batch])
        figures.append(Figure("host", f"landed to launched, batch {batch}", "us", launches, floor, aim))
        for name, samples in (
            ("its processor time", tuple(t.launch_cpu for t in alone[batch])),
            ("the same after outputs were made on this core", tuple(t.launch for t in times)),
            ("rest of the pass: monitor, trace, status", tuple(t.rest for t in times)),
            ("delivery to the streams", tuple(t.deliver for t in times)),
            ("outputs made and detokenised", tuple(t.take for t in times)),
        ):
            figures.append(Figure("host", f"    {name}", "us", samples))
    return figures
