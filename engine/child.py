"""One generated sequence as its client sees it: tokens, text, logprobs and version spans, merged until they are taken."""

from __future__ import annotations

from quiesce.engine.answers import Terminal
from quiesce.engine.messages import TokenLogprobs
from quiesce.engine.outputs import CompletionOutput, Logprob
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.stop_strings import held_back
from quiesce.engine.tokenizer import IncrementalDecoder, Tokenizer


class Child:
    """What has come for one of a request's `n` sequences. Text is decoded when it is taken, in the client's own time."""

    def __init__(self, index: int, params: SamplingParams, tokenizer: Tokenizer | None) -> None:
        self.index, self.params, self.tokenizer = index, params, tokenizer
        self.token_ids: list[int] = []
        self.terminal: Terminal | None = None
        self._decoder = IncrementalDecoder(tokenizer, params.skip_special_tokens) if tokenizer is not None else None
        self._held_back = held_back(params.stop_strings)
        self._spans: list[tuple[int | str, int, int]] = []
        self._logprobs: list[dict[int, Logprob]] = []
        self._cumulative = 0.0
        self._num_taken = 0
        self._text = ""
        self._num_shown = 0
        self._ended = False

    def push(self, token_id: int, version: int | str, logprobs: TokenLogprobs | None) -> None:
        """Merges a token into what is pending."""
        self.token_ids.append(token_id)
        count = len(self.token_ids)
        if self._spans and self._spans[-1][0] == version:
            self._spans[-1] = (version, self._spans[-1][1], count)
        else:
            self._spans.append((version, count - 1, count))
        if logprobs is not None:
            self._logprobs.append(logprobs_of(logprobs, self.tokenizer))
            self._cumulative += logprobs.logprobs[0]

    @property
    def has_news(self) -> bool:
        return len(self.token_ids) > self._num_taken or (self.terminal is not None and not self._ended)

    def take(self) -> CompletionOutput:
        """Everything so far, or, with `output_kind="delta"`, what is new; afterwards nothing is pending."""
        delta = self.params.output_kind == "delta"
        start, shown_from = (self._num_taken, self._num_shown) if delta else (0, 0)
        text = self._decode()
        self._num_taken, self._num_shown = len(self.token_ids), max(self._num_shown, len(text))
        self._ended = self.terminal is not None
        wants_logprobs = self.params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text=text[shown_from:],
            token_ids=tuple(self.token_ids[start:]),
            cumulative_logprob=self._cumulative if wants_logprobs else None,
            logprobs=tuple(self._logprobs[start:]) if wants_logprobs else None,
            finish_reason=self.terminal.finish_reason if self.terminal else None,
            stop_reason=self.terminal.stop_reason if self.terminal else None,
            weight_versions=tuple((version, max(first, start), end) for version, first, end in self._spans if end > start),
        )

    def _decode(self) -> str:
        """The text that can be shown: none in which a stop string may still begin, and none behind one that was found."""
        if self._decoder is None:
            return ""
        self._text += self._decoder.feed(self.token_ids[self._num_taken :])
        if self.terminal is None:
            return self._text[: max(len(self._text) - self._held_back, 0)]
        if not self._ended:
            self._text += self._decoder.finish()
        return self._text if self.terminal.text_end is None else self._text[: self.terminal.text_end]


def logprobs_of(found: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """One position in vLLM's shape: token id -> logprob, rank and text; the token that stands there first."""
    rows = zip(found.token_ids, found.logprobs, found.ranks, strict=True)
    return {
        token: Logprob(logprob, rank, tokenizer.decode([token], False) if tokenizer is not None else None)
        for token, logprob, rank in rows
    }
