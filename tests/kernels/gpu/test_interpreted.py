"""Every kernel against its truth under Triton's interpreter, and every mutant of a kernel against the checks."""

from __future__ import annotations

from typing import Any

import pytest

from quiesce.kernels.gpu.checks import every_check
from tests.kernels.gpu.mutants import MUTANTS
from tests.kernels.gpu.processes import lines_of

pytestmark = pytest.mark.timeout(600)  # one process does the work of all tests here, in the first of them

Lines = dict[str, dict[str, Any]]
CHECKS = [f"{check.operator} {check.name}" for check in every_check()]


@pytest.fixture(scope="module")
def checked() -> Lines:
    return lines_of("interpreted", "checks", interpret=True)


@pytest.fixture(scope="module")
def judged() -> Lines:
    return lines_of("interpreted", "mutants", interpret=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CHECKS)
def test_a_kernel_does_what_its_truth_does(checked: Lines, name: str, dtype: str) -> None:
    assert checked[f"{name} {dtype}"]["unsound"] == []


@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS])
def test_a_broken_kernel_is_noticed(judged: Lines, name: str) -> None:
    assert judged[name]["killer"] is not None
