"""Every size and limit of an engine, with its unit and default. Checked against each other at construction."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from quiesce.engine.errors import InvalidRequest, shown

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes and limits of one engine. Names are vLLM's where it has one.

    Raises:
        InvalidRequest: a value is out of range or two values contradict each other; names the field.
    """

    model: str = "tiny"
    """`tiny` (the shipped model) or the folder of a Hugging Face checkpoint."""
    dtype: Dtype = "auto"
    """`auto` is bfloat16 on a GPU and where the processor computes in it (AVX512_BF16, AMX), else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is cuda where torch sees a GPU, else cpu. `cuda` is refused, with what is missing, where it cannot be."""
    max_model_len: int | None = None
    """Longest request in tokens, prompt and output together. None: the checkpoint's context length."""
    max_num_seqs: int = 64
    """Requests that hold KV blocks at the same time."""
    max_num_batched_tokens: int = 512
    """Token budget of one step, over all its requests."""
    block_size: int = 16
    """Tokens per KV block."""
    kv_cache_memory_bytes: int = 256 * 2**20
    """Size of the KV arena in bytes; `num_kv_blocks` overrides it."""
    num_kv_blocks: int | None = None
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    seed: int = 0
    """Seed from which requests without a seed of their own draw one."""
    load_format: Literal["auto", "dummy", "empty"] = "auto"
    """`dummy` fills the weights with seeded random numbers and reads no tensor file. `empty` loads nothing: the engine starts paused,
    its weights undefined, refuses requests, and waits for a weight update."""
    max_queue: int = 1024
    """Requests accepted and not yet running; one more is refused `QueueFull`."""
    overlap: bool = True
    """Launch a step before the one in front of it has landed (pipeline depth 2). False: depth 1, identical tokens."""
    enforce_eager: bool = False
    """Of the CUDA device: launch operator by operator, without CUDA graphs. Identical tokens, slower."""
    batch_invariant: bool = False
    """A request's tokens are bit-identical whatever happens around it. Costs throughput."""
    backend: Literal["thread", "process"] = "thread"
    """Where the core runs: a thread of this process, or a process of its own, whose death ends no more than what it was computing."""
    connect: str | None = None
    """The `address` of an engine with a core in a process: this one is a further front end of that core, and starts none."""
    max_restarts: int = 0
    """How many times a core that died is started anew, once everything that waited for it is answered. Of the process backend."""
    heartbeat_timeout_s: float = 10.0
    """A core process that gives no sign of life for so long is killed; so are, in the core, the requests of such a front end."""
    max_sessions: int = 1024
    session_idle_timeout_s: float = 600.0
    step_timeout_s: float = 60.0
    """A device step that takes longer fails the engine."""
    control_timeout_s: float = 60.0
    """What `timeout=None` means for control calls."""
    num_threads: int | None = None
    """Threads the CPU device computes with. None: one for a model below 20 million weights, else torch's own choice."""
    tokenizer_required: bool = True
    """False: a checkpoint without tokenizer.json loads; prompts are then token ids."""
    trace_path: Path | None = None
    """Writes every transition and step to this file, one JSON object a line."""
    poison_freed_blocks: bool = False
    """Fills freed KV blocks with NaN, so that a read of one shows. For tests and debugging."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes", "max_queue"):
            _at_least(name, getattr(self, name), 1)
        for name in ("num_kv_blocks", "max_model_len", "num_threads"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 2 if name == "max_model_len" else 1)
        _at_least("max_sessions", self.max_sessions, 0)
        for name in ("step_timeout_s", "control_timeout_s", "session_idle_timeout_s", "heartbeat_timeout_s"):
            if not is_seconds(getattr(self, name)) or getattr(self, name) == 0:
                raise InvalidRequest(
                    name, f"must be seconds above 0 and at most {MAX_SECONDS:g}, not {shown(getattr(self, name))}"
                )
        for name in (
            "enable_prefix_caching",
            "enable_chunked_prefill",
            "overlap",
            "enforce_eager",
            "batch_invariant",
            "poison_freed_blocks",
        ):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(name, f"must be True or False, not {shown(getattr(self, name))}")
        if not isinstance(self.model, (str, PathLike)) or not str(self.model):
            raise InvalidRequest("model", f"must be `tiny` or a folder, not {shown(self.model)}")
        if self.trace_path is not None and not isinstance(self.trace_path, (str, PathLike)):
            raise InvalidRequest("trace_path", f"must be a path, not {shown(self.trace_path)}")
        for name, options in OPTIONS.items():
            if getattr(self, name) not in options:
                raise InvalidRequest(name, f"must be one of {', '.join(options)}, not {shown(getattr(self, name))}")
        _at_least("max_restarts", self.max_restarts, 0)
        if self.max_restarts != 0 and self.backend != "process":
            raise InvalidRequest("max_restarts", "a core that runs in a thread cannot be restarted; must be 0")
        if self.connect is not None and (not isinstance(self.connect, str) or self.backend != "process" or self.max_restarts):
            raise InvalidRequest("connect", "must be an address, with backend='process' and without restarts of its own")
        if type(self.seed) is not int:
            raise InvalidRequest("seed", f"must be an integer, not {shown(self.seed)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequest(
                "max_num_batched_tokens",
                f"{self.max_num_batched_tokens} is less than max_num_seqs {self.max_num_seqs}: one token each must fit",
            )


OPTIONS: dict[str, tuple[str, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
    "load_format": ("auto", "dummy", "empty"),
    "backend": ("thread", "process"),
}


MAX_SECONDS = 1e9
"""About thirty years: what a thread can wait for."""


def is_seconds(value: object) -> bool:
    """Whether it is a number of seconds, 0 or more, that a clock can count."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0 <= value <= MAX_SECONDS


def _at_least(field: str, value: object, low: int) -> None:
    if type(value) is not int or value < low:
        raise InvalidRequest(field, f"must be an integer of at least {low}, not {shown(value)}")
