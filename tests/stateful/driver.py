"""Runs an engine's core inside the deterministic loop: passes, device completions and hand-overs are choices of the loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quiesce.engine.answers import Answers
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.core import Core
from quiesce.engine.inbox import Event
from quiesce.engine.model import Model
from quiesce.engine.outputs import Status
from quiesce.stateful.ledger_device import LedgerDevice
from quiesce.stateful.loop import DeterministicLoop

VOCAB_SIZE = 509


class LoopLink:
    """`stream.Link` without a thread: what a thread would do in its own time the loop does when it chooses to."""

    def __init__(self, core: Core, loop: DeterministicLoop) -> None:
        self.core, self.loop = core, loop
        core.clock = loop.time
        core.inbox.bind(self._wake)
        core.device.bind(self._wake)
        self._scheduled = self._over = False
        self._timer: Any = None
        self._ended: Callable[[BaseException | None], None] = lambda cause: None

    def start(self, deliver: Callable[[Answers], None], ended: Callable[[BaseException | None], None]) -> None:
        self.core.deliver = lambda answers: self.loop.offer("deliver", lambda: deliver(answers), channel="answers")
        self._ended = ended
        self.core.device.load()

    def post(self, event: Event) -> None:
        self.core.inbox.post(event)

    def status(self) -> Status:
        return self.core.status

    def join(self) -> None:
        """There is no thread to wait for."""

    def _wake(self) -> None:
        if not self._scheduled and not self._over:
            self._scheduled = True
            self.loop.offer("pass", self._pass, channel="core")

    def _pass(self) -> None:
        self._scheduled = False
        if self._over:
            return
        cause: BaseException | None = None
        try:
            self.core.step()
        except Exception as error:  # noqa: BLE001  as the thread's last line: whoever waits must learn of it
            cause = error
        if cause is not None or self.core.finished_for_good:
            self._over = True
            self.loop.offer("ended", lambda: self._ended(cause), channel="answers")
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.core.next_deadline_s()
        if due is not None and not self._over:
            self._timer = self.loop.call_at(due, self._wake)


def ledger_checkpoint(folder: Path, max_model_len: int = 256) -> Path:
    """A checkpoint of which only the facts matter: the ledger device reads no tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCAB_SIZE, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "max_position_embeddings": max_model_len, "tie_word_embeddings": True, "eos_token_id": 2, "hidden_act": "silu", "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ledger_config(folder: Path, **changes: Any) -> EngineConfig:
    """A small engine over the ledger device: 4 rows, 24 blocks of 4 tokens."""
    settings: dict[str, Any] = {
        "model": str(folder), "load_format": "dummy", "tokenizer_required": False, "max_model_len": 64, "max_num_seqs": 4,
        "max_num_batched_tokens": 16, "block_size": 4, "num_kv_blocks": 24, "poison_freed_blocks": True,
    }  # fmt: skip
    return EngineConfig(**(settings | changes))


def ledger_engine(loop: DeterministicLoop, config: EngineConfig) -> tuple[AsyncEngine, LedgerDevice]:
    """A real engine over a ledger device, all of it in the deterministic loop."""
    made: list[LedgerDevice] = []

    def make_device(config: EngineConfig, model: Model) -> LedgerDevice:
        device = LedgerDevice(
            model.num_blocks,
            config.block_size,
            model.info.vocab_size,
            lambda name, work: loop.offer(name, work, channel="device"),
        )
        made.append(device)
        return device

    engine = AsyncEngine(config, make_device=make_device, make_link=lambda core, call_in_loop: LoopLink(core, loop))
    return engine, made[0]


def assert_nothing_left(engine: AsyncEngine) -> None:
    """Every block home, every request answered, every stream closed, the balance right."""
    status = engine.status()
    problems = []
    if not status.balanced:
        problems.append(f"out of balance: {status}")
    if status.live or any(status.requests.get(state) for state in ("draining", "retracting")):
        problems.append(f"requests left: {dict(status.requests)}")
    if status.blocks.held or status.blocks.fenced:
        problems.append(f"blocks left: {status.blocks}")
    if status.streams or engine.request_ids():
        problems.append(f"streams left: {engine.request_ids()}")
    core = engine._core
    core.pool.audit()
    leftovers = {
        "requests": core.requests,
        "by_stream": core.by_stream,
        "plans": core.pipeline.plans,
        "calls": engine._front.calls,
    }
    problems += [f"{name} left: {found}" for name, found in leftovers.items() if found and status.engine != "failed"]
    if problems:
        raise AssertionError("; ".join(problems))
