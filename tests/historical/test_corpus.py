"""The corpus keeps its promises: small patches of the engine alone, every class and every seed of the project; and the hunt finds bugs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.historical.corpus import Bug, corpus, hunts, patched_tree

BUGS = corpus()
MAX_CHANGED = 15
SEEDS = ("lmdeploy_4541", "lmdeploy_4545", "lmdeploy_4655", "fastdeploy_7753", "vllm_32351")
QUICK = ("seed_fastdeploy_7753_abort_as_error", "seed_lmdeploy_4655_pending_calls", "a10_grown_blocks_are_not_recorded")


def test_a_bug_is_a_few_lines_of_the_engine_and_leaves_the_declaration_alone() -> None:
    assert not [bug.name for bug in BUGS if not 0 < bug.num_changed <= MAX_CHANGED]
    assert not [bug.name for bug in BUGS for file in bug.files if not file.startswith("engine/")]


def test_every_class_and_every_seed_is_in_it() -> None:
    assert {bug.kind for bug in BUGS} >= set("ABCDEFGHIJK")
    assert not [seed for seed in SEEDS if not any(bug.name.startswith(f"seed_{seed}") for bug in BUGS)]
    assert len(BUGS) >= 24


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_patch_applies(bug: Bug, tmp_path: Path) -> None:
    package = patched_tree(bug, tmp_path) / "quiesce"
    for file in bug.files:
        compile((package / file).read_text(), file, "exec")


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.name in QUICK], ids=lambda bug: bug.name)
def test_the_hunt_finds_it_and_makes_it_small(bug: Bug, tmp_path: Path) -> None:
    (found,) = hunts(bug, tmp_path, limit=200)
    assert found.examples is not None
    assert found.num_actions <= 5
    assert found.oracle not in ("failed", "log")
