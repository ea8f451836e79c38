"""One step: inputs to tensors, forward pass, sampling. Everything that a device of any backend does between launch and landing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from quiesce.engine.checkpoint import ModelInfo, compute_dtype
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.batch import EXACT_ROWS, Shape, exact_batches, whole_batch
from quiesce.engine.device.memory import Arena, Residence
from quiesce.engine.device.model import Model
from quiesce.engine.device.sampler import Sampler, prompt_reports, prompt_rows
from quiesce.engine.device.weights import Weights, fill_dummy, load_weights
from quiesce.engine.messages import FROM_DEVICE, StepInput, TokenLogprobs
from quiesce.spec.vocabulary import Tag

NO_TOKEN = "the step before gave this row no token"

LOADERS: Mapping[str, Callable[[Weights, int, bool], None]] = {
    "auto": lambda weights, seed, progress: load_weights(weights, progress),
    "dummy": lambda weights, seed, progress: fill_dummy(weights, seed),
    "empty": lambda weights, seed, progress: None,  # mapped and undefined, until an update brings the weights
}
"""By `EngineConfig.load_format`."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What a step gives, as `messages.StepOutput` has it."""

    token_ids: NDArray[np.int64]
    faults: tuple[tuple[int, str], ...] = ()
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()
    prompt_logprobs: tuple[tuple[int, int, TokenLogprobs], ...] = ()


class Runner:
    """The model, its arenas and the per-row device state.

    Everything is made here and filled by `load`; calls come from one thread, under `torch.inference_mode`.

    Raises:
        InvalidRequest: the checkpoint cannot be served.
    """

    __slots__ = (
        "_config",
        "_next_token",
        "_residences",
        "_sampler",
        "_weights",
        "caches",
        "kv",
        "kv_arena",
        "model",
        "num_blocks",
        "shape",
    )

    def __init__(self, config: EngineConfig, info: ModelInfo, num_blocks: int, progress: bool = True) -> None:
        dtype = getattr(torch, compute_dtype(config))
        self._config, self.num_blocks = config, num_blocks
        self.shape = Shape.of(num_blocks, config.block_size, info.num_heads, info.num_kv_heads, info.head_dim * dtype.itemsize)
        self._residences: dict[Tag, Residence] = {}
        self._weights = Weights(info, dtype, functools.partial(self._make_arena, Tag.weights))
        try:
            LOADERS[config.load_format](self._weights, config.seed, progress)
        except BaseException:
            self._weights.close()
            raise
        # One block more than the pool: the zero block, which pads block tables.
        kv_shape = (info.num_layers, 2, num_blocks + 1, info.num_kv_heads, config.block_size, info.head_dim)
        self.kv_arena = self._make_arena(Tag.kv_cache, torch.Size(kv_shape).numel() * dtype.itemsize)
        self.kv = self.kv_arena.view(0, kv_shape, dtype)
        self.caches: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.kv]
        longest = info.max_position_embeddings if config.max_model_len is None else config.max_model_len
        self.model = Model(info, self._weights, longest, config.batch_invariant)
        self._sampler = Sampler(info.vocab_size)
        self._next_token = torch.full((config.max_num_seqs,), -1, dtype=torch.int64)

    @property
    def weights(self) -> Weights:
        """The weights as checkpoints have them, good until the next step. See `packing`."""
        self.model.weights.unpack()
        return self._weights

    def _make_arena(self, tag: Tag, num_bytes: int) -> Arena:
        arena = Arena(num_bytes)
        self._residences[tag] = Residence(arena)
        return arena

    def residences(self) -> Mapping[Tag, Residence]:
        """The memory under each tag."""
        return self._residences

    def run(self, step: StepInput) -> Landed:
        """Computes one step."""
        ids, lost = self._input_ids(step)
        wanted = prompt_rows(step) if step.adjustments else []
        ends, before = self._hidden(step, ids, [row.row for row in wanted])
        faults = {int(index): NO_TOKEN for index in lost}
        prompt_logprobs = prompt_reports(wanted, lambda part: self._logits(before[part]), faults)
        tokens: NDArray[np.int64] = np.full(len(step.rows), -1, np.int64)
        logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()
        if len(ends):
            requests, sampled, logprobs = self._sampler.sample(step, np.flatnonzero(step.samples), self._logits(ends), faults)
            tokens[requests] = sampled
            asked = step.samples
            self._next_token[torch.from_numpy(step.rows[asked].astype(np.int64))] = torch.from_numpy(tokens[asked])
        return Landed(tokens, tuple(sorted(faults.items())), logprobs, prompt_logprobs)

    def forward(self, step: StepInput) -> Tensor:
        """[samples, vocab] float32 logits of the requests that sample."""
        return self._logits(self._hidden(step, self._input_ids(step)[0], [])[0])

    def _input_ids(self, step: StepInput) -> tuple[Tensor, NDArray[np.int64]]:
        """The step's token ids, and the requests whose token was to come from the device and is none."""
        ids = torch.from_numpy(step.token_ids)
        chained = step.token_ids == FROM_DEVICE
        if not chained.any():
            return ids, np.empty(0, np.int64)
        owners = np.repeat(np.arange(len(step.rows)), step.counts)[chained]
        taken = self._next_token[torch.from_numpy(step.rows[owners].astype(np.int64))]
        lost = owners[taken.numpy() < 0]
        ids = ids.clone()
        ids[torch.from_numpy(chained)] = taken.clamp_(min=0)
        return ids, lost

    def _hidden(self, step: StepInput, ids: Tensor, others: list[int]) -> tuple[Tensor, Tensor]:
        """Computes the step. [samples, hidden] of the tokens that are sampled from, and [others, hidden] of other tokens."""
        also = torch.tensor(others, dtype=torch.int64) if others else None
        if not self._config.batch_invariant:
            batch = whole_batch(step, self.shape)
            hidden = self.model.forward(batch, ids, self.caches)
            return hidden.index_select(0, batch.ends), hidden[:0] if also is None else hidden.index_select(0, also)
        ends, befores = [], []
        for batch in exact_batches(step, self.shape):
            tokens = torch.zeros(EXACT_ROWS, dtype=torch.int64)
            tokens[: batch.num_real] = ids[batch.begin : batch.begin + batch.num_real]
            hidden = self.model.forward(batch, tokens, self.caches)
            ends.append(hidden.index_select(0, batch.ends))
            if also is not None:
                here = also[(also >= batch.begin) & (also < batch.begin + batch.num_real)]
                befores.append(hidden.index_select(0, here - batch.begin))
        return torch.cat(ends), torch.cat(befores) if befores else hidden[:0]

    def _logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] to [rows, vocab], float32."""
        count = hidden.shape[0]
        if not self._config.batch_invariant or not count:
            return self.model.logits(hidden)
        padded = F.pad(hidden, (0, 0, 0, -count % EXACT_ROWS))
        # Each product gets a fresh input: some kernels choose their path by its alignment.
        return torch.cat([self.model.logits(part.clone()) for part in torch.split(padded, EXACT_ROWS)])[:count]

    def poison(self, blocks: NDArray[np.int64]) -> None:
        """Fills blocks of every layer with NaN."""
        if len(blocks):
            if blocks.min() < 0 or blocks.max() >= self.num_blocks:
                raise ValueError(f"blocks to poison must be in 0..{self.num_blocks - 1}")
            self.kv[:, :, torch.from_numpy(blocks)] = float("nan")

    def close(self) -> None:
        """Gives both arenas back. Idempotent."""
        self.caches.clear()
        self.kv = torch.empty(0)
        self.model.weights.close()
        self._weights.close()
        self.kv_arena.close()
