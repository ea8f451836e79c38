"""Takes the results of a landed step into the batch arrays. Array code: nothing here is done once per token but for requests that end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.answers import Tokens
from quiesce.engine.batch_state import BatchState
from quiesce.engine.cohort import ONE, Cohort
from quiesce.engine.measures import Measures
from quiesce.engine.messages import StepOutput, TokenLogprobs
from quiesce.engine.prefix_cache import PrefixCache
from quiesce.engine.request import Request
from quiesce.engine.scheduler import StepPlan
from quiesce.spec.vocabulary import FinishReason


@dataclass(slots=True)
class Committed:
    """What a step brought."""

    rows: NDArray[np.int32]
    """[n] rows that get a token."""
    token_ids: NDArray[np.int64]
    """[n]"""
    logprobs: Mapping[int, TokenLogprobs]
    """Place among the n -> logprobs."""
    ended: tuple[Request, ...]
    """Requests that sampled their last token; their finish reason is set."""
    first: tuple[Request, ...]
    """Requests for which this is the first token."""
    complete: bool
    """Every row of the step got its token: nobody is to be blamed."""
    owed: bool = False
    """They are written later (`BatchState.owe`)."""


def commit_step(
    batch: BatchState, plan: StepPlan, keys: NDArray[np.int64], output: StepOutput, now_s: float, unchanged: bool = False
) -> Committed:
    """Writes sampled tokens of requests that are not answered yet, and finds those that ended.

    A row counts only if it still belongs to the request the step was launched for (`keys`) and that request's terminal is not out:
    the token of an answered request is dropped. `unchanged` says that neither can have changed since the launch. The tokens of a cohort
    whose every row got one and ends nowhere are owed (`BatchState.owe`): nobody needs them before the next launch.
    """
    if plan.cohort is not None:
        if unchanged and _commit_cohort(batch, plan, plan.cohort, output):
            return Committed(plan.rows, output.token_ids, {}, (), (), True, owed=True)
        plan.cohort.give_up(batch)
    rows, token_ids = plan.rows, output.token_ids
    complete = plan.steady and unchanged and bool((token_ids >= 0).all())
    if complete:
        batch.num_pending[rows] -= 1
    else:
        sampled = plan.samples & (batch.key[rows] == keys)
        good = sampled & batch.live[rows] & (token_ids >= 0)
        batch.num_pending[rows[sampled]] -= 1
        rows, token_ids = rows[good], token_ids[good]
    places = batch.num_tokens[rows]
    batch.token_ids[rows, places] = token_ids
    num_tokens = places + 1
    batch.num_tokens[rows] = num_tokens
    first = _first(batch, rows[places == batch.num_prompt_tokens[rows]])
    for request in first:
        request.first_token_s = now_s
    logprobs: dict[int, TokenLogprobs] = {}
    if output.logprobs:
        order = np.arange(len(rows)) if complete else np.cumsum(good) - 1
        logprobs = {int(order[index]): found for index, found in output.logprobs if complete or good[index]}
    stopped = (token_ids[:, None] == batch.stop_ids[rows]).any(axis=1)
    ended = []
    for index in np.flatnonzero(stopped | batch.matched[rows] | (num_tokens >= batch.limit[rows])):
        request = batch.requests[rows[index]]
        if request is not None and _ends(batch, request, int(token_ids[index]), bool(stopped[index])):
            ended.append(request)
    return Committed(rows, token_ids, logprobs, tuple(ended), first, complete)


def tell_tokens(
    batch: BatchState,
    plan: StepPlan,
    committed: Committed,
    version: int | str,
    now_s: float,
    measures: Measures,
    answer: Callable[[Tokens], None],
) -> None:
    """Counts what a step brought under this version of the weights, and queues it for the streams."""
    measures.landed(batch, plan, committed, now_s)
    rows, cohort = committed.rows, plan.cohort
    if cohort is not None and rows is cohort.rows:
        streams, children = cohort.streams, cohort.children
    elif len(rows):
        streams, children = batch.stream[rows], batch.child[rows]
    else:
        return
    answer(Tokens(streams, children, committed.token_ids, version, committed.logprobs))


def _first(batch: BatchState, rows: NDArray[np.int32]) -> tuple[Request, ...]:
    return tuple(request for row in rows.tolist() if (request := batch.requests[row]) is not None)


def _commit_cohort(batch: BatchState, plan: StepPlan, cohort: Cohort, output: StepOutput) -> bool:
    """Owes every row its token; False, and nothing is changed, where one may end or has none."""
    if cohort.version != batch.version or plan.turn + 1 >= cohort.horizon or output.faults or cohort.ends_any(output.token_ids):
        return False

    def write() -> None:
        places = plan.starts + ONE
        batch.token_ids[cohort.places, places] = output.token_ids
        batch.num_tokens[cohort.places] = places + ONE
        cohort.landed(batch)

    batch.owe(write)
    return True


def _ends(batch: BatchState, request: Request, token_id: int, stopped: bool) -> bool:
    """Whether this token is the request's last; sets why. A stop token comes before a stop string, and both before the length."""
    if stopped:
        request.finish_reason = FinishReason.stop
        request.stop_reason = token_id if token_id in request.params.stop_token_ids else None
        return True
    num_tokens = int(batch.num_tokens[request.row])
    if request.matcher is not None and request.decoder is not None:
        piece = request.decoder.feed([token_id])
        if num_tokens - request.num_prompt_tokens <= request.params.min_tokens:
            request.matcher.skip(piece)
        elif (match := request.matcher.feed(piece)) is not None:
            request.finish_reason, request.stop_reason, request.text_end = FinishReason.stop, match.stop, match.text_end
            return True
    if num_tokens >= batch.limit[request.row]:
        request.finish_reason = FinishReason.length
        return True
    return False


def cache_full_blocks(
    batch: BatchState, cache: PrefixCache, plan: StepPlan, keys: NDArray[np.int64], version: int | str
) -> None:
    """Makes the blocks that this step filled findable. Their tokens are all known: steps land in order."""
    if not cache.enabled:
        return
    cohort = plan.cohort
    if cohort is not None and cohort.version == batch.version and not len(cohort.crossing(plan.turn + 1, batch.block_size)):
        return
    rows = plan.rows
    full = (plan.starts + plan.counts) // batch.block_size
    filled = full > batch.num_hashed[rows]
    if not filled.any():
        return
    for index in np.flatnonzero(filled & (batch.key[rows] == keys) & batch.live[rows]):
        row = rows[index]
        request = batch.requests[row]
        if request is None or request.stale:
            continue
        for number in range(len(request.hashes), int(full[index])):
            parent = request.hashes[-1] if request.hashes else cache.root(version)
            start = number * batch.block_size
            known_as = cache.extend(parent, batch.token_ids[row, start : start + batch.block_size])
            cache.insert(int(batch.block_tables[row, number]), known_as)
            request.hashes.append(known_as)
        batch.num_hashed[row] = len(request.hashes)
