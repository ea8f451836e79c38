"""What a reviewer is shown of a change: rows that came, went or changed, and everything else that did."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import pytest

from quiesce.engine import cli
from quiesce.spec import FACTS, MACHINES, PROPERTIES
from quiesce.spec.language import Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.statemachine import difference_report
from quiesce.statemachine.difference import Difference, MachineDifference, compare
from quiesce.statemachine.difference_report import flowchart, markdown, marks, write_pictures
from quiesce.statemachine.graphviz import Mark
from quiesce.statemachine.revisions import Declaration, RevisionError, two
from tests.statemachine.tools import require_tool

ROOT = Path(__file__).resolve().parents[2]


class Door(StrEnum):
    """A small lifecycle."""

    shut = "shut"
    open = "open"
    locked = "locked"


DOOR = Machine(
    name="door", file="spec/door.py", purpose="A door.", states=Door, initial="shut", terminal=(),
    meanings={"shut": "closed, not locked", "open": "one can pass", "locked": "needs the key"},
    variables={"key": ("no", "yes")},
    events=(Event("push", Owner.client), Event("pull", Owner.client), Event("lock", Owner.operator), Event("rust", Owner.environment)),
    rows=(
        Row("push", ("shut",), "open", "it opens"),
        Row("pull", ("open",), "shut", "it closes"),
        Row("lock", ("shut",), "locked", "with the key", when="key"),
        Row("lock", ("shut",), None, "without", when="not key"),
        Row("push", ("locked",), "open", "with the key", when="key", sets=("key := no",)),
    ),
    ignored=(Ignored("rust", ("*",), "doors last"),),
    refused=(
        Refused("push", ("open",), Error.TransitionConflict, "pull first"),
        Refused("push", ("locked",), Error.Unavailable, "find the key"),
        Refused("pull", ("shut", "locked"), Error.TransitionConflict, "push first"),
        Refused("lock", ("*",), Error.TransitionConflict, "pull first"),
    ),
)  # fmt: skip


def declared(*machines: Machine, name: str = "now") -> Declaration:
    return Declaration(name, {machine.name: machine for machine in machines}, {}, {}, ("door.rust",))


def changed(after: Machine) -> MachineDifference:
    """The one machine that is not as the door was."""
    (only,) = compare(declared(DOOR, name="before"), declared(after)).machines
    return only


def with_row(number: int, **fields: object) -> Machine:
    rows = list(DOOR.rows)
    rows[number] = replace(rows[number], **fields)  # type: ignore[arg-type]
    return replace(DOOR, rows=tuple(rows))


def told(found: MachineDifference) -> str:
    return markdown(Difference("before", "now", (found,), ()))


def test_nothing_changed_is_said_and_is_false() -> None:
    found = compare(declared(DOOR, name="before"), declared(DOOR))
    assert not found
    assert markdown(found) == "Nothing changed in the lifecycles between `before` and `now`.\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("when", "not key"),
        ("target", "shut"),
        ("source", ("shut", "locked")),
        ("sets", ("key := yes",)),
        ("effects", ("ring",)),
        ("also", ("bell.ring",)),
        ("why", "because"),
        ("event", "pull"),
    ],
)
def test_a_row_of_which_one_field_changes_is_changed_and_not_replaced(field: str, value: object) -> None:
    found = changed(with_row(2, **{field: value}))
    (row,) = found.rows
    assert row.before is not None
    assert row.after is not None
    assert (row.before[0], row.after[0], [name for name, _, _ in row.fields]) == (2, 2, [field])
    assert f"\n  - {field}: " in told(found)


def test_a_row_that_came_and_one_that_went_are_told_whole() -> None:
    rows = (*DOOR.rows[1:], Row("rust", ("open",), "locked", "it jams", when="key", effects=("squeak",)))
    text = told(changed(replace(DOOR, rows=rows)))
    assert "- − row 0: `push`, `shut` → `open`: it opens" in text
    assert "- + row 4: `rust`, `open` → `locked`; when `key`; effects `squeak`: it jams" in text
    assert "| `door` | 1 | 1 | 0 | 0 | 0 |" in text


def test_rows_with_the_same_cells_are_matched_by_what_they_say() -> None:
    found = changed(replace(DOOR, rows=(*DOOR.rows[:2], replace(DOOR.rows[3], why="reworded"), DOOR.rows[4])))
    pairs = {(row.before[0] if row.before else None, row.after[0] if row.after else None) for row in found.rows}
    assert pairs == {(2, None), (3, 2)}


def test_rows_of_one_cell_in_another_order_are_told_because_the_first_is_taken() -> None:
    rows = list(DOOR.rows)
    rows[2], rows[3] = rows[3], rows[2]
    found = changed(replace(DOOR, rows=tuple(rows)))
    assert (found.rows, found.swapped) == ((), ((2, 3),))
    assert "rows 2 and 3 are tried in the other order" in told(found)


def test_rows_of_other_cells_may_stand_in_any_order() -> None:
    rows = (DOOR.rows[1], DOOR.rows[0], *DOOR.rows[2:])
    assert not compare(declared(DOOR), declared(replace(DOOR, rows=rows)))


def test_states_events_variables_and_the_first_state_are_compared() -> None:
    events = (replace(DOOR.events[0], fairness=Fairness.weak), *DOOR.events[1:])
    after = replace(
        DOOR,
        events=events,
        variables={"key": ("no", "yes", "lost")},
        meanings={**DOOR.meanings, "open": "wide"},
        initial="open",
    )
    lines = told(changed(after)).splitlines()
    assert "- ± state `open`: `one can pass` → `wide`" in lines
    assert "- ± variable `key`: `no, yes` → `no, yes, lost`" in lines
    assert lines[lines.index("- ± event `push`") + 1] == "  - fairness: `none` → `weak`"
    assert lines[lines.index("- ± machine `door`") + 1] == "  - initial: `shut` → `open`"


def test_a_cell_is_told_by_the_part_of_its_answer_that_changed() -> None:
    refused = (replace(DOOR.refused[0], how_to="pull it"), *DOOR.refused[1:])
    text = told(changed(replace(DOOR, refused=refused, ignored=(replace(DOOR.ignored[0], reason="oiled"),))))
    assert (
        "- ± cell `push in open`: `refused with TransitionConflict: pull first` → `refused with TransitionConflict: pull it`"
        in text
    )
    assert "- ± cell `rust in shut, open, locked`: `ignored: doors last` → `ignored: oiled`" in text
    more = (Refused("push", ("open",), Error.EngineDead, "build a new one", when="key"), *DOOR.refused)
    text = told(changed(replace(DOOR, refused=more)))
    assert "- ± cell `push in open`: nothing → refused when `key` with EngineDead: build a new one" in text


def test_a_machine_that_came_or_went_is_told_with_all_its_rows() -> None:
    for before, after, sign in ((declared(), declared(DOOR), "+"), (declared(DOOR), declared(), "−")):
        text = markdown(replace(compare(before, after), others=()))
        assert f"- {sign} machine `door`: A door." in text
        assert len(re.findall(rf"^- \{sign} row \d", text, re.MULTILINE)) == len(DOOR.rows)


def test_facts_properties_and_the_order_of_the_pass_are_compared() -> None:
    fact, prop = FACTS[0], PROPERTIES[0]
    before = Declaration("before", {}, {fact.name: fact}, {prop.name: prop}, ("door.rust", "door.push"))
    after = Declaration("now", {}, {fact.name: replace(fact, when="true")}, {}, ("door.push", "door.rust"))
    assert compare(before, after).only("coupling") == compare(before, after)
    assert not compare(before, after).only("door")
    lines = markdown(compare(before, after)).splitlines()
    assert lines[lines.index(f"- ± fact `{fact.name}`") + 1] == f"  - when: `{fact.when}` → `true`"
    assert f"- − property `{prop.name}`: {prop.sentence}" in lines
    assert "- ± order of the pass: `door.rust, door.push` → `door.push, door.rust`" in lines


def test_the_pictures_show_what_went_before_and_what_came_after_without_needing_colour(tmp_path: Path) -> None:
    found = changed(
        replace(DOOR, rows=(*DOOR.rows[1:4], replace(DOOR.rows[4], when="true"), Row("rust", ("open",), "locked", "it jams")))
    )
    before, after = marks(found)
    assert (before, after) == ({0: Mark.removed, 4: Mark.changed}, {3: Mark.changed, 4: Mark.added})
    text = flowchart(DOOR, before)
    number = [line for line in text.splitlines() if ">|" in line].index('    s_shut ==>|"− push"| s_open')
    assert f"    linkStyle {number} stroke:{Mark.removed}," in text
    assert '    s_open -->|"pull"| s_shut' in text
    report = told(found)
    assert report.count("```mermaid") == 2
    assert report.count("<details>") == report.count("</details>") == 2
    require_tool("dot", "graphviz")
    paths = write_pictures(Difference("before", "now", (found,), ()), tmp_path)
    assert [path.name for path in paths] == [f"door.{word}.{kind}" for word in ("after", "before") for kind in ("dot", "svg")]
    assert Mark.added in paths[1].read_text(encoding="utf-8")
    assert Mark.removed in paths[3].read_text(encoding="utf-8")


# ---- revisions --------------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three commits: without a declaration, with today's, and with one guard of it changed; then an edit that is not committed."""
    root = tmp_path_factory.mktemp("repository")
    git(root, "init", "-q")
    (root / "README.md").write_text("empty\n")
    git(root, "add", "README.md")
    git(root, "commit", "-q", "-m", "nothing yet")
    (root / "spec").mkdir()
    for path in (ROOT / "spec").glob("*.py"):
        (root / "spec" / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    git(root, "add", "spec")
    git(root, "commit", "-q", "-m", "declared")
    edit(root, "request.py", "gate_open and not marked and not oldest", "gate_open and not marked")
    git(root, "commit", "-q", "-a", "-m", "anybody yields")
    edit(root, "weights.py", "whole, of one version", "whole")
    return root


def edit(root: Path, name: str, old: str, new: str) -> None:
    path = root / "spec" / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_two_revisions_are_read_by_processes_of_their_own_and_compared(repository: Path) -> None:
    found = compare(*two("HEAD~1..HEAD", repository / "spec"))
    (machine,) = found.machines
    assert (machine.name, [row.fields for row in machine.rows], found.others) == (
        "request",
        [(("when", "gate_open and not marked and not oldest", "gate_open and not marked"),)],
        (),
    )


def test_a_revision_is_compared_with_the_checkout_as_it_stands(repository: Path) -> None:
    found = compare(*two("HEAD", repository))
    assert [(one.name, [change.name for change in one.others]) for one in found.machines] == [("weights", ["stable"])]
    assert (found.before, found.after) == ("HEAD", "the checkout")


def test_what_is_read_is_what_is_declared(repository: Path) -> None:
    declaration, _ = two("HEAD~1..HEAD", repository)
    today = Declaration(
        declaration.name, {one.name: one for one in MACHINES}, {one.name: one for one in FACTS},
        {one.name: one for one in PROPERTIES}, declaration.pass_order,
    )  # fmt: skip
    assert not compare(declaration, today)
    assert not compare(today, declaration)


@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        ("nothing", "nothing is no revision of this repository; a shallow clone has only the last ones"),
        ("--help", "--help is no revision"),
        ("HEAD~2", "HEAD~2 has no spec/"),
        ("", "'' is neither REV nor REV..REV2"),
        ("HEAD..", "'HEAD..' is neither REV nor REV..REV2"),
    ],
)
def test_a_revision_that_cannot_be_is_told_in_one_line(repository: Path, revision: str, reason: str) -> None:
    with pytest.raises(RevisionError, match=re.escape(reason)) as error:
        two(revision, repository)
    assert "\n" not in str(error.value)


def test_a_malformed_or_foreign_declaration_is_told_in_one_line(repository: Path) -> None:
    git(repository, "stash", "-q")
    edit(repository, "request.py", 'when="accepting"', 'when="acepting"')
    with pytest.raises(RevisionError, match=r"the checkout: .*spec/request.py, row 0 \(submit\): 'acepting'"):
        two("HEAD", repository)
    git(repository, "checkout", "-q", "spec")
    edit(repository, "language.py", "    sentence: str\n    judges", "    sentence: str\n    colour: str\n    judges")
    with pytest.raises(RevisionError, match="the checkout: its declaration cannot be read"):
        two("HEAD", repository)
    git(repository, "checkout", "-q", "spec")
    edit(repository, "language.py", "    shifts: bool = False\n", '    shifts: bool = False\n    colour: str = ""\n')
    with pytest.raises(RevisionError, match=r"in another language than today's: .*colour"):
        two("HEAD", repository)
    git(repository, "checkout", "-q", "spec")
    git(repository, "stash", "pop", "-q")


def test_outside_a_checkout_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match="not a git repository"):
        two("HEAD", tmp_path)


def test_the_command_prints_the_markdown_and_writes_the_pictures(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository / "spec")
    assert cli.main(["diagram", "--against", "HEAD~1..HEAD", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == difference_report.markdown(compare(*two("HEAD~1..HEAD")))
    assert {"request.before.dot", "request.after.dot"} <= {path.name for path in tmp_path.iterdir()}
    assert cli.main(["diagram", "link", "--against", "HEAD~1..HEAD", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("Nothing changed")
    assert cli.main(["diagram", "--against", "HEAD~1..HEAD~1", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("Nothing changed")
    assert cli.main(["diagram", "composed", "--against", "HEAD"]) == 2
    assert capsys.readouterr().err.startswith("quiesce diagram: composed is explored")
    assert cli.main(["diagram", "--against", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("quiesce diagram: nothing is no revision")
