"""How a status and a machine show themselves in a notebook."""

from __future__ import annotations

import shutil
from types import MappingProxyType

import pytest

from quiesce.engine import reprs
from quiesce.engine.outputs import Blocks, Status
from quiesce.spec import MACHINES
from quiesce.statemachine import notebook
from quiesce.statemachine.diagram import mermaid
from quiesce.statemachine.machine import sealed_machines

STATUS = Status(
    engine="running", admission="accept", memory=MappingProxyType({"weights": "resident"}), weights=("<b>", "stable"),
    pause_owners=MappingProxyType({}), operation=None, requests=MappingProxyType({"running": 3}), sessions=0, streams=3, steps_in_flight=2,
    blocks=Blocks(10, 4, 1, 5, 0), epoch=1, accepted=7, rejected=0, finished=MappingProxyType({"stop": 4, "abort": 0}),
)  # fmt: skip


def test_a_status_is_a_table_of_what_is_not_nothing() -> None:
    shown = reprs.status_html(STATUS)
    assert shown.startswith("<table><tr>")
    assert "3 running" in shown
    assert "4 free, 1 cached, 5 held, 0 fenced of 10" in shown
    assert "paused by" not in shown
    assert "abort" not in shown


def test_what_a_caller_named_is_escaped() -> None:
    assert "<b>" not in reprs.status_html(STATUS)
    assert "&lt;b&gt;" in reprs.status_html(STATUS)


def test_without_graphviz_a_machine_is_its_mermaid_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert notebook.machine_svg(MACHINES[0]) is None
    shown = notebook.machine_html(MACHINES[0])
    assert shown.startswith("<pre>")
    assert mermaid(MACHINES[0]).splitlines()[0] in shown


def test_a_program_that_fails_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    assert notebook.machine_svg(MACHINES[0]) is None


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz (apt install graphviz)")
def test_with_graphviz_a_machine_is_drawn_with_all_its_states() -> None:
    drawn = notebook.machine_svg(MACHINES[0])
    assert drawn is not None
    assert drawn.startswith("<svg")
    assert all(str(state) in drawn for state in MACHINES[0].states)


def test_a_status_and_a_machine_show_themselves_in_a_notebook() -> None:
    assert STATUS._repr_html_() == reprs.status_html(STATUS)
    machine = sealed_machines()["request"]
    assert machine._repr_html_() == notebook.machine_html(machine.table)
    assert machine._repr_svg_() == notebook.machine_svg(machine.table)
