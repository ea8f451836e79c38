"""Engine, memory and weights together: read off the reachable states, drawn, and readable."""

from __future__ import annotations

import re
from functools import cache

import pytest

from quiesce.engine import cli
from quiesce.proofs import composed
from quiesce.proofs.composed import Combination, View
from quiesce.spec.vocabulary import MemoryState
from tests.statemachine.geometry import laid_out
from tests.statemachine.tables_of import table_rows


@cache
def seen() -> View:
    """Without requests: milliseconds, and all combinations but none of the moves that only requests make."""
    return composed.view(0)


def test_only_combinations_that_the_properties_allow_are_reached() -> None:
    assert Combination("running", "resident", "resident", "stable") in seen().combinations
    for one in seen().combinations:
        if one.engine in ("running", "draining", "paused", "starting"):
            assert {one.weights_tag, one.kv_tag} == {"resident"}
        if one.engine == "sleeping":
            assert {one.weights_tag, one.kv_tag} == {"released"}
        if one.weights == "committing":
            assert MemoryState.releasing not in (one.weights_tag, one.kv_tag)


def test_every_combination_stands_in_one_box_and_in_the_table() -> None:
    view = seen()
    assert {one.box for one in view.combinations} == set(view.boxes)
    rows = table_rows(composed.markdown(view), "Which states go together")
    assert sum(cell.count("`") // 2 for cells in rows for cell in cells[1:]) == len(view.combinations)


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        (("resident", "resident"), "resident"),
        (("released", "resident"), "partly away"),
        (("released", "released"), "away"),
        (("resident", "undefined"), "undefined"),
        (("released", "undefined"), "partly away"),
        (("restoring", "released"), "in transit"),
    ],
)
def test_two_tags_are_summed_up_in_one_word(tags: tuple[str, str], word: str) -> None:
    assert composed.residency(*tags) == composed.residency(*tags[::-1]) == word


def test_what_leads_to_the_end_is_said_and_the_rest_is_drawn() -> None:
    view = seen()
    drawn = [(before, after) for before, after in view.arrows if after.engine not in composed.ENDS]
    arrows = r"^    (\w+) -(?:-?>\|.*\|)?(?:>)? (\w+)"
    for text in (composed.dot(view), composed.mermaid(view)):
        assert re.findall(arrows, text, re.MULTILINE) == [(before.name, after.name) for before, after in drawn]
        assert "To failed, not drawn: engine.fail, from starting, running, " in text


def test_nothing_covers_anything_in_the_picture() -> None:
    picture = laid_out(composed.dot(seen()))
    assert set(picture.states) == {box.name for box in seen().boxes}
    assert picture.overlaps() == []
    assert picture.crossed_labels() == []


def test_the_command_shows_it_in_every_form(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    view = seen()
    monkeypatch.setattr(composed, "view", lambda: view)
    for form, text in (("mermaid", composed.mermaid(view)), ("dot", composed.dot(view)), ("md", composed.markdown(view))):
        assert cli.main(["diagram", "composed", "--format", form]) == 0
        assert capsys.readouterr().out == text
