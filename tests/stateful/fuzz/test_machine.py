"""Hypothesis plays the engine: a bounded number of examples, the same in every run. More: `make fuzz`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from quiesce.engine.request import Request
from quiesce.spec.vocabulary import FinishReason
from quiesce.stateful.fuzz.machine import EngineMachine

BOUNDED = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
TestEngine = EngineMachine.TestCase
TestEngine.settings = BOUNDED


def test_a_broken_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause that ends requests as errors (FastDeploy#7753)."""
    reason_for = Request.finish_reason_for

    def broken(self: Request, detail: str) -> FinishReason:
        return FinishReason.error if detail == "abort" and not self.client_aborts else reason_for(self, detail)

    monkeypatch.setattr(Request, "finish_reason_for", broken)
    with pytest.raises(AssertionError, match="ended"):
        run_state_machine_as_test(EngineMachine, settings=settings(BOUNDED, phases=(Phase.generate,)))
