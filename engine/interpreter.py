"""Performs effects: one `do_<effect>` for each, and nothing else does. An effect that cannot be performed fails the engine."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quiesce.engine import answers
from quiesce.engine.batch_state import BatchState
from quiesce.engine.block_pool import BlockPool
from quiesce.engine.cohort import ONE, Cohort
from quiesce.engine.messages import FROM_DEVICE, Adjustment, Device, StepInput
from quiesce.engine.noise import noise_key
from quiesce.engine.outputs import RequestMetrics
from quiesce.engine.request import NO_ROW, Request
from quiesce.engine.scheduler import StepPlan, blocks_to_begin
from quiesce.spec.vocabulary import FinishReason, MemoryState, Tag
from quiesce.statemachine.effects import (
    Accept,
    AllocateBlocks,
    Answer,
    DropPrefixIndex,
    DropStep,
    Effect,
    FreeBlocks,
    LaunchStep,
    LoadWeights,
    Map,
    NewVersion,
    ReleaseEverything,
    RetireStep,
    Terminal,
    Unmap,
    word_of,
)
from quiesce.statemachine.records import World

if TYPE_CHECKING:
    from quiesce.engine.core import Core


class Interpreter:
    """The acting half of a pass. It reads records and changes pool, batch, device and answers; it never fires."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.world: World = core.world
        self.pool: BlockPool = core.pool
        self.batch: BatchState = core.batch
        self.device: Device = core.device
        self._perform = {kind: getattr(self, f"do_{word_of(kind)}") for kind in PERFORMED}

    def perform(self, effects: deque[Effect]) -> None:
        """Performs effects in the order they were minted, and takes each off the queue.

        Raises:
            KeyError: an effect that this engine cannot perform.
        """
        while effects:
            effect = effects.popleft()
            self._perform[type(effect)](effect)

    def do_accept(self, effect: Accept) -> None:
        request = self._request(effect)
        self.core.num_accepted += 1
        self.core.by_stream.setdefault(request.stream, []).append(request)
        if request.child == 0:
            self.core.answer(answers.Ack(request.stream, request.seed))

    def do_allocate_blocks(self, effect: AllocateBlocks) -> None:
        """Blocks for all known tokens and the next one, those of a known prefix shared, and a batch row."""
        request = self._request(effect)
        cached: list[int] = []
        if request.params.prompt_logprobs is None:  # the cache holds no logits
            cached, request.hashes = self.pool.prefix_cache.match(request.token_ids, self.world.weights.version)
        self.pool.share(cached)
        num_cached = len(cached) * self.batch.block_size
        looked = self.core.config.enable_prefix_caching and request.params.prompt_logprobs is None
        self.core.measures.began(request, num_cached, looked, self.core.clock())
        wanted = blocks_to_begin(len(request.token_ids), num_cached, self.batch.block_size)
        request.blocks = cached + self.pool.allocate(wanted)
        if request.first_token_s is None:
            request.num_cached_tokens = min(num_cached, request.num_prompt_tokens)
        self.batch.occupy(
            request, num_cached, noise_key(request.seed, request.child), self.core.stop_ids(request), self.core.limit(request)
        )

    def do_free_blocks(self, effect: FreeBlocks) -> None:
        request = self._request(effect)
        freed = self.pool.free(effect, request.blocks)
        request.blocks = []
        request.hashes = []
        self.batch.release(request)
        self.core.forget_ended(request)
        mapped = (
            self.world.memory[Tag.kv_cache].state == MemoryState.resident
        )  # what is away, or not zeroed yet, is nobody's already
        if freed and mapped and self.core.config.poison_freed_blocks:
            self.device.poison(freed)

    def do_terminal(self, effect: Terminal) -> None:
        request = self._request(effect)
        self.batch.answered(request)
        reason = request.finish_reason_for(effect.detail)
        total = len(request.token_ids) if request.row == NO_ROW else int(self.batch.num_tokens[request.row])
        metrics = RequestMetrics(request.arrival_s, request.first_token_s, self.core.clock())
        self.core.finished[reason] += 1
        if reason is FinishReason.abort and not request.client_aborts:
            self.core.operations.request_aborted(request.client_id)
        siblings = self.core.by_stream.get(request.stream, [])
        siblings.remove(request)
        if not siblings:
            self.core.by_stream.pop(request.stream, None)
        num_generated = total - request.num_prompt_tokens
        last_s = request.last_token_s if request.row == NO_ROW else float(self.batch.last_token_s[request.row])
        self.core.measures.ended(request, num_generated, last_s, self.core.clock())
        self.core.answer(
            answers.Terminal(
                request.stream,
                request.child,
                str(reason),
                request.stop_reason,
                num_generated,
                request.num_cached_tokens,
                metrics,
                request.error,
                request.text_end,
            )
        )
        self.core.forget_ended(request)

    def do_launch_step(self, effect: LaunchStep) -> None:
        """Builds the step's arrays and gives them to the device. From here on its positions count as scheduled."""
        plan = self.core.pipeline.launch_plan(effect.subject)
        cohort = plan.cohort
        if cohort is None:
            step = self._step_input(effect.subject, plan)
        else:
            chained = self.core.pipeline.follows_its_own(effect.subject, cohort)
            step = self._cohort_input(effect.subject, plan, cohort, chained)
        self.device.launch(effect, step)
        if cohort is None:
            self.batch.num_scheduled[plan.rows] += plan.counts
            self.batch.num_pending[plan.rows] += plan.samples
        else:
            cohort.launched(self.batch, plan.starts + ONE, chained)

    def do_retire_step(self, effect: RetireStep) -> None:
        self.core.pipeline.forget_plan(effect.subject)

    def do_drop_step(self, effect: DropStep) -> None:
        self.core.pipeline.forget_plan(effect.subject)

    def do_drop_prefix_index(self, effect: DropPrefixIndex) -> None:
        self.pool.drop_cached()

    def do_answer(self, effect: Answer) -> None:
        self.core.operations.answer(effect.subject, effect.detail)

    def do_unmap(self, effect: Unmap) -> None:
        tag = _tag(effect)
        blocks = self.pool.blocks_in_use() if tag == Tag.kv_cache else []
        self.device.unmap(effect, tag, self.world.memory[tag].policy, blocks)

    def do_map(self, effect: Map) -> None:
        tag = _tag(effect)
        self.device.map(effect, tag, self.world.memory[tag].policy)

    def do_load_weights(self, effect: LoadWeights) -> None:
        self.device.load_weights(effect, self.core.operations.update.pairs)

    def do_new_version(self, effect: NewVersion) -> None:
        self.core.operations.update.new_version()

    def do_release_everything(self, effect: ReleaseEverything) -> None:
        self.core.closes_device = True  # once the pass has handed its answers over: closing waits for a running step

    def _request(self, effect: Effect) -> Request:
        return self.core.requests[effect.subject]

    def _adjustments(self, plan: StepPlan) -> tuple[Adjustment, ...]:
        found = []
        for index in np.flatnonzero(self.batch.adjusted[plan.rows]):
            request = self.batch.requests[plan.rows[index]]
            if request is not None:
                num_generated = int(plan.starts[index] + plan.counts[index]) - request.num_prompt_tokens
                found.append(_adjustment(int(index), request, self.batch, num_generated, bool(plan.samples[index])))
        return tuple(adjustment for adjustment in found if adjustment is not None)

    def _cohort_input(self, number: int, plan: StepPlan, cohort: Cohort, chained: bool) -> StepInput:
        """As `_step_input`, of arrays that are there already. `chained`: every token comes from the step in flight."""
        temperature, top_k, top_p, min_p, noise_keys = self.batch.sampling(cohort.rows)
        return StepInput(
            number, self.core.epoch, self.core.version_number, cohort.rows, plan.starts, plan.counts,
            cohort.tokens if chained else _input_ids(self.batch, plan), cohort.tables, plan.samples,
            temperature, top_k, top_p, min_p, noise_keys,
        )  # fmt: skip

    def _step_input(self, number: int, plan: StepPlan) -> StepInput:
        batch, rows = self.batch, plan.rows
        token_ids = _input_ids(batch, plan)
        temperature, top_k, top_p, min_p, noise_keys = batch.sampling(rows)
        width = int(batch.num_blocks[rows].max())
        return StepInput(
            step=number,
            epoch=self.core.epoch,
            version=self.core.version_number,
            rows=rows,
            starts=plan.starts,
            counts=plan.counts,
            token_ids=token_ids,
            block_tables=batch.block_tables[rows, :width],
            samples=plan.samples,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            noise_keys=noise_keys,
            adjustments=self._adjustments(plan) if batch.adjusted[rows].any() else (),
        )


def _tag(effect: Effect) -> Tag:
    """The tag whose memory record minted the effect."""
    return list(Tag)[effect.subject]


def _input_ids(batch: BatchState, plan: StepPlan) -> NDArray[np.int64]:
    """[T] token ids of the step; `FROM_DEVICE` for a token that is still on its way."""
    batch.pay()
    rows, starts, counts = plan.rows, plan.starts, plan.counts
    ends = np.cumsum(counts)
    if len(rows) == ends[-1]:  # every chunk is one token
        known = batch.token_ids[rows, starts]
        return np.where(starts < batch.num_tokens[rows], known, FROM_DEVICE).astype(np.int64)
    token_ids = np.empty(int(ends[-1]), np.int64)
    for index, (row, start, count, end) in enumerate(
        zip(rows.tolist(), starts.tolist(), counts.tolist(), ends.tolist(), strict=True)
    ):
        known_to = int(batch.num_tokens[row])
        token_ids[end - count : end] = batch.token_ids[row, start : start + count] if start < known_to else FROM_DEVICE
        if start < known_to < start + count:
            raise RuntimeError(f"row {rows[index]}: a chunk runs beyond what is known")
    return token_ids


def _adjustment(index: int, request: Request, batch: BatchState, num_generated: int, samples: bool) -> Adjustment | None:
    """What this step must know of the request beyond the arrays; None if nothing. `num_generated`: output tokens before the step's."""
    params, row = request.params, request.row
    early = samples and num_generated < params.min_tokens
    in_prompt = params.prompt_logprobs is not None and batch.num_scheduled[row] < request.num_prompt_tokens
    if not samples and not in_prompt:
        return None
    bias = params.logit_bias or {}
    return Adjustment(
        index=index,
        history=batch.tokens(row).astype(np.int64) if in_prompt or params.penalizes else None,
        num_prompt_tokens=request.num_prompt_tokens,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias_ids=np.array(list(bias), np.int64) if bias else None,
        bias=np.array(list(bias.values()), np.float32) if bias else None,
        banned_ids=batch.stop_ids[row][batch.stop_ids[row] >= 0] if early else None,
        num_logprobs=params.logprobs if samples else None,
        num_prompt_logprobs=params.prompt_logprobs if in_prompt else None,
    )


PERFORMED: tuple[type[Effect], ...] = (
    Accept,
    AllocateBlocks,
    FreeBlocks,
    Terminal,
    LaunchStep,
    RetireStep,
    DropStep,
    DropPrefixIndex,
    Answer,
    Unmap,
    Map,
    LoadWeights,
    NewVersion,
    ReleaseEverything,
)
"""The effects that a core performs today; the front end performs those of streams."""
