"""The shipped models answer in our own engine as they did when their transcripts were kept, to the token."""

from __future__ import annotations

import pytest

from quiesce.engine.tiny import FOLDERS
from quiesce.engine.tiny.transcripts import KINDS, MAX_TOKENS, ask_engine, kept_transcripts


@pytest.mark.parametrize("name", FOLDERS)
def test_the_engine_answers_as_the_kept_transcripts_do(name: str) -> None:
    kept = kept_transcripts(name)
    assert len(kept) == len(KINDS)
    assert ask_engine(name, [entry.question for entry in kept]) == kept


@pytest.mark.parametrize("name", FOLDERS)
def test_a_kept_answer_ends_or_is_as_long_as_was_asked_for(name: str) -> None:
    assert all(entry.answer and len(entry.token_ids) <= MAX_TOKENS for entry in kept_transcripts(name))
