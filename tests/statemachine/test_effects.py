"""Nobody but the gate makes an effect, and the gate makes exactly those of the row."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from quiesce.spec import MACHINES
from quiesce.spec.guards import parse_effect
from quiesce.statemachine.effects import BY_WORD, Effect, FreeBlocks, MintKey, Terminal, take_mint_key, word_of
from quiesce.statemachine.gate import Gate
from tests.statemachine.worlds import add_request, open_world

FORGED: Any = MintKey()


@pytest.mark.parametrize("kind", BY_WORD.values(), ids=lambda kind: kind.__name__)
def test_an_effect_cannot_be_made_without_the_key(kind: type[Effect]) -> None:
    with pytest.raises(PermissionError, match=f"{kind.__name__} was not minted by the gate"):
        kind(1, FORGED)
    with pytest.raises(PermissionError):
        kind(1, None)  # type: ignore[arg-type]  # the type checker refuses it first
    with pytest.raises(TypeError):
        kind(1)  # type: ignore[call-arg]  # likewise


def test_the_key_is_handed_out_once() -> None:
    with pytest.raises(PermissionError, match=r"belongs to statemachine\.gate"):
        take_mint_key()


def minted() -> Effect:
    request = add_request(open_world(), 1, "draining")
    (effect,) = Gate().fire(request, "reap").effects
    return effect


def test_an_effect_is_a_value_that_cannot_be_changed_nor_turned_into_another() -> None:
    effect = minted()
    assert isinstance(effect, FreeBlocks)
    assert (effect.subject, effect.detail) == (1, "cache")
    assert repr(effect) == "FreeBlocks(subject=1, detail='cache')"
    with pytest.raises(FrozenInstanceError):
        effect.subject = 2  # type: ignore[misc]  # the type checker refuses it first
    with pytest.raises((PermissionError, TypeError, ValueError)):
        replace(effect, subject=2)  # type: ignore[call-arg]  # likewise


def test_an_effect_does_not_carry_the_key_with_which_others_could_be_made() -> None:
    effect = minted()
    assert [field.name for field in fields(effect)] == ["subject", "detail"]
    assert not [name for name in dir(effect) if isinstance(getattr(effect, name), MintKey)]


def test_an_effect_travels_to_another_process_as_it_is() -> None:
    effect = minted()
    for traveller in (copy.copy(effect), pickle.loads(pickle.dumps(effect))):
        assert traveller == effect


def test_effects_are_told_apart_by_kind_subject_and_detail() -> None:
    gate = Gate()
    first, second = (gate.fire(add_request(open_world(), key, "draining"), "reap").effects[0] for key in (1, 2))
    assert first != second
    (terminal,) = gate.fire(add_request(open_world(), 1, abort_mark=True), "aborted").effects
    assert isinstance(terminal, Terminal)
    assert first != terminal


def test_every_word_of_the_rows_is_one_kind_and_every_kind_a_word_of_the_rows() -> None:
    named = {parse_effect(text).name for machine in MACHINES for row in machine.rows for text in row.effects}
    assert named == set(BY_WORD)
    assert {word: word_of(kind) for word, kind in BY_WORD.items()} == {word: word for word in BY_WORD}
    assert len(set(BY_WORD.values())) == len(BY_WORD)
