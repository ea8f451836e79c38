"""What the machines share is read off the rows, drawn and tabulated."""

from __future__ import annotations

import pytest

from quiesce.spec import FACTS, HELD_MODE_POLICIES, MACHINES, PASS_ORDER
from quiesce.spec.guards import parse_joint
from quiesce.statemachine import coupling
from tests.statemachine.geometry import laid_out
from tests.statemachine.tables_of import table_rows


def test_every_joint_move_is_in_the_coupling_and_nothing_else_is() -> None:
    declared = {
        (machine.name, joint.machine, joint.event)
        for machine in MACHINES
        for row in machine.rows
        for joint in map(parse_joint, row.also)
    }
    assert {(one.machine, one.other, event) for one in coupling.touches() for event in one.moves} == declared


@pytest.mark.parametrize(
    ("machine", "other", "variables"),
    [
        ("request", "engine", {"state", "goal", "granted"}),  # by name, and through the facts gate_open and accepting
        ("request", "step", {"state"}),  # `step[0].state`
        ("memory", "request", {"state"}),  # through any_request
        ("step", "request", {"abort_mark", "member"}),  # through the fact `runnable` of each member
    ],
)
def test_what_a_guard_reads_is_found_through_facts_and_quantifiers(machine: str, other: str, variables: set[str]) -> None:
    found = next(one for one in coupling.touches() if (one.machine, one.other) == (machine, other))
    assert variables <= set(found.reads)


def test_a_variable_that_a_row_writes_elsewhere_is_found() -> None:
    written = {(one.machine, one.other, name) for one in coupling.touches() for name in one.writes}
    assert written == {("engine", "request", "eos_mark"), ("weights", "request", "stale"), ("step", "request", "member")}


def test_the_pictures_name_every_machine_and_every_move() -> None:
    for text in (coupling.mermaid(), coupling.dot()):
        for one in coupling.touches():
            arrow = [
                line for line in text.splitlines() if line.lstrip().startswith(f"{one.machine} -") and f" {one.other}" in line
            ]
            assert bool(arrow) == bool(one.moves or one.writes)
            assert all(word in arrow[0] for word in (*one.moves, *one.writes))
            assert f"reads {one.other}: {', '.join(one.reads)}" in text or not one.reads


def test_nothing_covers_anything_in_the_picture() -> None:
    picture = laid_out(coupling.dot())
    assert set(picture.states) == {machine.name for machine in MACHINES}
    assert picture.overlaps() == []
    assert picture.crossed_labels() == []


def test_the_tables_have_the_pass_the_facts_the_joint_moves_and_the_policies() -> None:
    text = coupling.markdown()
    assert [(cells[0], cells[1]) for cells in table_rows(text, "Who touches whom")] == [
        (f"`{one.machine}`", f"`{one.other}`") for one in coupling.touches()
    ]
    assert [cells[1] for cells in table_rows(text, "Order of the pass")] == [
        f"`{machine}.{event}`" for machine, event in PASS_ORDER
    ]
    assert [(cells[0], cells[2], cells[3]) for cells in table_rows(text, "Facts")] == [
        (f"`{fact.name}`", f"`{fact.when}`", fact.sentence) for fact in FACTS
    ]
    joint = table_rows(text, "Moves made in the same instant")
    assert len(joint) == len([row for machine in MACHINES for row in machine.rows if row.also])
    assert [cells[0] for cells in table_rows(text, "What a held mode means")] == [
        f"`{policy.mode}`" for policy in HELD_MODE_POLICIES
    ]
