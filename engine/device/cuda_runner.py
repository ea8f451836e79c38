"""One step on the device: arrays over, passes launched, results on their way back. Nothing here waits for a step to end."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quiesce.engine.checkpoint import ModelInfo, compute_dtype
from quiesce.engine.config import EngineConfig
from quiesce.engine.device.batch import EXACT_ROWS
from quiesce.engine.device.cuda_flight import CONTEXTS, Extra, Flight, Staging, graph_sizes
from quiesce.engine.device.cuda_memory import ALIGNMENT, DriverError, VirtualArena
from quiesce.engine.device.cuda_model import CudaModel
from quiesce.engine.device.cuda_residence import PinnedMemory, VirtualResidence
from quiesce.engine.device.cuda_step import Pass, Shape, StepTokens, input_layout, pad, result_layout, rounded
from quiesce.engine.device.platform import Platform
from quiesce.engine.device.runner import LOADERS, NO_TOKEN, Landed
from quiesce.engine.device.sampler import (
    NOT_FINITE,
    PromptRow,
    Sampler,
    finite_rows,
    prompt_reports,
    prompt_rows,
    token_logprobs,
)
from quiesce.engine.device.weights import Weights
from quiesce.engine.messages import StepInput
from quiesce.spec.vocabulary import Tag

logger = logging.getLogger("quiesce.device")
DEPTH = 2
"""Steps launched and not landed, at most: so many sets of pinned buffers."""


class CudaRunner:
    """The model over arenas of device memory. Calls come from one thread, inside `Platform.entered`.

    Raises:
        InvalidRequest: the checkpoint cannot be served.
        DriverError: there is not enough memory.
    """

    def __init__(
        self,
        config: EngineConfig,
        info: ModelInfo,
        num_blocks: int,
        platform: Platform,
        go_on: Callable[[], None],
        progress: bool = True,
    ) -> None:
        dtype = getattr(torch, compute_dtype(config))
        self._config, self.num_blocks, self._platform = config, num_blocks, platform
        self._residences: dict[Tag, VirtualResidence] = {}
        self._arenas: list[VirtualArena] = []
        self._staging: list[Staging] = []
        self._graphs: dict[Shape, Callable[[], None]] = {}
        self._reserved = num_blocks * config.block_size
        """The first slot of the reserved block."""
        self.counts: Counter[str] = Counter()
        """Passes by how they were done: `graph`, `eager`, and `eager for want of a graph`; and graphs `captured`."""
        try:
            self._weights = Weights(info, dtype, functools.partial(self._make_arena, Tag.weights), ALIGNMENT)
            self._arenas[0].bytes.zero_()
            LOADERS[config.load_format](self._weights, config.seed, progress)
            kv_shape = (info.num_layers, 2, num_blocks + 1, info.num_kv_heads, config.block_size, info.head_dim)
            kv_arena = self._make_arena(Tag.kv_cache, torch.Size(kv_shape).numel() * dtype.itemsize)
            kv_arena.bytes.zero_()
            self.kv = kv_arena.view(0, kv_shape, dtype)
            self.caches: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.kv]
            self._make_buffers(info)
            if config.load_format != "empty":
                self._residences[Tag.weights].keep_copy(go_on)
            self._warm_up(go_on)
            self._capture(go_on)
        except BaseException:
            self.close()
            raise

    @property
    def weights(self) -> Weights:
        return self._weights

    @property
    def kv_arena(self) -> VirtualArena:
        return self._arenas[1]

    def residences(self) -> Mapping[Tag, VirtualResidence]:
        return self._residences

    def _make_arena(self, tag: Tag, num_bytes: int) -> VirtualArena:
        platform = self._platform
        try:
            arena = VirtualArena(num_bytes, platform.driver, platform.device)
        except DriverError as error:
            free = platform.driver.free_bytes()
            raise DriverError(f"{error}: {num_bytes} bytes of {tag} do not fit the {free} that the device has free") from error
        self._arenas.append(arena)
        self._residences[tag] = VirtualResidence(
            arena, platform.driver, platform.settle, platform.alone, keeps_copy=tag is Tag.weights
        )
        return arena

    def _make_buffers(self, info: ModelInfo) -> None:
        """Everything that graphs read and write, outside the arenas: it stays where it is while they are away."""
        config, device = self._config, self._platform.device
        longest = info.max_position_embeddings if config.max_model_len is None else config.max_model_len
        contexts = [longest] if config.batch_invariant else [*(c for c in CONTEXTS if c < longest), longest]
        self._widths = [rounded(-(-context // config.block_size)) for context in contexts]
        max_width = self._widths[-1]
        self._sizes = [max(config.max_num_seqs, EXACT_ROWS)] if config.batch_invariant else graph_sizes(config)
        rows, tokens = self._sizes[-1], max(config.max_num_batched_tokens, self._sizes[-1])
        self.model = CudaModel(
            info,
            self._weights,
            self._platform.operators,
            num_positions=longest,
            max_tokens=tokens,
            max_samples=rows,
            max_rows=rows,
            max_width=max_width,
            block_size=config.block_size,
        )
        self._sampler = Sampler(info.vocab_size)
        self._next_token = torch.full((config.max_num_seqs,), -1, dtype=torch.int64, device=device)
        largest = [Shape(rows, rows, 0, rows, max_width)]
        if not config.batch_invariant:
            largest.append(Shape(tokens, rows, rows, rows, max_width))
        self._input_bytes = max(input_layout(shape).num_bytes for shape in largest)
        self._result_bytes = max(result_layout(shape).num_bytes for shape in largest)
        self._inputs = torch.zeros(self._input_bytes, dtype=torch.uint8, device=device)
        self._results = torch.zeros(self._result_bytes, dtype=torch.uint8, device=device)
        passes = -(-tokens // rows) if config.batch_invariant else 1  # of a step
        driver = self._platform.driver
        for _ in range(DEPTH):
            inputs = PinnedMemory(passes * self._input_bytes, driver)
            self._staging.append(Staging(inputs, PinnedMemory(passes * self._result_bytes, driver)))
        self._turn = 0

    def _warm_up(self, go_on: Callable[[], None]) -> None:
        """Computes a mixed pass of nothing: what is compiled on first use is compiled now, not in a request's first step."""
        rows, width = self._sizes[-1], self._widths[0]
        chunks = 0 if self._config.batch_invariant else min(2, self._config.max_num_seqs)
        for shape in (Shape(rows, rows, 0, rows, width), Shape(chunks, 0, chunks, chunks, width))[: 2 if chunks else 1]:
            arrays = input_layout(shape).arrays(self._staging[0].inputs.bytes)
            pad(shape, arrays, self._reserved)
            arrays["tables"][...] = self.num_blocks
            if shape.chunks:
                arrays["offsets"][:] = np.arange(chunks + 1)
            for work in (
                functools.partial(self._whole, shape, False),
                functools.partial(self._whole, shape, True),
                functools.partial(self._whole_adjusted, shape),
            ):
                go_on()
                self._send(shape, self._staging[0], 0)
                self._platform.run(work)
            self._platform.synchronize()

    def _capture(self, go_on: Callable[[], None]) -> None:
        """Records a graph for each bucket of rows and contexts, the largest first, so that they share its memory."""
        if self._config.enforce_eager:
            return
        for rows in sorted(self._sizes, reverse=True):
            for width in sorted(self._widths, reverse=True):
                go_on()
                shape = Shape(rows, rows, 0, rows, width)
                pad(shape, input_layout(shape).arrays(self._staging[0].inputs.bytes), self._reserved)
                self._send(shape, self._staging[0], 0)
                try:
                    self._graphs[shape] = self._platform.captured(functools.partial(self._whole, shape))
                    self.counts["captured"] += 1
                except RuntimeError as error:
                    logger.warning("no graph of %d rows: it cannot be captured: %s", rows, error)

    # ---- a step -------------------------------------------------------------------------------------------------------------

    def launch(self, step: StepInput) -> Flight:
        """Sets a step going.

        Raises:
            ValueError: the step is none.
        """
        tokens = StepTokens(step, self.num_blocks, self._config.block_size)
        wanted = prompt_rows(step) if step.adjustments else []
        staging = self._staging[self._turn]
        self._turn = (self._turn + 1) % DEPTH
        extra = Extra()
        passes = [self._run(step, tokens, staging, number, wanted, extra) for number in range(self._num_passes(tokens))]
        event = self._platform.event()
        event.record()
        return Flight(event, functools.partial(self._read, step, staging, passes, extra))

    def run(self, step: StepInput) -> Landed:
        """Computes a step and waits for it."""
        flight = self.launch(step)
        flight.event.synchronize()
        return flight.read()

    def _num_passes(self, tokens: StepTokens) -> int:
        return -(-len(tokens.owners) // self._sizes[-1]) if self._config.batch_invariant else 1

    def _run(
        self, step: StepInput, tokens: StepTokens, staging: Staging, number: int, wanted: list[PromptRow], extra: Extra
    ) -> Pass:
        """One pass: its arrays filled and sent, its work launched, its results on their way."""
        shape, by_rows = self._shape(tokens)
        arrays = self._arrays(shape, staging, number, kept=by_rows)
        if by_rows:
            begin = number * shape.tokens
            made = tokens.rows(shape, begin, min(begin + shape.tokens, len(tokens.owners)), arrays)
        else:
            made = tokens.mixed(shape, arrays)
        self._send(shape, staging, number)
        graph = self._graphs.get(shape)
        if step.adjustments:
            self.counts["eager"] += 1
            self._platform.synchronize()  # it would wait for the device in any case
            self._adjusted(step, made, wanted, extra)
        elif graph is not None:
            self.counts["graph"] += 1
            self._platform.run(graph)
        else:
            self._note_eager(by_rows or not shape.chunks, shape)
            filtered = bool((step.top_k > 0).any() or (step.top_p < 1.0).any())
            self._platform.run(functools.partial(self._whole, shape, filtered))
        results = result_layout(shape)
        begin = number * self._result_bytes
        pinned = staging.results.bytes[begin : begin + results.num_bytes]
        self._platform.copy(pinned, self._results[: results.num_bytes])
        return made

    def _shape(self, tokens: StepTokens) -> tuple[Shape, bool]:
        """The shape of the pass, and whether it is one of rows."""
        width = next(width for width in self._widths if width >= tokens.width)
        if self._config.batch_invariant:
            rows = self._sizes[-1]
            return Shape(rows, rows, 0, rows, width), True
        count = len(tokens.owners)
        if tokens.all_single and count <= self._sizes[-1]:
            rows = next(size for size in self._sizes if size >= count)
            return Shape(rows, rows, 0, rows, width), True
        return tokens.mixed_shape(), False

    def _arrays(self, shape: Shape, staging: Staging, number: int, kept: bool) -> dict[str, NDArray[Any]]:
        found = staging.arrays.get((shape, number))
        if found is None:
            begin = number * self._input_bytes
            found = input_layout(shape).arrays(staging.inputs.bytes[begin : begin + self._input_bytes])
            if kept:
                staging.arrays[shape, number] = found
        return found

    def _send(self, shape: Shape, staging: Staging, number: int) -> None:
        """The one copy to the device."""
        begin, size = number * self._input_bytes, input_layout(shape).num_bytes
        self._platform.copy(self._inputs[:size], staging.inputs.bytes[begin : begin + size])

    def _note_eager(self, is_decode: bool, shape: Shape) -> None:
        """Prompts are computed without a graph; of decode steps that is said once, as it is slow."""
        kind = "eager for want of a graph" if is_decode and not self._config.enforce_eager else "eager"
        if kind != "eager" and not self.counts[kind]:
            logger.warning("no graph for %d rows: they are computed operator by operator, which is slow", shape.tokens)
        self.counts[kind] += 1

    def _views(self, shape: Shape) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return input_layout(shape).tensors(self._inputs), result_layout(shape).tensors(self._results)

    def _whole(self, shape: Shape, filtered: bool = True) -> None:
        """A pass from ids to tokens; this is what graphs hold."""
        inputs, results = self._views(shape)
        hidden = self.model.forward(shape, inputs, results["lost"], self._next_token, self.caches)
        if shape.samples:
            logits = self.model.last_logits(shape, inputs, hidden)
            self.model.choose(logits, inputs, results, self._next_token, filtered=filtered)

    def _whole_adjusted(self, shape: Shape) -> None:
        """What is compiled for `_adjusted`: a choice from float32 logits, with rows that have no token."""
        inputs, results = self._views(shape)
        hidden = self.model.forward(shape, inputs, results["lost"], self._next_token, self.caches)
        logits = self.model.last_logits(shape, inputs, hidden).float()
        self.model.choose(logits, inputs, results, self._next_token, banned=True)

    def _adjusted(self, step: StepInput, made: Pass, wanted: list[PromptRow], extra: Extra) -> None:
        """A pass whose logits are looked at and changed on the host between computing and choosing. It waits for the device."""
        inputs, results = self._views(made.shape)
        hidden = self.model.forward(made.shape, inputs, results["lost"], self._next_token, self.caches)
        here = [row for row in wanted if made.rows_of[row.row] >= 0]
        rows = torch.from_numpy(made.rows_of[[row.row for row in here]]).to(hidden.device)
        extra.prompt_logprobs += prompt_reports(
            here, lambda part: self.model.logits(hidden[rows[part]]).float().cpu(), extra.faults
        )
        if not made.shape.samples:
            return
        logits = self.model.last_logits(made.shape, inputs, hidden).float()
        places = torch.from_numpy(made.places).to(logits.device)
        finite = finite_rows(logits[places]).cpu().numpy()
        for index in made.requests[~finite].tolist():
            extra.faults.setdefault(index, NOT_FINITE)
        asking = {adjustment.index for adjustment in step.adjustments}
        chosen = [row for row, index in enumerate(made.requests.tolist()) if index in asking]
        at = places[chosen]
        host = logits[at].cpu()
        row_of = {int(made.requests[row]): place for place, row in enumerate(chosen)}
        extra.reports |= self._sampler.adjust(step, row_of, host, extra.faults)
        logits[at] = host.to(logits.device)
        faulty = [
            place for place, index in zip(made.places.tolist(), made.requests.tolist(), strict=True) if index in extra.faults
        ]
        logits[faulty] = float("nan")  # such a row has no token, for the step that follows either
        self.model.choose(logits, inputs, results, self._next_token, banned=True)

    def _read(self, step: StepInput, staging: Staging, passes: list[Pass], extra: Extra) -> Landed:
        tokens: NDArray[np.int64] = np.full(len(step.rows), -1, np.int64)
        faults = extra.faults
        for number, made in enumerate(passes):
            begin = number * self._result_bytes
            found = result_layout(made.shape).arrays(staging.results.bytes[begin : begin + self._result_bytes])
            tokens[made.requests] = found["sampled"][made.places]
            wrong = found["faults"][made.places] != 0
            if wrong.any():
                for index in made.requests[wrong].tolist():
                    faults.setdefault(index, NOT_FINITE)
            lost = found["lost"][: len(made.owners)] != 0
            if lost.any():
                faults |= dict.fromkeys(made.owners[lost].tolist(), NO_TOKEN)
        tokens[list(faults)] = -1
        logprobs = tuple(
            (index, token_logprobs(raw, int(tokens[index]), count))
            for index, (count, raw) in sorted(extra.reports.items())
            if index not in faults
        )
        prompts = tuple(report for report in extra.prompt_logprobs if report[0] not in faults)
        return Landed(tokens, tuple(sorted(faults.items())), logprobs, prompts)

    # ---- memory -------------------------------------------------------------------------------------------------------------

    def refresh_copy(self, names: Iterable[str]) -> None:
        """Brings the weights' copy in host memory up to date with these tensors of a checkpoint."""
        spans, base = [], self._arenas[0].bytes.data_ptr()
        for name in names:
            view = self._weights.destinations.get(name)
            if view is not None:
                begin = view.data_ptr() - base
                spans.append((begin, begin + view.nbytes))
        self._residences[Tag.weights].refresh(spans)

    def poison(self, blocks: NDArray[np.int64]) -> None:
        """Fills blocks of every layer with NaN."""
        if len(blocks):
            if blocks.min() < 0 or blocks.max() >= self.num_blocks:
                raise ValueError(f"blocks to poison must be in 0..{self.num_blocks - 1}")
            self.kv[:, :, torch.from_numpy(blocks).to(self.kv.device)] = float("nan")

    def close(self) -> None:
        """Gives all memory back, as far as a device lets it go that may be broken. Idempotent."""
        self._attempt(self._platform.synchronize)
        self._graphs.clear()
        self.caches = []
        self.kv = torch.empty(0)
        if hasattr(self, "model"):
            self.model.close()
        for residence in self._residences.values():
            self._attempt(residence.close)
        for staging in self._staging:
            staging.arrays.clear()
            self._attempt(staging.inputs.close)
            self._attempt(staging.results.close)
        if hasattr(self, "_weights"):
            self._attempt(self._weights.close)
        for arena in self._arenas:
            self._attempt(arena.close)
        self._next_token = self._inputs = self._results = torch.empty(0)
        self._attempt(self._platform.settle)

    def _attempt(self, part: Callable[[], None]) -> None:
        try:
            part()
        except RuntimeError as error:
            logger.warning("part of the device's memory is not given back before the process ends: %s", error)
