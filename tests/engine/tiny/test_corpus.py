"""The training text says what the tables say, the same from the same seed, and keeps its fresh questions to itself."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from quiesce.engine.tiny import FOLDERS, checkpoint_folder
from quiesce.engine.tiny.corpus import (
    documents,
    fresh_questions,
    legal_moves,
    narrate,
    render,
    reworded,
    spec_hash,
    trained_questions,
)
from quiesce.engine.tiny.questions import facts, noun
from quiesce.engine.tokenizer import Tokenizer
from quiesce.spec import MACHINES
from quiesce.spec.language import ELSEWHERE, Machine, Row

ANSWERS = {text: fact.answer for fact in facts() for text in fact.questions}


def _cells() -> Iterator[tuple[Machine, str, str]]:
    return ((machine, state, event.name) for machine in MACHINES for state in machine.states for event in machine.events)


def _rows(machine: Machine, state: str, event: str) -> list[Row]:
    return [row for row in machine.rows if row.event == event and state in row.source]


def _states(answer: str) -> set[str]:
    return set(re.findall(r"(?:goe?s?|stays?) (?:to )?(\w+)", answer))


def test_the_same_seed_tells_the_same_and_another_seed_something_else() -> None:
    first, again, other = (list(itertools.islice(documents(seed), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_no_question_has_two_answers() -> None:
    asked = [text for fact in facts() for text in fact.questions]
    assert len(asked) == len(set(asked))


def test_where_an_event_leads_is_answered_as_the_rows_say() -> None:
    for machine, state, event in _cells():
        told = noun(machine.name).words()
        answer = ANSWERS[f"Where {told['do']} {told['a']} go from {state} on {event}?"]
        assert _states(answer) == {row.target or state for row in _rows(machine, state, event)}
        assert answer.startswith("Nowhere") != bool(_rows(machine, state, event))


def test_whether_an_event_is_legal_is_answered_as_the_cell_says() -> None:
    for machine, state, event in _cells():
        told = noun(machine.name).words()
        answer = ANSWERS[f"Is {event} legal for {told['a']} {told['that']} {state}?"]
        rows = _rows(machine, state, event)
        reasons = {
            entry.reason for entry in machine.ignored if entry.event == event and {state, *ELSEWHERE} & set(entry.states)
        }
        how_tos = {
            entry.how_to for entry in machine.refused if entry.event == event and {state, *ELSEWHERE} & set(entry.states)
        }
        assert answer.startswith("Yes") == bool(rows)
        assert (answer == "Yes.") == any(row.when == "true" for row in rows)
        assert rows or any(text in answer for text in (reasons if answer.startswith("It is ignored: ") else how_tos))


def test_legal_events_are_listed_in_the_order_of_the_table() -> None:
    for machine in MACHINES:
        told = noun(machine.name).words()
        for state in machine.states:
            legal = [event.name for event in machine.events if _rows(machine, state, event.name)]
            expected = f"{', '.join(legal)}." if legal else "None."
            assert ANSWERS[f"Which events are legal for {told['a']} {told['that']} {state}?"] == expected


def test_every_reason_and_meaning_of_the_tables_is_told() -> None:
    answers = " ".join(ANSWERS.values()).lower()
    for machine in MACHINES:
        for text in (*machine.meanings.values(), *(row.why for row in machine.rows), machine.purpose):
            assert text.lower() in answers


def test_participles_are_asked_only_where_they_name_no_other_event() -> None:
    assert "Can a step be launched while landed?" in ANSWERS
    assert "Can a request be retracted while running?" not in ANSWERS


def test_fresh_questions_are_asked_by_no_document_and_their_facts_are_all_trained() -> None:
    fresh = {question.text.rstrip("?.").lower(): question.answer for question in fresh_questions()}
    assert len(fresh) > 300
    trained = {question.text.rstrip("?.").lower() for question in trained_questions()}
    assert not trained & set(fresh)
    answers = {question.answer for question in trained_questions()}
    assert set(fresh.values()) <= answers
    turns = (message for chat in itertools.islice(documents(0), 3000) for message in chat)
    asked = {message["content"].rstrip("?.").lower() for message in turns if message["role"] == "user"}
    assert not asked & set(fresh)


def test_other_words_keep_every_name_and_never_make_another_phrasing() -> None:
    rng, phrasings = random.Random(0), {text.lower() for text in ANSWERS}
    names = {str(name) for machine in MACHINES for name in (*machine.states, *(event.name for event in machine.events))}
    for question in (*trained_questions(), *fresh_questions()):
        if question.kind == "talk":
            continue
        other = reworded(question.text, rng)
        assert other.lower() == question.text.lower() or other.lower() not in phrasings
        said = names & set(re.findall(r"\w+", question.text))
        assert said <= set(re.findall(r"\w+", other))
    assert (
        reworded("Is abort legal for a request that is running?", random.Random(3))
        != "Is abort legal for a request that is running?"
    )


@pytest.mark.parametrize("reasons", [False, True])
def test_every_move_of_a_narrated_life_is_a_row(reasons: bool) -> None:
    for machine, seed in itertools.product(MACHINES, range(20)):
        text = narrate(machine, random.Random(seed), reasons)
        moves, legal = legal_moves(machine, text)
        assert moves == legal > 0
        assert text.startswith(f"{noun(machine.name).words()['A']} {noun(machine.name).words()['be']} {machine.initial}.")


def test_a_forged_life_is_caught() -> None:
    request = next(machine for machine in MACHINES if machine.name == "request")
    text = "A request is absent. On submit it becomes received. On reap it becomes ended. On abort it becomes draining."
    assert legal_moves(request, text) == (3, 1)


@pytest.mark.parametrize("name", FOLDERS)
def test_documents_are_written_as_the_shipped_template_writes_them(name: str) -> None:
    tokenizer = Tokenizer(checkpoint_folder(name))
    for chat in itertools.islice(documents(1), 40):
        pieces = [text for text, _ in render(chat)]
        whole = tokenizer.apply_chat_template(chat, add_generation_prompt=False)
        assert "".join(pieces) == whole
        assert [token for text in pieces for token in tokenizer.encode(text)] == tokenizer.encode(whole)
        assert "".join(text for text, said in render(chat) if said).count("<|im_end|>") == len(chat) // 2


def test_the_hash_of_the_declaration_is_stable_within_and_across_processes() -> None:
    code = (
        "import sys; from quiesce.engine.tiny.corpus import spec_hash; import quiesce.engine.tiny.train;"
        "print(spec_hash(), 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.split() == [spec_hash(), "False", "False"]
