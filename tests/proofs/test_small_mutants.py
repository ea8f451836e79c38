"""Mutants of the small worlds: our explorer and SPIN say the same of each, and one that breaks nothing is shown to be alike."""

from __future__ import annotations

import pytest

from quiesce.proofs import small_mutants
from quiesce.proofs.mutants import mutations
from quiesce.proofs.world import World
from tests.statemachine.tools import require_tool

ALL = {mutation.name: mutation for mutation in mutations(("link", "stream"))}


def test_there_are_many_and_no_two_are_called_the_same() -> None:
    found = [mutation.name for machines in small_mutants.SEEN_FROM_HERE.values() for mutation in mutations(machines)]
    assert len(found) == len(set(found)) > 200


@pytest.mark.parametrize(
    ("mutation", "broken"),
    [
        ("link.restart[5] no such row", "L4d_a_loss_ends"),
        ('stream.ack[7] when: drop "not cancel"', "S13b_no_cancel_is_forgotten[0]"),
    ],
)
def test_both_judges_say_the_same_and_a_promise_is_broken_by_name(mutation: str, broken: str) -> None:
    require_tool("spin", "spin")
    found, agree = small_mutants.judged(ALL[mutation], World.link(1))
    assert agree
    assert broken in found


def test_a_guard_that_is_implied_is_shown_to_be_alike() -> None:
    (implied,) = [m for m in mutations(("session",)) if m.name == 'session.turn[1] when: drop "turn_stream_closed"']
    (not_implied,) = [m for m in mutations(("session",)) if m.name == "session.close[6] leads to idle"]
    assert small_mutants.is_alike(implied, (World.session(1),))
    assert not small_mutants.is_alike(not_implied, (World.session(1),))
