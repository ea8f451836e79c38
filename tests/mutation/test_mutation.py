"""The mutator changes what it says and leaves alone what it promises; the results are whole, explained and still true."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.mutation import campaign
from tests.mutation.judge import ROOT
from tests.mutation.mutator import Mutant, mutants_of, mutated
from tests.mutation.suites import SAMPLE

SAMPLE_SIZE = 400
SCORE = 0.85


def changes(source: str) -> list[str]:
    return [f"{mutant.before} -> {mutant.after}" for mutant in mutants_of("a.py", source)]


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("a < b", ["a < b -> a <= b", "a < b -> a >= b"]),
        ("a is not b", ["a is not b -> a is b"]),
        ("a and b", ["a and b -> a or b", "a and b -> b", "a and b -> a"]),
        ("not a", ["not a -> a"]),
        ("a + b", ["a + b -> a - b"]),
        ("a = 2", ["2 -> 3", "2 -> 1"]),
        ("a = True", ["True -> False"]),
        ("self.a = b", ["self.a = b -> pass"]),
        ("a += b", ["a += b -> a -= b", "a += b -> pass"]),
        ("f(a)", ["f(a) -> pass"]),
        ("a = reversed(b)", ["reversed(b) -> b"]),
        ("a = np.minimum(b, c)", ["np.minimum(b, c) -> np.maximum(b, c)"]),
        ("a = [b for b in c if d]", ["if d -> nothing"]),
        ("if a: f", ["if a: -> if not a:"]),
        ("while a:\n  break", ["while a: -> while not a:", "break -> continue"]),
        ("raise A('b', 1)", ["raise A('b', 1) -> pass"]),
        ("@a\ndef f(): return b", ["return b -> return None", "@a -> nothing"]),
        ("def f() -> bool: return a", ["return a -> return not a"]),
    ],
)
def test_each_kind_of_change(source: str, made: list[str]) -> None:
    assert changes(source) == made


@pytest.mark.parametrize(
    "source",
    [
        "import a",
        "'''a 1'''",
        "def f(a: X | None) -> Y | None: 'text'",
        "a: tuple[int, ...] | None",
        "A = tuple[int, X | None]",
        "logger.info('%d', a + 1)",
        "if TYPE_CHECKING: f(1)",
        "a = f'{b + 1}'",
    ],
)
def test_what_is_left_alone(source: str) -> None:
    assert changes(source) == []


@pytest.mark.parametrize("file", ["engine/block_pool.py", "statemachine/gate.py"])
def test_every_mutant_is_another_program_that_differs_from_the_file(file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    mutants = mutants_of(file, source)
    assert len({mutant.identity for mutant in mutants}) == len(mutants)
    programs = {ast.dump(mutated(mutant, source)) for mutant in mutants[::7]}
    assert len(programs) == len(mutants[::7])
    assert ast.dump(ast.parse(source)) not in programs
    for mutant in mutants[::7]:
        compile(mutated(mutant, source), file, "exec")


def test_a_place_that_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"a\.py:1 a < b -> a <= b"):
        mutated(Mutant("a.py", 1, "", "a < b", "a <= b", 0), "a > b")


def test_enough_mutants_are_judged_and_enough_of_them_are_killed() -> None:
    counted = [one for one in campaign.results() if one.verdict.verdict != "stillborn"]
    assert len({one.mutant.identity for one in counted}) == len(counted) >= SAMPLE_SIZE
    assert campaign.score(counted) >= SCORE
    assert {one.mutant.file for one in counted} == set(SAMPLE)


def test_every_survivor_is_explained_and_nobody_else() -> None:
    survivors = {one.mutant.identity for one in campaign.results() if one.verdict.verdict == "survived"}
    assert set(campaign.explained()) == survivors


def test_the_table_is_made_of_the_results() -> None:
    made = campaign.table(campaign.results(), campaign.explained())
    assert campaign.TABLE.read_text(encoding="utf-8") == made, "run `python -m tests.mutation.campaign --table`"


def test_some_judged_again_have_the_same_verdict_and_the_engine_as_it_is_survives() -> None:
    command = [sys.executable, "-m", "tests.mutation.campaign", "--again"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) >= len(SAMPLE)
