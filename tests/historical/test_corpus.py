"""The corpus keeps its promises: small patches of the engine alone, every class and every seed of the project, past every example test;
each has a witness, and the hunt finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.stateful.fuzz.runs import run
from quiesce.stateful.fuzz.schedule import load
from tests.historical import table
from tests.historical.corpus import Bug, corpus, finder, hunts, patched_tree, witness_of
from tests.historical.examples import changed_functions

BUGS = corpus()
MAX_CHANGED = 15
MIN_UNNOTICED = 24
SEEDS = ("lmdeploy_4541", "lmdeploy_4545", "lmdeploy_4655", "fastdeploy_7753", "vllm_32351")
QUICK = ("d1_abort_blocked_by_pause", "c9_token_lost_at_preemption", "seed_lmdeploy_4655_pending_calls")


def names(bug: Bug) -> str:
    return bug.name


def seen_bugs() -> list[Bug]:
    """Bugs that have a witness."""
    return [bug for bug in BUGS if witness_of(bug).exists()]


def unnoticed() -> list[Bug]:
    """Bugs that pass every example test."""
    found = table.results()
    return [bug for bug in BUGS if found[bug.name].caught_by == ""]


def test_a_bug_is_a_few_lines_of_the_engine_and_leaves_the_declaration_alone() -> None:
    assert not [bug.name for bug in BUGS if not 0 < bug.num_changed <= MAX_CHANGED]
    assert not [bug.name for bug in BUGS for file in bug.files if not file.startswith("engine/")]


def test_every_class_and_every_seed_is_among_those_that_no_example_notices() -> None:
    assert {bug.kind for bug in unnoticed()} >= set("ABCDEFGHIJK")
    assert not [seed for seed in SEEDS if not any(bug.name.startswith(f"seed_{seed}") for bug in unnoticed())]
    assert len(unnoticed()) >= MIN_UNNOTICED


def test_the_table_is_made_of_the_results_and_these_of_the_patches() -> None:
    found = table.results()
    assert {bug.name: bug.digest for bug in BUGS} == {name: one.digest for name, one in found.items()}
    assert table.TABLE.read_text(encoding="utf-8") == table.table(found), "run `python -m tests.historical.table --table`"


@pytest.mark.parametrize("bug", BUGS, ids=names)
def test_the_patch_applies_and_changes_functions_of_the_engine(bug: Bug, tmp_path: Path) -> None:
    package = patched_tree(bug, tmp_path) / "quiesce"
    for file in bug.files:
        compile((package / file).read_text(), file, "exec")
    assert changed_functions(bug)


@pytest.mark.parametrize("bug", seen_bugs(), ids=names)
def test_nothing_is_wrong_with_its_witness_in_the_engine_as_it_is(bug: Bug, ledger_folder: Path) -> None:
    assert run(ledger_folder, load(witness_of(bug))).problem is None


@pytest.mark.parametrize("bug", seen_bugs(), ids=names)
def test_its_witness_shows_it_to_somebody_outside(bug: Bug, tmp_path: Path) -> None:
    (shown,) = finder(bug, tmp_path, witness_of(bug))
    assert set(shown.outside) & set(table.SEEN_BY)


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.name in QUICK], ids=names)
def test_the_hunt_finds_it_and_makes_it_small(bug: Bug, tmp_path: Path) -> None:
    (found,) = hunts(bug, tmp_path, limit=200)
    assert found.examples is not None
    assert found.num_actions <= 8
    assert found.oracle in table.SEEN_BY
