"""A second solver: every question that `proofs/induction.py` asks z3, printed as SMT-LIB 2 and put to cvc5.

`python -m quiesce.proofs.smt [FOLDER]` asks all of them and says where the two differ; with a folder, each question becomes a file in
it, with z3's answer as its expected status, for any other solver to read.

Each question stands for itself: the types, the invariant, the guard, the claim. What the two solvers share is the formula; parsing,
quantifiers, bit vectors and search are cvc5's own. "unsat" is what is to be shown; "sat" is wanted where an action is to be possible,
and is what a claim that fails gives. As no function leads back into the sort of requests, a "sat" has a finite world: cvc5 is told to
look for one (`finite-model-find`), and without that option it answers "unknown" to every one of them.

Trap: SMT-LIB has no `and` or `or` of fewer than two; `unbounded.all_of` and `any_of` make none.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cvc5
import z3

from quiesce.proofs.induction import MILLISECONDS, Prover
from quiesce.proofs.model import Action
from quiesce.proofs.unbounded import Unbounded
from quiesce.spec.language import Machine


@dataclass(frozen=True, slots=True)
class Question:
    """One question, as z3 was asked and answered it."""

    title: str
    """`kept request[this].abort, row 3: all that it touches`."""
    verdict: str
    """sat, unsat or unknown."""
    text: str
    """SMT-LIB 2."""


def questions(
    machines: Mapping[str, Machine] | None = None, events: Sequence[str] = (), callers: Sequence[str] = ("caller",)
) -> list[Question]:
    """All that z3 is asked, or what it is asked about the actions of some events."""
    found: list[Question] = []
    prover = Prover(
        machines,
        callers=callers,
        heard=lambda title, verdict, solver: found.append(Question(title, verdict, printed(solver, verdict))),
    )
    prover.run(_of(prover.world, events) if events else None)
    return found


def _of(world: Unbounded, events: Sequence[str]) -> list[Action]:
    return [action for action in world.model.actions if action.event.name in events]


def printed(solver: z3.Solver, verdict: str) -> str:
    """What a solver holds, as a benchmark of the logic of functions and bit vectors with quantifiers."""
    text = solver.to_smt2().replace("(set-info :status unknown)", f"(set-info :status {verdict})", 1)
    return f"(set-logic UFBV)\n{text}"


def answer(text: str, milliseconds: int = MILLISECONDS) -> str:
    """What cvc5 says: sat, unsat, or unknown and why.

    Raises:
        RuntimeError: it cannot read the text.
    """
    solver = cvc5.Solver(cvc5.TermManager())
    solver.setOption("finite-model-find", "true")
    solver.setOption("tlimit-per", str(milliseconds))
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, text, "question")
    said = ""
    while not (command := parser.nextCommand()).isNull():
        said += command.invoke(solver, parser.getSymbolManager())
    return said.strip()


def disagreements(asked: Iterable[Question]) -> list[tuple[Question, str]]:
    """Questions to which cvc5 does not give z3's answer, and what it says. Nobody agrees with an "unknown"."""
    return [
        (question, said)
        for question in asked
        if (said := answer(question.text)) != question.verdict or said not in ("sat", "unsat")
    ]


def main(arguments: Sequence[str]) -> int:
    """Asks everything, for one caller and for two. Exit status 1 if the solvers differ."""
    wrong = 0
    for callers in (("caller",), ("caller", "another")):
        began = time.monotonic()
        asked = questions(callers=callers)
        for folder in arguments:
            _write(Path(folder) / f"callers-{len(callers)}", asked)
        heard = time.monotonic()
        differing = disagreements(asked)
        wrong += len(differing)
        counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(Counter(one.verdict for one in asked).items()))
        print(
            f"engine world, any number of requests, {len(callers)} owner(s) of tokens beside the engine's own: {len(asked)} questions "
            f"({counts}), z3 {heard - began:.1f} s, cvc5 {time.monotonic() - heard:.1f} s, {len(differing)} answers differ"
        )
        for question, said in differing:
            print(f"  DIFFERS  {question.title}: z3 {question.verdict}, cvc5 {said}")
    return 1 if wrong else 0


def _write(folder: Path, asked: Sequence[Question]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, question in enumerate(asked):
        name = re.sub(r"\W+", "-", question.title).strip("-")[:120]
        (folder / f"{number:04}-{name}.smt2").write_text(f"; {question.title}\n{question.text}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
