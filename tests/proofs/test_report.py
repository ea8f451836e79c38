"""The report says what the evidence says, what was not run included, in Markdown and in one HTML file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from quiesce.proofs import composed, properties, report, search
from quiesce.proofs.document import Bullets, Folded, Picture, Report, Section, Table, Text, to_markdown
from quiesce.proofs.evidence import By, Evidence, Judgement, Mutant, Proof, Rule, Run, Semantics
from quiesce.proofs.model import Builder
from quiesce.proofs.report_html import inline, to_html
from quiesce.proofs.report_verdict import disagreements
from quiesce.proofs.tool_versions import tool_versions
from quiesce.proofs.world import World
from quiesce.spec import MACHINES, PROPERTIES
from quiesce.spec.language import Fairness
from quiesce.statemachine import graphviz
from quiesce.statemachine.trace import spec_hash

HERE = ("engine", "N=1", Semantics.one_pass)
TOOLS = {"SPIN": "6.5.2", "cc": "12.2.0"}


def evidence() -> Evidence:
    """A little of everything, all of it good."""
    return Evidence(
        spec_hash(), "full",
        runs=[Run(*HERE, By.explorer, 100, 700, 2.5, 12.0, 9), Run(*HERE, By.spin, 100, 700, 4.0, 20.0),
              Run("engine", "N=2", Semantics.interleaved, By.explorer, 5000, 90000, 60.0)],
        judgements=[Judgement("S1_residency", *HERE, By.explorer, True), Judgement("S1_residency", *HERE, By.spin, True),
                    Judgement("L1_answered[0]", *HERE, By.search, True)],
        proofs=[Proof("S1_residency", By.z3, 300, 0), Proof("a_lemma", By.z3, 20, 0), Proof("", By.z3, 50, 0)],
        witnesses=[Judgement("W1_two_steps_in_flight", *HERE, By.explorer, True, ("engine.ready", "step[0].plan"))],
        mutants=[Mutant("request.reap[20] when: drop x", "request", "drop conjunct", ("S7_no_free_under_a_writer[0]",), ("a",), "N=1"),
                 Mutant("request.sweep[10]: drop", "request", "drop row", ("S1_residency", "S7_no_free_under_a_writer[1]")),
                 Mutant("engine.reopen when: drop y", "engine", "drop conjunct", certificate="same graph at N=1 and N=2")],
        rules=[Rule("R15", "Blocks wait for both slots.", "the guard of reap", ("S7_no_free_under_a_writer",), ("engine.ready", "request[0].reap"),
                    "a block was written after it was freed")],
        fairness={"step.land": ("L1_answered[0]", "L3_drains_end")},
    )  # fmt: skip


def shown(found: Evidence, date: str = "") -> str:
    return to_markdown(report.build(found, TOOLS, date))


@cache
def whole() -> tuple[str, str]:
    """The Markdown and the HTML of the same evidence."""
    built = report.build(evidence(), TOOLS)
    return to_markdown(built), to_html(built)


def section(text: str, title: str) -> str:
    """What stands under a heading of any level, what is below it included."""
    found = re.search(rf"^(#+) {re.escape(title)}\n", text, re.MULTILINE)
    assert found is not None
    return re.split(rf"^#{{2,{len(found[1])}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


# ---- the first page ---------------------------------------------------------------------------------------------------------


def test_the_first_page_counts_what_was_found_and_names_the_tools() -> None:
    page = section(whole()[0], "Verdict")
    for phrase in (
        "**Everything that was judged holds.**",
        "2 properties judged in 2 exhausted worlds (3 judgements by 3 judges)",
        "370 obligations for 2 sentences",
        "2 of 3 mutants of the tables killed by named properties, 1 shown to be none, 0 open",
        "1 of 1 rule shown to be needed",
        "Every action was asked to be possible",
        f"declaration `{spec_hash()}`, profile `full`; tools: SPIN 6.5.2, cc 12.2.0.",
    ):
        assert phrase in page


def test_what_does_not_hold_is_on_the_first_page_with_its_story() -> None:
    found = evidence()
    found.judgements.append(Judgement("S2_running_is_open", *HERE, By.explorer, False, ("engine.ready", "engine.fail")))
    found.witnesses.append(Judgement("W3_retracting_finishes", *HERE, By.explorer, False))
    found.proofs.append(Proof("stopped_is_empty", By.z3, 7, 2))
    page = section(shown(found), "Verdict")
    assert "**3 findings against the declaration, listed below.**" in page
    assert (
        "`S2_running_is_open` does not hold: engine N=1, one pass, by our explorer (C)\n  - story: `engine.ready` → `engine.fail`"
        in page
    )
    assert "`W3_retracting_finishes` never happens" in page
    assert "`stopped_is_empty`: 2 of 7 obligations not met, by z3" in page


@pytest.mark.parametrize(("num_states", "num_edges"), [(99, 700), (100, 699)])
def test_judges_that_counted_differently_are_a_finding(num_states: int, num_edges: int) -> None:
    found = evidence()
    found.runs[1] = replace(found.runs[1], num_states=num_states, num_edges=num_edges)
    (told,) = disagreements(found)
    assert told.startswith("engine N=1, one pass: SPIN ")
    text = shown(found)
    assert "**1 finding against the declaration" in text
    assert "**they disagree**" in section(text, "Exhausted")


def test_judges_that_found_other_verdicts_are_a_finding() -> None:
    found = evidence()
    found.judgements[1] = replace(found.judgements[1], holds=False)
    assert disagreements(found) == ["`S1_residency` in engine N=1, one pass: SPIN does not, our explorer (C) holds"]


def test_the_worlds_are_listed_with_each_judges_figures_and_their_agreement() -> None:
    page = section(whole()[0], "Exhausted")
    assert "| engine | N=1 | one pass | SPIN | 100 | 700 |  | 0 | 4.0 | 20 | 2 judges agree |" in page
    assert "| ″ | ″ | ″ | our explorer (C) | 100 | 700 | 9 | 0 | 2.5 | 12 |  |" in page
    assert "| engine | N=2 | interleaved | our explorer (C) | 5,000 | 90,000 |  | 0 | 60.0 |  | one judge |" in page


def test_what_was_never_run_is_said() -> None:
    page = section(whole()[0], "Never run")
    assert "- machines in no world that was explored: `operation`, `stream`, `session`, `link`" in page
    assert "- judges that were not asked: Rumur, cvc5" in page
    assert "`S2_running_is_open`" in page
    assert "`S1_residency`" not in page


def test_a_rule_that_breaks_nothing_is_not_counted_as_needed_and_an_unasked_question_is_named() -> None:
    found = evidence()
    found.rules.append(replace(found.rules[0], name="R4", broken=(), story=(), on_the_engine=""))
    found.proofs.pop()
    page = section(shown(found), "Verdict")
    assert "1 of 2 rules shown to be needed" in page
    assert "Whether every action is possible was not asked." in page
    assert "breaks: nothing<br>on the real engine: not driven" in section(shown(found), "Rules and seeds")


def test_evidence_of_other_tables_says_so_first() -> None:
    text = shown(replace(evidence(), spec="0123456789abcdef"))
    assert (
        section(text, "Verdict")
        .lstrip()
        .startswith("**The tables have changed since**: this evidence is of `0123456789abcdef`")
    )


def test_of_nothing_every_part_says_that_it_was_not_run() -> None:
    text = shown(Evidence(spec_hash(), "none"))
    for title in ("Proved for any number of requests", "Exhausted", "Rules and seeds", "Mutants", "Fairness", "Never run"):
        assert "not run in this profile" in section(text, title)


# ---- the body ---------------------------------------------------------------------------------------------------------------


def test_every_property_is_there_with_its_sentence_and_what_was_found_of_it() -> None:
    page = section(whole()[0], "Properties")
    assert sorted(re.findall(r"^- \*\*(\w+)\*\*: ", page, re.MULTILINE)) == sorted(prop.name for prop in PROPERTIES)
    assert all(f"- **{prop.name}**: {prop.sentence}" in page for prop in PROPERTIES)
    first = page.split("- **S2_")[0]
    assert "verdict: holds in engine N=1, one pass (SPIN, our explorer (C))" in first
    assert "any number of requests: proved, 300 obligations, 0 not met (z3)" in first
    assert "mutants killed: 1, alone: 0" in first
    assert "mutants killed: 2, alone: 1" in page.split("- **S7_no_free")[1].split("- **")[0]
    assert "rests on the fairness of: `step.land`" in page.split("- **L1_answered**")[1].split("- **")[0]
    assert "shortest: `engine.ready` → `step[0].plan`" in page.split("- **W1_")[1].split("- **")[0]


def test_every_machine_is_there_with_every_row_and_reason() -> None:
    page = section(whole()[0], "Machines")
    for machine in MACHINES:
        part = section(page, machine.name)
        assert "```mermaid" in part
        assert all(f" {row.why} |" in part for row in machine.rows)
        assert all(entry.reason in part for entry in machine.ignored)
        assert all(entry.how_to in part for entry in machine.refused)


def test_rules_say_what_broke_and_what_the_real_engine_did() -> None:
    page = section(whole()[0], "Rules and seeds")
    assert (
        "- **R15**: Blocks wait for both slots.\n  - taken away: the guard of reap<br>breaks: `S7_no_free_under_a_writer`"
        in page
    )
    assert "on the real engine: a block was written after it was freed" in page


def test_mutants_are_counted_by_kind_and_survivors_are_explained() -> None:
    page = section(whole()[0], "Mutants")
    assert "| drop conjunct | 2 | 1 | 1 | 0 |" in page
    assert "| all | 3 | 2 | 1 | 0 |" in page
    assert "engine, each with its certificate (1)" in page
    assert "`engine.reopen when: drop y`: same graph at N=1 and N=2" in page
    assert "**Open**" not in page
    found = evidence()
    found.mutants.append(Mutant("link.lose[1]: drop", "link", "drop row", size="N=2"))
    assert "**Open**" in shown(found)
    assert "- `link.lose[1]: drop`, up to N=2" in shown(found)


def test_every_fair_event_names_what_provides_it_and_what_rests_on_it() -> None:
    page = section(whole()[0], "Fairness")
    fair = [
        f"`{machine.name}.{event.name}`"
        for machine in MACHINES
        for event in machine.events
        if event.fairness is not Fairness.none
    ]
    assert re.findall(r"^\| (`[\w.]+`) \|", page, re.MULTILINE) == fair
    (land,) = (line for line in page.splitlines() if line.startswith("| `step.land` |"))
    assert land.endswith("| `L1_answered`, `L3_drains_end` |")


# ---- both forms -------------------------------------------------------------------------------------------------------------


def test_the_same_evidence_gives_the_same_bytes_and_no_date_unless_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Graphviz: the pictures have a test of their own
    first, second = (report.write(evidence(), tmp_path / name, TOOLS) for name in ("1", "2"))
    assert [path.name for path in first] == ["REPORT.md", "report.html"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert "2031-01-02" in section(shown(evidence(), "2031-01-02"), "Verdict")
    assert "Not drawn: dot is not installed; it comes with the Debian package graphviz" in first[1].read_text(encoding="utf-8")


def test_the_html_needs_nothing_but_itself_and_every_link_leads_somewhere() -> None:
    page = whole()[1]
    assert not re.search(r"<(link|img|iframe|object)\b|<script[^>]+src|@import|url\(", page)
    assert {address for address in re.findall(r'(?:href|src)="([^"]*)"', page) if not address.startswith("#")} <= {""}
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert [name for name, count in ids.items() if count > 1] == []
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_html_says_what_the_markdown_says() -> None:
    text, page = whole()
    plain = re.sub(r"<[^>]+>", "", page.replace("<wbr>", ""))
    for prop in PROPERTIES:
        assert prop.name in plain
    assert text.count("<details>") + text.count("```mermaid") == page.count("<details")
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == page.count("<h2>")
    assert len(re.findall(r"^### ", text, re.MULTILINE)) == page.count("<h3>")


def test_the_pictures_are_inside_where_graphviz_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = '<svg width="10pt" height="20pt">\n<g id="s_up"></g></svg>\n'
    monkeypatch.setattr("quiesce.proofs.report_html.svg", lambda text: drawn)
    picture = Picture("link", "flowchart TB\n", graphviz.dot(MACHINES[-1]))
    page = to_html(Report("t", (Section("Machines", (picture,)),)))
    assert '<svg style="width: 10pt" role="img">' in page
    assert 'id="link-s_up"' in page
    assert "<pre>flowchart TB\n</pre>" in page


def test_markdown_and_html_show_each_kind_of_block() -> None:
    blocks = (Text("a `b` **c** <i>"), Bullets((("x", ("y",)),)), Table(("k",), (("v | w",),)), Folded("more", (Text("z"),)))
    built = Report("t", (Section("One thing", blocks),))
    assert to_markdown(built).splitlines()[4:] == [
        "a `b` **c** <i>", "", "- x", "  - y", "", "| k |", "| --- |", "| v \\| w |", "", "<details><summary>more</summary>", "", "z", "", "</details>"
    ]  # fmt: skip
    page = to_html(built)
    assert "<p>a <code>b</code> <strong>c</strong> &lt;i&gt;</p>" in page
    assert "<ul><li>x<ul><li>y</li></ul></li></ul>" in page
    assert '<td data-label="k">v | w</td>' in page
    assert "<details><summary>more</summary><p>z</p></details>" in page
    assert inline("`a.b`") == "<code>a.<wbr>b</code>"


def test_the_report_of_a_real_run_can_be_reviewed() -> None:
    builder = Builder(World.engine(0))
    graph = search.explore(builder.build(), one_pass=True)
    here = ("engine", "N=0", Semantics.one_pass, By.search)
    guards = {name: search.compile_guard(tree) for name, tree in properties.always(builder).items()}
    found = Evidence(spec_hash(), "quick", [Run(*here, len(graph.states), graph.num_edges, 0.1)])
    found.judgements = [Judgement(name, *here, all(map(guard, graph.states))) for name, guard in guards.items()]
    text = to_markdown(report.build(found, TOOLS, view=composed.view(0)))
    assert "**Everything that was judged holds.**" in text
    assert f"| {len(graph.states):,} | {graph.num_edges:,} |" in text
    assert text.count("\n") <= 1500


def test_versions_are_asked_of_the_tools_and_missing_ones_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool_versions()["SPIN"] == "missing"
    (tmp_path / "spin").write_text("#!/bin/sh\necho Spin Version 6.5.2 -- 6 December 2019\n")
    (tmp_path / "spin").chmod(0o755)
    assert tool_versions()["SPIN"] == "6.5.2"
