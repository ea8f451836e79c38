"""Random programs of control calls, clients and failures, on ordinary, hostile and impatient schedules: a bounded number of them.

More: `python -m quiesce.stateful.control_explorer FIRST LAST`, which makes what fails smaller.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from quiesce.stateful.control_explorer import explore, smaller
from quiesce.stateful.control_programs import drawn_program

RUNS, SEEDS = 12, 12


@pytest.mark.parametrize("run", range(RUNS))
def test_every_call_is_answered_every_token_true_and_the_engine_can_be_healed(
    ledger_folder: Path, run: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL, "quiesce"):
        ends = {explore(ledger_folder, seed) for seed in range(run * SEEDS, (run + 1) * SEEDS)}
    assert "running" in ends


def test_a_seed_repeats_and_what_fails_is_made_smaller(ledger_folder: Path) -> None:
    program = drawn_program(3)
    assert program == drawn_program(3)
    wrong = (*program, ((0, "no such thing", {}),))
    with pytest.raises(AttributeError):
        explore(ledger_folder, 3, wrong)
    assert [actions for actions in smaller(ledger_folder, 3, wrong) if actions] == [wrong[-1]]
