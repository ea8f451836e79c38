"""Rumur's scalarsets count what the finite model counts, and with its symmetry reduction what our reduction counts."""

from __future__ import annotations

import pytest

from quiesce.proofs import explorer, murphi_symmetric
from quiesce.proofs.model import Builder
from quiesce.proofs.unbounded import UnboundedBuilder
from quiesce.proofs.world import World
from tests.statemachine.tools import require_tool

WITHOUT = (
    "engine.sleep", "engine.wake_up", "engine.begin_update", "engine.clear", "engine.ready_empty", "engine.shutdown",
    "request.device_fault", "request.preempt",
)  # fmt: skip
"""A world of two requests that Rumur takes a few seconds for."""


@pytest.mark.parametrize("reduced", [False, True], ids=["all states", "up to the order of requests"])
def test_rumur_counts_requests_that_differ_only_in_their_number_as_we_do(reduced: bool) -> None:
    require_tool("rumur", "rumur")
    require_tool("gcc", "gcc")
    model = Builder(World.engine(2, callers=(), without=WITHOUT)).build()
    ours = explorer.explore(model, {}, one_pass=True, symmetric=reduced)
    builder = UnboundedBuilder(callers=(), without=WITHOUT)
    theirs = murphi_symmetric.search(builder, 2, one_pass=True, reduced=reduced, optimise=False, seconds=100)
    assert (theirs.num_states, theirs.num_edges) == (ours.num_states, ours.num_edges)
    assert ours.num_states > 500
