"""Drawn programs over real HTTP, against a server that is short of everything."""

from __future__ import annotations

from quiesce.stateful.fuzz.through_http import hunt

SEEDS = range(13, 17)


def test_programs_over_http_are_answered_truly_and_leave_nothing() -> None:
    assert hunt(SEEDS) == {}


def test_programs_whose_core_is_killed_are_answered_truly_by_the_next() -> None:
    assert hunt(SEEDS[:1], kills=True) == {}
