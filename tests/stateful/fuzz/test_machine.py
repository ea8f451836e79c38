"""Hypothesis plays the engine: a bounded number of examples, the same in every run. More: `make fuzz`."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from quiesce.stateful.fuzz.machine import EngineMachine

TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
