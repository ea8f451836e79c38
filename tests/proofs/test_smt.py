"""cvc5 as a second solver: it reads what z3 was asked and gives the same answers, on the tables and on mutants of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import z3

from quiesce.proofs import smt
from quiesce.proofs.edits import edited
from quiesce.proofs.induction import Kind, Prover
from quiesce.proofs.rules import RULES, Without
from quiesce.proofs.smt import Question
from quiesce.proofs.unbounded import all_of, any_of
from quiesce.spec import CATALOG


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return smt.questions()


def test_cvc5_gives_the_answers_that_z3_gave(asked: list[Question]) -> None:
    """An eighth of them, drawn; `quiesce prove --profile full` asks all."""
    drawn = random.Random(11).sample(asked, len(asked) // 8)
    assert {one.verdict for one in drawn} == {"sat", "unsat"}
    assert smt.disagreements(drawn) == []


def test_both_solvers_find_a_state_for_every_action_and_none_against_a_promise(asked: list[Question]) -> None:
    actions = Prover().world.model.actions
    possible = [one for one in asked if one.title.startswith(Kind.possible)]
    assert Counter(one.verdict for one in possible)["sat"] == len(actions), (
        "each, or without the earlier rows that speak for it"
    )
    assert {one.verdict for one in asked if one not in possible} == {"unsat"}


JUDGED = [rule for rule in RULES if rule.rule in ("R12", "R15b", "R25")]


@pytest.mark.parametrize("rule", JUDGED, ids=lambda rule: rule.rule)
def test_without_a_rule_both_solvers_find_the_same_claims_wrong(rule: Without) -> None:
    machine, machines = rule.edits[0].machine, edited(rule.edits)
    changed = set(CATALOG.machines[machine].rows) ^ set(machines[machine].rows)
    asked = smt.questions(machines, [str(row.event) for row in changed])
    assert [one.title for one in asked if one.verdict == "sat" and not one.title.startswith(Kind.possible)]
    assert smt.disagreements(asked) == []


# ---- the judge can fail -------------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_not_z3s_is_reported(asked: list[Question]) -> None:
    wrong = [replace(one, verdict={"sat": "unsat", "unsat": "sat"}[one.verdict]) for one in asked[:40:3]]
    assert [question for question, _ in smt.disagreements(wrong)] == wrong
    undecided = replace(asked[0], verdict="unknown")
    assert len(smt.disagreements([undecided])) == 1, "nobody agrees with what was not decided"


def test_a_claim_without_its_invariant_is_refuted_by_cvc5(asked: list[Question]) -> None:
    """The answers follow from the whole text: with nothing known of the state before, a promise is not kept."""
    question = next(one for one in asked if one.title.startswith(f"{Kind.kept} step[0].launch"))
    solver = z3.Solver()
    solver.from_string(question.text)
    *_, guard, claim = solver.assertions()
    alone = z3.Solver()
    alone.add(guard, claim)
    assert (smt.answer(question.text), smt.answer(smt.printed(alone, "sat"))) == ("unsat", "sat")


def test_nothing_and_one_thing_are_printed_as_the_standard_has_them() -> None:
    one = z3.Bool("one")
    assert [str(found) for found in (all_of([]), any_of([]), all_of([one]), any_of([one]))] == ["True", "False", "one", "one"]


def test_a_text_that_is_not_smt_lib_is_no_answer() -> None:
    with pytest.raises(RuntimeError):
        smt.answer("(assert (and ")


def test_the_command_writes_each_question_to_a_file_and_fails_where_the_solvers_differ(
    tmp_path: Path, asked: list[Question], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = asked[::200]
    monkeypatch.setattr(smt, "questions", lambda callers: few)
    assert smt.main([str(tmp_path)]) == 0
    written = sorted((tmp_path / "callers-1").iterdir())
    assert [smt.answer(path.read_text(encoding="utf-8")) for path in written] == [one.verdict for one in few]
    assert f"(set-info :status {few[0].verdict})" in written[0].read_text(encoding="utf-8")
    few[0] = replace(few[0], verdict="sat")
    assert smt.main([]) == 1
    assert f"DIFFERS  {few[0].title}: z3 sat, cvc5 unsat" in capsys.readouterr().out
