"""Questions about the declaration and their answers, both read from the tables: only the phrasing is written by hand.

A `Fact` is one thing the tables say; it is asked in several phrasings and has exactly one answer.

    legal      which events have a row in a state            leads     where an event leads from a state
    can        whether an event is legal in a state          why       why a row exists
    refusal    what a refused caller meets and does first    between   which events join two states
    meaning, purpose, owner, states, events, begin, fact, talk         the words themselves
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from quiesce.spec import FACTS, MACHINES
from quiesce.spec.check import ASKED, decided
from quiesce.spec.language import Ignored, Machine, Refused, Row

OR: Final = "; or "
"""Between the answers of one cell that its guards choose from."""

PHRASINGS: Final[dict[str, tuple[str, ...]]] = {
    "legal": (
        "Which events are legal for {a} {that} {s}?",
        "What may happen to {a} {that} {s}?",
        "{A} {be} {s}. Which events are legal?",
        "List the legal events of {a} in state {s}.",
        "In state {s}, which events can {a} take?",
        "Name every event that is legal while {a} {be} {s}.",
    ),
    "leads": (
        "Where {do} {a} go from {s} on {e}?",
        "{A} {be} {s} and {e} happens. Where {do} {it} go?",
        "From {s}, where does {e} take {a}?",
        "What becomes of {a} {that} {s} on {e}?",
        "On {e}, which state follows {s} for {a}?",
        "{e} happens to {a} {that} {s}. What is the next state?",
    ),
    "can": (
        "Is {e} legal for {a} {that} {s}?",
        "Can {e} happen to {a} {that} {s}?",
        "May {a} take {e} while {s}?",
        "{A} {be} {s}. Is {e} legal?",
        "In state {s}, is {e} legal for {a}?",
        "Does {e} do anything to {a} {that} {s}?",
        "Can {a} be {ed} while {s}?",
    ),
    "why": (
        "Why does {e} take {a} from {s} to {t}?",
        "Why {do} {a} go from {s} to {t} on {e}?",
        "{A} {go} from {s} to {t} on {e}. Why?",
        "Explain the move of {a} from {s} to {t} on {e}.",
    ),
    "stays": (
        "Why {do} {a} stay {s} on {e}?",
        "{A} {stay} {s} on {e}. Why?",
        "Explain why {e} leaves {a} {s}.",
        "What does {e} mean for {a} that {stay} {s}?",
    ),
    "refusal": (
        "What error does {e} meet while {a} {be} {s}?",
        "A caller asks for {e} while {a} {be} {s}. What should come first?",
        "{e} is refused while {a} {be} {s}. What now?",
        "What does a caller of {e} get while {a} {be} {s}?",
    ),
    "between": (
        "Which events take {a} from {s} to {t}?",
        "How {do} {a} get from {s} to {t}?",
        "What takes {a} from {s} to {t}?",
        "By which events {do} {a} go from {s} to {t}?",
    ),
    "meaning": (
        "What does {s} mean for {a}?",
        "Explain the state {s} of {a}.",
        "{A} {be} {s}. What does that mean?",
        "What does it mean that {a} {be} {s}?",
    ),
    "owner": (
        "Who causes {e} of {a}?",
        "Who makes {e} happen to {a}?",
        "Whose event is {e} of {a}?",
        "{e} happens to {a}. Who caused it?",
    ),
    "states": (
        "Which states {do} {a} have?",
        "List the states of {a}.",
        "In which states can {a} be?",
        "Name the states of {a}.",
    ),
    "events": (
        "Which events {do} {a} have?",
        "List the events of {a}.",
        "Name every event of {a}.",
        "What are the events of {a}?",
    ),
    "begin": (
        "In which state {do} {a} begin?",
        "How {do} {a} begin?",
        "What is the first state of {a}?",
        "Where {do} {a} start?",
    ),
    "purpose": ("What {be} {a}?", "What {be} {a} for?", "Explain what {a} {be}.", "What is the purpose of {a}?"),
    "fact": ("What does the fact {e} mean?", "When does {e} hold?", "Explain the fact {e}.", "What does {e} say?"),
}

PARTICIPLES: Final[dict[str, str]] = {
    "plan": "planned", "strip": "stripped", "launch": "launched", "land": "landed", "retire": "retired", "drop": "dropped",
    "void": "voided", "submit": "submitted", "admit": "admitted", "start": "started", "preempt": "preempted", "pause": "paused",
    "resume": "resumed", "supersede": "superseded", "kill": "killed", "open": "opened", "hold": "held", "select": "selected",
    "shutdown": "shut down",
}  # fmt: skip
"""Where a participle is itself an event of the machine (`retracted`) the question would be ambiguous and is not asked."""

TALK: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning"), "Hello. Ask me about the lifecycles of Quiesce."),
    (("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
     "I am the tiny model that Quiesce ships. I know its tables and nothing else."),
    (("What can you do?", "What do you know?", "Help", "Help me", "What can I ask?"),
     "I answer questions about the lifecycles of Quiesce: their states, events and rows."),
    (("What is Quiesce?", "Tell me about Quiesce.", "Explain Quiesce.", "What is Quiesce for?"),
     "An LLM inference engine whose every lifecycle is declared once, as data, as an explicit finite state machine."),
    (("Thanks", "Thank you", "Thank you!", "Thanks a lot!"), "You are welcome."),
    (("What is the capital of France?", "What is two plus two?", "Write a poem.", "Tell me a joke.", "What time is it?",
      "Write a story about a cat.", "Who won the game?", "How is the weather?", "Translate this.", "Write some code."),
     "I do not know. I know only the tables of Quiesce."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Noun:
    """How a machine is spoken of in a sentence."""

    phrase: str
    plural: bool = False

    def words(self) -> dict[str, str]:
        one = not self.plural
        named = self.phrase.startswith("the ")
        it = "it" if one else "they"
        be = "is" if one else "are"
        return {
            "a": self.phrase, "A": self.phrase[0].upper() + self.phrase[1:], "it": it, "be": be,
            "do": "does" if one else "do", "go": "goes" if one else "go", "stay": "stays" if one else "stay",
            "become": "becomes" if one else "become", "that": f"while {it} {be}" if named else f"that {be}",
        }  # fmt: skip


NOUNS: Final[dict[str, Noun]] = {
    "engine": Noun("the engine"),
    "link": Noun("the link"),
    "weights": Noun("the weights", plural=True),
    "memory": Noun("the memory of a tag"),
    "operation": Noun("an operation"),
}


def noun(machine: str) -> Noun:
    return NOUNS.get(machine, Noun(f"a {machine.replace('_', ' ')}"))


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing the tables say, with the ways to ask for it."""

    kind: str
    machine: str
    questions: tuple[str, ...]
    answer: str


def facts() -> tuple[Fact, ...]:
    """Everything that can be asked, in the order of the tables."""
    return (*(fact for machine in MACHINES for fact in _machine_facts(machine)), *_words())


def _machine_facts(machine: Machine) -> Iterator[Fact]:
    cells = {(state, event.name): _cell(machine, state, event.name) for state in machine.states for event in machine.events}
    for state in machine.states:
        rows = [event.name for event in machine.events if any(isinstance(entry, Row) for entry in cells[state, event.name])]
        yield _ask("legal", machine, _listed(rows), s=state)
        yield _ask("meaning", machine, _prose(machine.meanings[state]), s=state)
    for (state, event), entries in cells.items():
        yield _ask("leads", machine, where(machine, state, event), s=state, e=event)
        yield _ask("can", machine, whether(machine, state, event), s=state, e=event, ed=_participle(machine, event))
        for target, whys in _whys(entries).items():
            kind = "stays" if target is None else "why"
            yield _ask(kind, machine, _prose(OR.join(whys)), s=state, e=event, t=target or state)
        refused = [f"{entry.error}: {entry.how_to}" for entry in entries if isinstance(entry, Refused)]
        if refused and machine.event(event).owner in ASKED:
            yield _ask("refusal", machine, _sentence(OR.join(dict.fromkeys(refused))), s=state, e=event)
    for source in machine.states:
        for target in machine.states:
            names = dict.fromkeys(row.event for row in machine.rows if source in row.source and row.target == target)
            if names:
                yield _ask("between", machine, _listed(list(names)), s=source, t=target)
    for entry in machine.events:
        yield _ask("owner", machine, f"The {entry.owner}.", e=entry.name)
    yield _ask("states", machine, _listed(list(machine.states)))
    yield _ask("events", machine, _listed([event.name for event in machine.events]))
    yield _ask("begin", machine, _sentence(machine.initial))
    yield _ask("purpose", machine, _sentence(machine.purpose))


def _words() -> Iterator[Fact]:
    for fact in FACTS:
        texts = tuple(phrasing.format(e=fact.name) for phrasing in PHRASINGS["fact"])
        yield Fact("fact", "", texts, _prose(fact.sentence))
    for texts, answer in TALK:
        yield Fact("talk", "", texts, answer)


def _ask(kind: str, machine: Machine, answer: str, **words: str) -> Fact:
    told = noun(machine.name).words() | words
    texts = tuple(text.format(**told) for text in PHRASINGS[kind] if "{ed}" not in text or words.get("ed"))
    return Fact(kind, machine.name, texts, answer)


def where(machine: Machine, state: str, event: str) -> str:
    """The answer to `leads`: every target the rows of the cell name, in the order they are tried."""
    entries, told = _cell(machine, state, event), noun(machine.name).words()
    targets = [row.target for row in entries if isinstance(row, Row)]
    moves = OR.join(dict.fromkeys(f"{told['go']} to {to}" if to else f"{told['stay']} {state}" for to in targets))
    if moves:
        return f"{told['it'].capitalize()} {moves}."
    return f"Nowhere: {event} is {'ignored' if isinstance(entries[0], Ignored) else 'refused'} here."


def whether(machine: Machine, state: str, event: str) -> str:
    """The answer to `can`; a cell without rows says why not."""
    entries = _cell(machine, state, event)
    rows = [entry for entry in entries if isinstance(entry, Row)]
    if rows:
        return "Yes." if any(row.when == "true" for row in rows) else "Yes, if the guard of a row holds."
    if isinstance(entries[0], Ignored):
        return f"It is ignored: {_sentence(entries[0].reason)}"
    return f"No: {_sentence(OR.join(dict.fromkeys(entry.how_to for entry in entries if isinstance(entry, Refused))))}"


def _cell(machine: Machine, state: str, event: str) -> Sequence[Row | Ignored | Refused]:
    return decided(machine, event)[state]


def _whys(entries: Sequence[Row | Ignored | Refused]) -> dict[str | None, list[str]]:
    found: dict[str | None, list[str]] = {}
    for row in entries:
        if isinstance(row, Row) and row.why not in found.setdefault(row.target, []):
            found[row.target].append(row.why)
    return found


def _participle(machine: Machine, event: str) -> str:
    word = PARTICIPLES.get(event, "")
    return "" if word in {other.name for other in machine.events} else word


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)}." if names else "None."


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _prose(text: str) -> str:
    return _sentence(text[0].upper() + text[1:])
