"""Scenarios: stories of one engine, its clients and its operators, as plain text. This is their parser; `scenario_player.py` plays them.

    # A comment. One statement to a line; conditions and results are separated by commas; "words" may be quoted.
    engine max_num_seqs=2 load_format=empty      EngineConfig's names; `chunk_tensors=2` ends a chunk of weights there. Waits until it serves
    client c1..c9 late asks max_tokens=8         also length= (of the prompt), prompt= (its number), n= seed= temperature= priority= id= and
                                                 reads= (stops reading after that many outputs); ` -> ERROR "words"` if it is refused
    abort c1 c2 -> aborted c1, not_found c2      also `abort all`; a name that nobody has is allowed
    cancel c1 | disconnect c1 | drop c1          cancels the task that reads; closes, or forgets, a generator that nobody reads
    hold steps after=3 | release steps           the device's thread waits, after three more: loading, steps, moves (of memory), tensors (of pairs)
    break copies | mend copies                   copies and pages (of memory that leaves or comes), or steps, fail from now on
    pause mode=keep -> changed                   any control call, its arguments, and its result; `shutdown` ends the story
    start sleep level=1 as s                     the same in the background; `s pending`, `s -> changed`, or `cancel s`
    wait until running 2, held steps             until all of it holds, at most a minute
    expect engine paused, blocks fenced 0        all of it holds now; `expect c1 finished length` waits for that end
    expect c1..c9 finished abort, tokens undisturbed, versions 0 1       the names hold for what follows of theirs
    later 25                                     the engine's clock moves on by so many seconds
    note rss                                     what `rss_fell >= 8` (MB) counts from

A value is a number, true, false, none or a word. Tags are written `tags=weights+kv_cache`, or `tags=weights:offload+kv_cache:discard`, none
of them `tags=`; weights `source=FORM:CONTENT` of `FORMS` and `CONTENTS`. Numbers of a condition may follow >= <= > or <.
`tokens undisturbed`: each span of versions is what a quiet engine with those weights says to the same text.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.sampling_params import SamplingParams
from quiesce.spec.vocabulary import EngineState, FinishReason, MemoryState, Mode, OperationKind, RequestState, Tag, WeightsState

CALLS = (*OperationKind, "check_health", "pause_generation", "resume_generation", "is_paused", "is_sleeping")
FORMS = ("folder", "file", "mapping", "pairs", "nonsense")
CONTENTS = ("original", "other", "part", "missing", "misshapen", "unknown", "integers", "infinite", "failing", "nothing")
ERRORS = tuple(name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.EngineError))
BARRIERS = ("loading", "steps", "moves", "tensors")
BREAKABLE = ("copies", "pages", "steps")
ASKED = {"length", "prompt", "priority", "id", "reads", *(each.name for each in fields(SamplingParams))}
CONFIG = {"chunk_tensors", *(each.name for each in fields(EngineConfig))}

STATUS: Mapping[str, str] = {
    "engine": "ENGINE", "admission": "ADMISSION", "operation": "OPERATION", "owners": "OWNER+", "memory": "TAG MEMORY",
    "weights": "VERSION WEIGHTS", "blocks": "BLOCKS NUMBER", "finished": "REASON NUMBER", "held": "BARRIER", "given_back": "TAG",
    "log": "TEXT", "no_log": "TEXT", "rss_fell": "NUMBER",
    **dict.fromkeys(("accepted", "rejected", "epoch", "streams", "steps_in_flight", "live", "preemptions", *RequestState), "NUMBER"),
}  # fmt: skip
"""Field -> what follows it, where the engine is meant."""
OF_CLIENTS: Mapping[str, str] = {
    "finished": "REASON", "waiting": "", "left": "", "refused": "ERROR TEXT?", "got": "NUMBER", "cached": "NUMBER",
    "tokens": "TOKENS", "versions": "VERSION+", "told": "TEXT",
}  # fmt: skip
RESULTS: Mapping[str, str] = {
    "changed": "", "unchanged": "", "pending": "", "yes": "", "no": "", "nothing": "", "state": "ENGINE", "epoch": "NUMBER",
    "aborted": "WHO+", "kept": "WHO+", "not_found": "WHO+", "freed": "TAG+", "digest": "CONTENT", "superseded_by": "TEXT",
    **dict.fromkeys(ERRORS, "TEXT?"),
}  # fmt: skip
WORDS: Mapping[str, Set[str]] = {
    "ENGINE": set(EngineState), "ADMISSION": {"accept", "queue", "reject"}, "OPERATION": {*OperationKind, "none"}, "TAG": set(Tag),
    "MEMORY": set(MemoryState), "WEIGHTS": set(WeightsState), "BLOCKS": {"total", "free", "cached", "held", "fenced"},
    "REASON": set(FinishReason), "BARRIER": set(BARRIERS), "ERROR": set(ERRORS), "CONTENT": set(CONTENTS), "TOKENS": {"undisturbed"},
}  # fmt: skip
"""What stands for one of a closed set of words; TEXT, WHO and VERSION are any word."""
COMPARISONS = (">=", "<=", ">", "<")
RANGE = re.compile(r"([a-z_]+)(\d+)\.\.([a-z_]+)(\d+)")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class ScenarioError(ValueError):
    """A line that means nothing; says which, in which file."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One field and what it must be. `who`: the clients it is about; none: the engine, or the result of a call."""

    field: str
    words: tuple[str, ...]
    who: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """One line. `verb` is a call of the engine, or one of the words of the grammar above."""

    place: str
    text: str
    verb: str
    names: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    background: str = ""


def parse(path: Path) -> list[Statement]:
    """The statements of a file.

    Raises:
        ScenarioError: a line means nothing; names the file and the line.
    """
    return Parser(path.name).parse(path.read_text(encoding="utf-8"))


class Parser:
    """Reads one scenario, and remembers which clients and calls it has met."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._place = ""
        self._clients: set[str] = set()
        self._calls: dict[str, bool] = {}
        """Background call -> whether its end is told."""

    def parse(self, text: str) -> list[Statement]:
        statements = []
        for number, line in enumerate(text.splitlines(), 1):
            self._place = f"{self._name}:{number}"
            words = self._split(line)
            if words:
                statements.append(self._statement(line.strip(), words))
        untold = [name for name, told in self._calls.items() if not told]
        if untold:
            raise ScenarioError(f"{self._name}: the end of {', '.join(untold)} is not told")
        if not any(statement.verb == "engine" for statement in statements):
            raise ScenarioError(f"{self._name}: there is no `engine`")
        return statements

    def _wrong(self, reason: str) -> ScenarioError:
        return ScenarioError(f"{self._place}: {reason}")

    def _split(self, line: str) -> list[str]:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=",")
        lexer.whitespace_split = True
        try:
            return list(lexer)
        except ValueError as error:
            raise self._wrong(str(error)) from None

    def _statement(self, text: str, words: list[str]) -> Statement:
        words, told = (words[: words.index("->")], words[words.index("->") + 1 :]) if "->" in words else (words, [])
        verb, rest = words[0], words[1:]
        results = self._conditions(told, RESULTS) if told else ()
        if verb in self._calls and (results or rest == ["pending"]):
            self._calls[verb] |= bool(results)
            return Statement(self._place, text, "told", (verb,), conditions=results)
        if verb == "start" or verb in CALLS:
            return self._call(text, words, results)
        if verb == "client":
            names, asked = self._until(rest, "asks")
            if taken := set(names) & {*STATUS, *OF_CLIENTS, *self._calls}:
                raise self._wrong(f"no client can be called {min(taken)!r}")
            self._clients |= set(names)
            return Statement(self._place, text, verb, names, self._arguments(asked, ASKED), self._refusals(results))
        if verb == "engine":
            return Statement(self._place, text, verb, (), self._arguments(rest, CONFIG))
        if verb == "abort":
            return Statement(self._place, text, verb, self._names(rest), conditions=results)
        if results:
            raise self._wrong(f"`{verb}` has no result")
        if verb in ("cancel", "disconnect", "drop"):
            names = self._names(rest)
            for name in names:
                if name in self._calls and verb == "cancel":
                    self._calls[name] = True
                elif name not in self._clients:
                    raise self._wrong(f"nobody is called {name!r}")
            return Statement(self._place, text, verb, names)
        if verb in ("hold", "release", "break", "mend"):
            known = BARRIERS if verb in ("hold", "release") else BREAKABLE
            if not rest or rest[0] not in known:
                raise self._wrong(f"`{verb}` takes one of {', '.join(known)}")
            return Statement(
                self._place, text, verb, (rest[0],), self._arguments(rest[1:], {"after"} if verb == "hold" else set())
            )
        if verb == "later" and len(rest) == 1 and rest[0].isdigit():
            return Statement(self._place, text, verb, (), {"seconds": int(rest[0])})
        if verb == "note" and rest == ["rss"]:
            return Statement(self._place, text, verb)
        if verb == "expect" or words[:2] == ["wait", "until"]:
            conditions = self._conditions(rest if verb == "expect" else rest[1:], STATUS)
            if verb == "wait" and any(each.field == "tokens" for each in conditions):
                raise self._wrong("`tokens` are looked at once: expect them")
            return Statement(self._place, text, verb, conditions=conditions)
        raise self._wrong(f"unknown verb {verb!r}")

    def _call(self, text: str, words: list[str], results: tuple[Condition, ...]) -> Statement:
        background = ""
        if words[0] == "start":
            if len(words) < 4 or words[-2] != "as" or not NAME.fullmatch(words[-1]):
                raise self._wrong("a call in the background needs a name: start CALL ... as NAME")
            background, words = words[-1], words[1:-2]
            if background in self._calls or background in self._clients:
                raise self._wrong(f"{background!r} is somebody already")
            self._calls[background] = False
        verb = words[0]
        if verb not in CALLS:
            raise self._wrong(f"unknown call {verb!r}")
        if bool(results) == bool(background):
            raise self._wrong(f"say what comes of `{verb}`: `-> changed`, or an error")
        known = set(inspect.signature(getattr(AsyncEngine, verb)).parameters) - {"self"}
        known = known - {"weights"} | {"source"} if verb == "load_weights" else known
        return Statement(self._place, text, verb, (), self._arguments(words[1:], known), results, background)

    def _refusals(self, results: tuple[Condition, ...]) -> tuple[Condition, ...]:
        if any(each.field not in ERRORS for each in results):
            raise self._wrong("a client is refused with an error, or it is not refused")
        return results

    # ---- words ------------------------------------------------------------------------------------------------------------------

    def _until(self, words: Sequence[str], stop: str) -> tuple[tuple[str, ...], list[str]]:
        if stop not in words:
            raise self._wrong(f"`{stop}` is missing")
        place = list(words).index(stop)
        return self._names(words[:place]), list(words[place + 1 :])

    def _names(self, words: Sequence[str]) -> tuple[str, ...]:
        found: list[str] = []
        for word in words:
            span = RANGE.fullmatch(word)
            if span and span[1] == span[3]:
                found += [f"{span[1]}{number}" for number in range(int(span[2]), int(span[4]) + 1)]
            elif NAME.fullmatch(word):
                found.append(word)
            else:
                raise self._wrong(f"{word!r} is no name")
        if not found:
            raise self._wrong("nobody is named")
        return tuple(found)

    def _arguments(self, words: Sequence[str], known: Set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or name not in known:
                raise self._wrong(f"unknown field {name!r}; known: {', '.join(sorted(known)) or 'none'}")
            found[name] = self._value(name, value)
        return found

    def _value(self, name: str, text: str) -> Any:
        if name == "tags" and text != "none":
            parts = [part for part in text.split("+") if part]
            return dict(part.split(":") for part in parts) if ":" in text else parts
        if name == "source":
            form, _, content = text.partition(":")
            if form not in FORMS or (content or "original") not in CONTENTS:
                raise self._wrong(f"unknown source {text!r}; forms: {', '.join(FORMS)}; contents: {', '.join(CONTENTS)}")
            return (form, content or "original")
        named = {"none": None, "true": True, "false": False}
        if text in named:
            return named[text]
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return text

    def _conditions(self, words: Sequence[str], table: Mapping[str, str]) -> tuple[Condition, ...]:
        found: list[Condition] = []
        who: tuple[str, ...] = ()
        for part in _parts(words):
            if not part:
                raise self._wrong("a condition is missing")
            if table is STATUS and part[0] not in STATUS and part[0] not in OF_CLIENTS:
                count = next((place for place, word in enumerate(part) if word in OF_CLIENTS), len(part))
                who, part = self._names(part[:count]), part[count:]
                if unknown := [name for name in who if name not in self._clients]:
                    raise self._wrong(f"unknown field or client {unknown[0]!r}")
            if who and part and part[0] not in OF_CLIENTS:
                who = ()  # of the engine again
            known = OF_CLIENTS if who else table
            if not part or part[0] not in known:
                raise self._wrong(f"unknown field {part[0] if part else ''!r}; known: {', '.join(known)}")
            self._fits(part[0], part[1:], known[part[0]])
            found.append(Condition(part[0], tuple(part[1:]), who))
        return tuple(found)

    def _fits(self, name: str, words: Sequence[str], pattern: str) -> None:
        """Whether the words after a field are of the kinds that it takes."""
        left = list(words)
        for kind in pattern.split():
            plain = kind.rstrip("?+")
            if plain == "NUMBER" and left and left[0] in COMPARISONS:
                left.pop(0)
            taken = left if kind.endswith("+") else left[:1]
            left = left[len(taken) :]
            if not taken and not kind.endswith("?"):
                raise self._wrong(f"`{name}` takes {pattern}")
            for word in taken:
                if plain in WORDS and word not in WORDS[plain]:
                    raise self._wrong(f"{word!r} is none of {', '.join(sorted(WORDS[plain]))}")
                if plain == "NUMBER" and not word.isdigit():
                    raise self._wrong(f"{word!r} is no number")
                if plain == "OWNER" and word != "none" and word.partition(":")[2] not in set(Mode):
                    raise self._wrong(f"{word!r} is no owner with a mode, such as user:keep")
        if left:
            raise self._wrong(f"`{name}` takes {pattern or 'nothing'}, not {' '.join(words)!r}")


def _parts(words: Sequence[str]) -> list[list[str]]:
    """The words between commas."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == ",":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
