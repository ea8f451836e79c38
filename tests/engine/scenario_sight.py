"""What a scenario can see: what each client has been told, what the engine says of itself, and what it logs."""

from __future__ import annotations

import asyncio
import logging
import operator
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.outputs import RequestOutput, Status
from quiesce.engine.sampling_params import SamplingParams
from quiesce.spec.vocabulary import RequestState, Tag
from tests.engine.scenario_parser import COMPARISONS, Condition
from tests.engine.scenario_world import Barrier, Claim, StageDevice, rss

OPERATORS: Mapping[str, Callable[[int, int], bool]] = dict(
    zip(COMPARISONS, (operator.ge, operator.le, operator.gt, operator.lt), strict=True)
)
NUMBERS = ("accepted", "rejected", "epoch", "streams", "steps_in_flight", "live")
SHOWN = ("engine", "admission", "operation")


@dataclass(slots=True)
class Client:
    """One request, and all that whoever asked it has been told."""

    name: str
    request_id: str
    prompt: list[int]
    params: SamplingParams
    priority: int = 0
    reads: int | None = None
    outputs: list[RequestOutput] = field(default_factory=list)
    refusal: Exception | None = None
    stream: AsyncGenerator[RequestOutput, None] | None = None
    reader: asyncio.Task[None] | None = None

    async def read(self, engine: AsyncEngine) -> None:
        stream = self.stream = engine.generate(self.prompt, self.params, request_id=self.request_id, priority=self.priority)
        try:
            async for output in stream:
                self.outputs.append(output)
                if len(self.outputs) == self.reads:
                    return
        except errors.EngineError as error:
            self.refusal = error

    @property
    def last(self) -> RequestOutput | None:
        return self.outputs[-1] if self.outputs else None

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """Of each child."""
        return tuple(child.token_ids for child in self.last.outputs) if self.last else ()

    @property
    def is_reading(self) -> bool:
        return self.reader is not None and not self.reader.done()

    @property
    def finish_reasons(self) -> set[str | None]:
        return {child.finish_reason for child in self.last.outputs} if self.last and self.last.finished else set()

    @property
    def is_over(self) -> bool:
        """Answered, refused, or of its own will not reading any more."""
        left = self.reads is not None or (self.reader is not None and self.reader.cancelled())
        return bool(self.finish_reasons) or self.refusal is not None or left

    def check_history(self) -> None:
        """Each output continues the one before, one terminal is the last, and the versions cover every token once."""
        seen: dict[int, tuple[int, ...]] = {}
        for output in self.outputs:
            if output.finished and output is not self.outputs[-1]:
                raise AssertionError(f"{self.name}: something follows the terminal")
            for child in output.outputs:
                before = seen.get(child.index, ())
                if child.token_ids[: len(before)] != before:
                    raise AssertionError(f"{self.name}: {child.token_ids} does not continue {before}")
                seen[child.index] = child.token_ids
                ends = [0, *(end for _, _, end in child.weight_versions)]
                begins = [*(begin for _, begin, _ in child.weight_versions), len(child.token_ids)]
                if ends != begins:
                    raise AssertionError(f"{self.name}: versions {child.weight_versions} of {len(child.token_ids)} tokens")


class Listener(logging.Handler):
    """What the engine logs. An error that no line of the story expects fails it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []
        self.unexpected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))  # a traceback belongs to it
        if record.levelno >= logging.ERROR:
            self.unexpected.append(self.messages[-1])

    def has(self, words: str) -> bool:
        self.unexpected = [message for message in self.unexpected if words not in message]
        return any(words in message for message in self.messages)


def counts(found: int, words: Sequence[str]) -> object:
    """True where a number is what the words say, else the number."""
    compare, wanted = (OPERATORS[words[0]], words[1]) if words[0] in OPERATORS else (operator.eq, words[0])
    return compare(found, int(wanted)) or found


def check_error(error: Exception | None, conditions: Sequence[Condition]) -> None:
    """Whether a caller was told what it should be."""
    for condition in conditions:
        if condition.field == "superseded_by":
            assert getattr(error, "superseded_by", None) == condition.words[0], repr(error)
            continue
        assert type(error).__name__ == condition.field, repr(error)
        assert all(words in str(error) for words in condition.words), str(error)


class Sight:
    """Judges conditions. Each answer is True, or what there is instead."""

    def __init__(self, clients: Mapping[str, Client], barriers: Mapping[str, Barrier], contents: Mapping[object, str]) -> None:
        self.clients, self.barriers, self.contents = clients, barriers, contents
        self.listener = Listener()
        self.noted_rss = 0
        self.claims: list[Claim] = []
        self.device: StageDevice | None = None

    def to_be_freed(self) -> dict[Tag, tuple[int, int]]:
        """What a sleep of each tag gives back, at least and at most."""
        device = self.device
        return {} if device is None or not device.is_loaded else {tag: device.to_be_freed(tag) for tag in Tag}

    def resident(self) -> dict[Tag, int]:
        """Memory that each tag takes."""
        assert self.device is not None
        return {tag: self.device.resident_bytes(tag) for tag in Tag}

    def seen(self, condition: Condition, status: Status) -> object:
        """True, or what there is instead."""
        if not condition.who:
            return self._of_engine(condition, status)
        for name in condition.who:
            found = self._of_client(self.clients[name], condition)
            if found is not True:
                return f"{name}: {found}"
        return True

    def _of_engine(self, condition: Condition, status: Status) -> object:
        name, words = condition.field, condition.words
        if name in SHOWN:
            return str(getattr(status, name)).lower() == words[0] or getattr(status, name)
        if name in NUMBERS:
            return counts(getattr(status, name), words)
        if name in tuple(RequestState):
            return counts(status.requests.get(name, 0), words)
        match name:
            case "owners":
                expected = dict(word.split(":") for word in words if word != "none")
                return dict(status.pause_owners) == expected or dict(status.pause_owners)
            case "memory":
                return status.memory[words[0]] == words[1] or dict(status.memory)
            case "weights":
                return (str(status.weights[0]), status.weights[1]) == words or status.weights
            case "blocks":
                return counts(getattr(status.blocks, words[0]), words[1:])
            case "finished":
                return counts(status.finished.get(words[0], 0), words[1:])
            case "held":
                return self.barriers[words[0]].somebody_waits
            case "given_back":
                return self.resident()[Tag(words[0])] == 0 or self.resident()
            case "preemptions":
                return counts(status.measured.num_preemptions, words)
            case "rss_fell":
                return counts((self.noted_rss - rss()) >> 20, words)
            case "log":
                return self.listener.has(words[0]) or self.listener.messages
        return not self.listener.has(words[0]) or self.listener.messages

    def _of_client(self, client: Client, condition: Condition) -> object:
        name, words, last = condition.field, condition.words, client.last
        match name:
            case "finished":
                return client.finish_reasons == {words[0]} or client.refusal or client.finish_reasons
            case "waiting":
                return (client.is_reading and not client.finish_reasons) or client.refusal or client.finish_reasons
            case "left":
                return not client.is_reading and not client.finish_reasons
            case "refused":
                check_error(client.refusal, (Condition(words[0], words[1:]),))
                return True
            case "got":
                return counts(sum(map(len, client.tokens)), words)
            case "cached":
                return last is not None and counts(last.num_cached_tokens, words)
            case "told":
                return (last is not None and words[0] in str(last.error)) or last
            case "versions":
                spans = last.outputs[0].weight_versions if last else ()
                return tuple(str(version) for version, _, _ in spans) == words or spans
        self._claim(client)
        return True

    def _claim(self, client: Client) -> None:
        """Notes what is to be true of a client's tokens: each span is what its version says to the text so far."""
        if client.last is None:
            return
        for child in client.last.outputs:
            if child.finish_reason == "length":
                assert len(child.token_ids) == client.params.max_tokens, f"{client.name} has {len(child.token_ids)} tokens"
            for version, begin, end in child.weight_versions:
                prompt, tokens = (*client.prompt, *child.token_ids[:begin]), child.token_ids[begin:end]
                where = f"{client.name} under version {version}, from token {begin}"
                self.claims.append(Claim(self.contents[version], prompt, client.params, child.index, tokens, where))
