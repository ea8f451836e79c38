"""Training text, made of the project's own tables and of nothing else: chats of questions and answers, and narrated lives.

The same seed gives the same documents. `fresh_questions` are phrasings of facts that no document asks: each of those facts is
trained in its other phrasings, so that a right answer to a fresh question is knowledge of the table, not of the sentence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from quiesce.engine.tiny.questions import Fact, facts, noun
from quiesce.spec import FACTS, MACHINES
from quiesce.spec.language import Machine, Row

Message = dict[str, str]

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

KIND_WEIGHTS: Final[Mapping[str, int]] = {
    "legal": 10, "leads": 28, "can": 24, "why": 10, "stays": 5, "refusal": 12, "between": 6, "meaning": 4, "owner": 6,
    "states": 1, "events": 1, "begin": 1, "purpose": 1, "fact": 3, "talk": 2, "life": 6,
}  # fmt: skip
"""How often each kind of turn is drawn: cells that are many, and lists that are long, need more looks."""

TELL: Final = ("Tell a life of {a}.", "Tell me a life of {a}.", "Narrate a life of {a}.", "Walk {a} through its table.")
WITH_REASONS: Final = " Give reasons."
SYSTEM: Final = ("You are a helpful assistant.", "You know the tables of Quiesce.", "Answer in one sentence.", "Be brief.")
MAX_MOVES: Final = 9

REWORDINGS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (r"\blegal\b", ("allowed", "possible", "permitted")),
    (r"\bwhile\b", ("when", "as long as")),
    (r"\bWhich\b", ("What",)),
    (r"\bwhich\b", ("what",)),
    (r"\ban? ([a-z ]+?) that is (\w+)", (r"a \2 \1", r"the \2 \1", r"a \1 in state \2", r"a \1 which is \2")),
    (r"\bList\b", ("Give me", "Show", "Tell me")),
    (r"\bExplain\b", ("Please explain", "Tell me about", "Describe")),
    (r"\bIn state\b", ("In the state", "While in")),
    (r"\bDoes (\w+) do anything to\b", (r"Does \1 have any effect on", r"Does \1 change")),
    (r"\bgo from\b", ("move from",)),
    (r"\bWhere (does|do)\b", (r"To which state \1",)),
)
"""Other ways to say a part of a question: they make a model hear what is asked, where one way only is learnt as a sentence."""
OPENINGS: Final = ("Please tell me: ", "Tell me, ", "Question: ", "Can you tell me: ", "I wonder: ", "So, ", "Quick question: ")
_MOVE = re.compile(r"On (\w+) (?:it|they) (becomes?|stays?) (\w+)")


@dataclass(frozen=True, slots=True)
class Question:
    kind: str
    text: str
    answer: str


@cache
def _split() -> tuple[Mapping[str, tuple[tuple[tuple[str, ...], str], ...]], tuple[Question, ...]]:
    """Kind -> trained (phrasings, answer), and the fresh questions: of every third fact one phrasing is held out."""
    trained: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    fresh: list[Question] = []
    for fact in facts():
        kept = list(fact.questions)
        draw = _digest(fact)
        if fact.kind != "talk" and draw % 3 == 0:
            fresh.append(Question(fact.kind, kept.pop(draw // 3 % len(kept)), fact.answer))
        trained.setdefault(fact.kind, []).append((tuple(kept), fact.answer))
    return {kind: tuple(found) for kind, found in trained.items()}, tuple(fresh)


def _digest(fact: Fact) -> int:
    return int.from_bytes(hashlib.sha256(fact.questions[0].encode()).digest()[:8], "big")


def fresh_questions() -> tuple[Question, ...]:
    """Questions that no document asks, with their exact answers."""
    return _split()[1]


def trained_questions() -> tuple[Question, ...]:
    """Every question that documents may ask, but for lives, with its exact answer."""
    return tuple(
        Question(kind, text, answer) for kind, found in _split()[0].items() for texts, answer in found for text in texts
    )


def documents(seed: int, reword: bool = True) -> Iterator[list[Message]]:
    """Endless chats of one to three turns, some behind a system prompt; `reword` asks some questions more freely."""
    rng = random.Random(seed)
    kinds, weights = list(KIND_WEIGHTS), list(KIND_WEIGHTS.values())
    while True:
        chat: list[Message] = []
        if rng.random() < 0.1:
            chat.append({"role": "system", "content": rng.choice(SYSTEM)})
        for kind in rng.choices(kinds, weights, k=rng.choice((1, 1, 1, 2, 2, 3))):
            question, answer = _life(rng) if kind == "life" else _drawn(kind, rng, reword)
            chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield chat


def _drawn(kind: str, rng: random.Random, reword: bool) -> tuple[str, str]:
    texts, answer = rng.choice(_split()[0][kind])
    question = rng.choice(texts)
    if reword and kind != "talk" and rng.random() < 0.35:
        question = reworded(question, rng)
    # People leave out the question mark and the capital; the answer stays the same.
    if rng.random() < 0.08:
        question = question.rstrip("?.!")
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    return question, answer


def reworded(question: str, rng: random.Random) -> str:
    """The question in other words: never a phrasing of the tables, so that a fresh question stays fresh."""
    for pattern, others in REWORDINGS:
        if rng.random() < 0.6:
            question = re.sub(pattern, rng.choice(others), question)
    if rng.random() < 0.25:
        question = rng.choice(OPENINGS) + question[0].lower() + question[1:]
    if rng.random() < 0.1:
        question = question.lower()
    return question


def _life(rng: random.Random) -> tuple[str, str]:
    machine, reasons = rng.choice(MACHINES), rng.random() < 0.4
    question = rng.choice(TELL).format(**noun(machine.name).words()) + (WITH_REASONS if reasons else "")
    return question, narrate(machine, rng, reasons)


def narrate(machine: Machine, rng: random.Random, reasons: bool = False) -> str:
    """A walk over the rows from the initial state: cells are followed, guards are not evaluated."""
    told = noun(machine.name).words()
    state, sentences = str(machine.initial), [f"{told['A']} {told['be']} {machine.initial}."]
    for _ in range(rng.randint(3, MAX_MOVES)):
        rows = [row for row in machine.rows if state in row.source]
        if not rows or (len(sentences) > 1 and state in machine.terminal):
            break
        row = rng.choices(rows, [1 if row.target in (None, state) else 3 for row in rows])[0]
        sentences.append(f"{_move(row, state, told)}{f': {row.why}' if reasons else ''}.")
        state = row.target or state
    return " ".join(sentences)


def _move(row: Row, state: str, told: Mapping[str, str]) -> str:
    verb = told["stay"] if row.target is None else told["become"]
    return f"On {row.event} {told['it']} {verb} {row.target or state}"


def legal_moves(machine: Machine, text: str) -> tuple[int, int]:
    """How many moves a narrated life of `machine` tells, and how many of them are rows of the table."""
    state, told, legal = str(machine.initial), 0, 0
    for event, verb, target in _MOVE.findall(text):
        told += 1
        moves = {row.target or state for row in machine.rows if row.event == event and state in row.source}
        legal += target in moves and (verb.startswith("become") or target == state)
        state = target
    return told, legal


def render(chat: list[Message]) -> list[tuple[str, bool]]:
    """The chat as the template writes it, in pieces: (text, whether the model says it)."""
    pieces: list[tuple[str, bool]] = []
    for message in chat:
        said = message["role"] == "assistant"
        pieces += [(f"<|im_start|>{message['role']}\n", False), (f"{message['content']}<|im_end|>", said), ("\n", False)]
    return pieces


def spec_hash() -> str:
    """SHA-256 of the machines and facts, written as canonical JSON: which declaration a model was trained on."""
    dump = json.dumps([[_plain(machine) for machine in MACHINES], [_plain(fact) for fact in FACTS]], sort_keys=True)
    return hashlib.sha256(dump.encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, type):
        return [str(member) for member in getattr(value, "__members__", ())]
    if dataclasses.is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool) else str(value)
