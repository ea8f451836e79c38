"""Opens a checkpoint for serving: its facts, its tokenizer, and how many KV blocks fit. No tensor is read here."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from quiesce.engine.checkpoint import ModelInfo, bytes_per_block, read_model_info
from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.messages import Device
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tensor_files import check_tensors, expected_tensors
from quiesce.engine.tiny import checkpoint_folder
from quiesce.engine.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
SMALL_MODEL_WEIGHTS = 20_000_000
GPU_SIGNS = ("/dev/nvidiactl", "/dev/dxg")
"""Of NVIDIA's driver, on Linux and in Windows' Linux."""


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint that can be served under a configuration."""

    info: ModelInfo
    tokenizer: Tokenizer | None
    max_model_len: int
    """Longest request in tokens."""
    num_blocks: int

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What `sampling_params=None` means: the checkpoint's own defaults, where it has some."""
        return SamplingParams(**getattr(self.info, "generation_defaults", {}))

    def check_params(self, params: SamplingParams) -> None:
        """Holds parameters against this model.

        Raises:
            InvalidRequest: a token id is outside the vocabulary, or stop strings are asked for without a tokenizer.
        """
        if params.stop_strings and self.tokenizer is None:
            raise InvalidRequest("stop", "this checkpoint has no tokenizer; use stop_token_ids")
        for field, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias or {})):
            for token in ids:
                if token >= self.info.vocab_size:
                    raise InvalidRequest(field, f"token id {token} is outside the vocabulary of {self.info.vocab_size}")
        for field in ("logprobs", "prompt_logprobs"):
            count = getattr(params, field)
            if count is not None and count > self.info.vocab_size:
                raise InvalidRequest(field, f"{count} is more than the vocabulary of {self.info.vocab_size}")

    def token_ids_of(self, prompt: object) -> tuple[str | None, list[int]]:
        """The prompt as text, where it has one, and as token ids.

        Raises:
            InvalidRequest: it is empty, too long, of a wrong type, or has ids the model does not know.
        """
        if isinstance(prompt, Mapping):
            if set(prompt) != {"prompt_token_ids"}:
                raise InvalidRequest("prompt", f"must have the key 'prompt_token_ids' alone, not {sorted(map(str, prompt))}")
            prompt = prompt["prompt_token_ids"]
        text = prompt if isinstance(prompt, str) else None
        token_ids = self._encode(text) if text is not None else _checked_ids(prompt)
        if not token_ids:
            raise InvalidRequest("prompt", "is empty")
        if len(token_ids) >= self.max_model_len:
            raise InvalidRequest("prompt", f"{len(token_ids)} tokens leave no room in a context of {self.max_model_len}")
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.info.vocab_size:
            raise InvalidRequest(
                "prompt", f"token id {low if low < 0 else high} is outside the vocabulary of {self.info.vocab_size}"
            )
        return text, token_ids

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise InvalidRequest("prompt", "this checkpoint has no tokenizer; send token ids")
        return self.tokenizer.encode(text)


def _checked_ids(prompt: Any) -> list[int]:
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise InvalidRequest("prompt", f"must be text or token ids, not {type(prompt).__name__}")
    if not all(type(token) is int for token in prompt):
        raise InvalidRequest("prompt", "token ids must be integers")
    return list(prompt)


def batch_of(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """What `Engine.generate` was given, as a list: one prompt is a batch of one.

    Raises:
        InvalidRequest: it is neither a prompt nor a list.
    """
    if not isinstance(prompts, (Sequence, Mapping)):
        raise InvalidRequest("prompts", f"must be a prompt or a list of them, not {type(prompts).__name__}")
    if isinstance(prompts, (str, Mapping)) or (prompts and all(isinstance(part, int) for part in prompts)):
        return [cast("Prompt", prompts)]
    return [cast("Prompt", prompt) for prompt in prompts]


def open_model(config: EngineConfig) -> Model:
    """Reads a checkpoint's facts and sizes the pool.

    Raises:
        InvalidRequest: the checkpoint is missing, truncated, contradicts itself or is of an unknown kind; or the pool cannot hold
            one request of `max_model_len`. Names the file and the tensor, or the field.
    """
    config = with_device(config)
    folder = checkpoint_folder() if config.model == "tiny" else Path(config.model)
    info = read_model_info(folder)
    if config.load_format == "auto":
        check_tensors(info)
    max_model_len = info.max_position_embeddings if config.max_model_len is None else config.max_model_len
    if max_model_len > info.max_position_embeddings:
        raise InvalidRequest(
            "max_model_len", f"{max_model_len} is beyond the checkpoint's context of {info.max_position_embeddings}"
        )
    if not config.enable_chunked_prefill and config.max_num_batched_tokens < max_model_len:
        raise InvalidRequest(
            "max_num_batched_tokens",
            f"{config.max_num_batched_tokens} cannot hold a prompt of max_model_len {max_model_len}, and enable_chunked_prefill is False",
        )
    num_blocks = config.num_kv_blocks or config.kv_cache_memory_bytes // bytes_per_block(info, config)
    needed = -(-max_model_len // config.block_size)
    if num_blocks < needed:
        field = "num_kv_blocks" if config.num_kv_blocks else "kv_cache_memory_bytes"
        raise InvalidRequest(field, f"gives {num_blocks} blocks; one request of max_model_len {max_model_len} needs {needed}")
    has_tokenizer = config.tokenizer_required or (folder / "tokenizer.json").exists()
    return Model(info, Tokenizer(folder) if has_tokenizer else None, max_model_len, num_blocks)


def with_device(config: EngineConfig) -> EngineConfig:
    """The configuration with `auto` decided. Where there is no sign of a GPU, torch is not even imported for it."""
    if config.device != "auto":
        return config
    if not any(map(os.path.exists, GPU_SIGNS)):
        return replace(config, device="cpu")
    from quiesce.engine.device.choice import torch_sees_gpu

    return replace(config, device="cuda" if torch_sees_gpu() else "cpu")


def make_device(config: EngineConfig, model: Model) -> Device:
    """The device the configuration names. Only here is the data plane, and with it torch, imported.

    Without `num_threads` a small model computes on one thread: on a busy machine the barriers between threads cost twentyfold.

    Raises:
        InvalidRequest: the device cannot be; says what is missing.
    """
    config = with_device(config)
    num_weights = sum(math.prod(shape) for shape in expected_tensors(model.info).values())
    if config.num_threads is None and num_weights < SMALL_MODEL_WEIGHTS:
        config = replace(config, num_threads=1)
    from quiesce.engine.device.choice import chosen_device

    return chosen_device(config, model.info, model.num_blocks)
