"""From logits to tokens: adjustments, sampling, log probabilities. A request whose own row is wrong is a fault, not an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quiesce.engine.messages import Adjustment, StepInput, TokenLogprobs
from quiesce.kernels import sampling
from quiesce.kernels.logprobs import top_logprobs
from quiesce.kernels.penalties import add_bias, ban, penalise

NOT_FINITE = "the logits are not finite"
NO_TOKEN_LEFT = "its bias and banned tokens leave none to sample"
NOT_IN_VOCABULARY = "a token id of its adjustments is outside the vocabulary"
PROMPT_ROWS = 32
"""Prompt tokens reported in one pass."""

Ints = NDArray[np.int64]
Faults = dict[int, str]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt token to report: it stands at `position`, and the step computes the position before, from which it is judged."""

    index: int
    position: int
    token_id: int
    count: int
    row: int
    """Which token of the step stands before it."""


def prompt_rows(step: StepInput) -> list[PromptRow]:
    """The prompt tokens whose log probabilities the step reports.

    A token is reported by the step that computes the position before it, wherever the prompt is cut into chunks: each is reported
    once, and needs nothing but `history`.
    """
    wanted: list[PromptRow] = []
    for adjustment in step.adjustments:
        count, history = adjustment.num_prompt_logprobs, adjustment.history
        if count is None:
            continue
        if history is None or len(history) < adjustment.num_prompt_tokens:
            raise ValueError(
                f"step {step.step}: prompt logprobs of request {adjustment.index} are asked for without its prompt"
            )
        start, chunk = int(step.starts[adjustment.index]), int(step.counts[adjustment.index])
        first = int(step.counts[: adjustment.index].sum()) - start
        for before in range(start, min(start + chunk, adjustment.num_prompt_tokens - 1)):
            position = before + 1
            wanted.append(PromptRow(adjustment.index, position, int(history[position]), count, first + before))
    return wanted


def token_logprobs(logits: Tensor, token: int, count: int) -> TokenLogprobs:
    """Of [vocab] logits as the model gave them."""
    ids, values, ranks = top_logprobs(logits, token, count)
    return TokenLogprobs(tuple(ids.tolist()), tuple(values.tolist()), tuple(ranks.tolist()))


def prompt_reports(
    wanted: Sequence[PromptRow], logits_of: Callable[[slice], Tensor], faults: Faults
) -> tuple[tuple[int, int, TokenLogprobs], ...]:
    """The log probabilities of prompt tokens, in passes of few rows: a whole chunk's logits could take more memory than the weights.

    Args:
        wanted: the tokens.
        logits_of: [rows, vocab] float32 on the host, of a slice of them, at most `PROMPT_ROWS` long.
        faults: request to reason; what is wrong with a row is added, and nothing is reported of a request that is in it.
    """
    found = []
    for begin in range(0, len(wanted), PROMPT_ROWS):
        part = slice(begin, begin + PROMPT_ROWS)
        logits = logits_of(part)
        finite = finite_rows(logits).tolist()
        for place, asked in enumerate(wanted[part]):
            if asked.index in faults:
                continue
            if not finite[place] or not 0 <= asked.token_id < logits.shape[1]:
                faults[asked.index] = NOT_IN_VOCABULARY if finite[place] else NOT_FINITE
                continue
            report = token_logprobs(logits[place], asked.token_id, asked.count)
            found.append((asked.index, asked.position, report))
    return tuple(report for report in found if report[0] not in faults)


class Sampler:
    """Samples the rows of a step."""

    __slots__ = ("_draw", "vocab_size")

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._draw = sampling.Sampler(vocab_size)

    def sample(
        self, step: StepInput, requests: Ints, logits: Tensor, faults: Faults
    ) -> tuple[Ints, Ints, tuple[tuple[int, TokenLogprobs], ...]]:
        """Samples one token for each request whose row is sound, and adds the others to `faults`.

        Args:
            step: the step.
            requests: [samples] index of the request of each row.
            logits: [samples, vocab] float32, changed in place where a request has adjustments.
            faults: request to reason; rows of these are left out.

        Returns:
            The requests that got a token, their tokens, and the log probabilities asked for.
        """
        finite = finite_rows(logits).numpy()
        if not finite.all():
            faults |= {int(index): NOT_FINITE for index in requests[~finite] if int(index) not in faults}
        reports: dict[int, tuple[int, Tensor]] = {}
        if step.adjustments:
            reports = self.adjust(step, {int(index): row for row, index in enumerate(requests)}, logits, faults)
        if faults:
            sound = ~np.isin(requests, list(faults))
            logits, requests = logits[torch.from_numpy(sound)], requests[sound]
        tokens = self._draw.sample(
            logits,
            step.temperature[requests].tolist(),
            step.top_k[requests].tolist(),
            step.top_p[requests].tolist(),
            step.min_p[requests].tolist(),
            step.noise_keys[requests].tolist(),
            (step.starts + step.counts)[requests].tolist(),
        )
        logprobs = []
        for index, token in zip(requests.tolist(), tokens.tolist(), strict=True) if reports else ():
            if index in reports:
                count, raw = reports[index]
                logprobs.append((index, token_logprobs(raw, token, count)))
        return requests, tokens, tuple(logprobs)

    def adjust(
        self, step: StepInput, row_of: Mapping[int, int], logits: Tensor, faults: Faults
    ) -> dict[int, tuple[int, Tensor]]:
        """Applies the adjustments in place.

        Args:
            step: the step.
            row_of: request to its row of the logits; others are left out.
            logits: [rows, vocab] float32 on the host.
            faults: request to reason; added to, and left out.

        Returns:
            For each request that wants log probabilities, how many, and its raw row.
        """
        reports: dict[int, tuple[int, Tensor]] = {}
        for adjustment in step.adjustments:
            index = adjustment.index
            if index not in row_of or index in faults:
                continue
            row = logits[row_of[index]]
            changes = _changes_logits(adjustment)
            if adjustment.num_logprobs is not None:
                reports[index] = (adjustment.num_logprobs, row.clone() if changes else row)
            if changes:
                fault = self._change(adjustment, row)
                if fault is not None:
                    faults[index] = fault
        return reports

    def _change(self, adjustment: Adjustment, row: Tensor) -> str | None:
        """Changes one row; what was wrong with it."""
        named = (adjustment.history, adjustment.bias_ids, adjustment.banned_ids)
        if any(ids is not None and len(ids) and (ids.min() < 0 or ids.max() >= self.vocab_size) for ids in named):
            return NOT_IN_VOCABULARY
        if adjustment.bias_ids is not None and adjustment.bias is not None:
            add_bias(row, torch.from_numpy(adjustment.bias_ids), torch.from_numpy(adjustment.bias))
        if adjustment.history is not None:
            penalise(
                row,
                adjustment.history,
                adjustment.num_prompt_tokens,
                adjustment.repetition_penalty,
                adjustment.presence_penalty,
                adjustment.frequency_penalty,
            )
        if adjustment.banned_ids is not None:
            ban(row, torch.from_numpy(adjustment.banned_ids))
        return None if row.amax().isfinite() else NO_TOKEN_LEFT


def finite_rows(logits: Tensor) -> Tensor:
    """[rows] bool. A sum meets every NaN and infinity and is ten times faster than isfinite()."""
    return logits.sum(-1).isfinite()


def _changes_logits(adjustment: Adjustment) -> bool:
    penalties = (adjustment.repetition_penalty, adjustment.presence_penalty, adjustment.frequency_penalty)
    return adjustment.bias_ids is not None or adjustment.banned_ids is not None or penalties != (1.0, 0.0, 0.0)
