"""Plays one story twice, with cohorts and without, and holds the engine to its books all the while."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quiesce.engine.cohort import Cohort
from quiesce.engine.core import Core
from quiesce.engine.messages import StepInput, StepOutput
from quiesce.engine.outputs import RequestOutput, Status
from quiesce.engine.pipeline import Pipeline
from quiesce.engine.request import NO_ROW
from quiesce.engine.sampling_params import SamplingParams
from quiesce.spec.vocabulary import RequestState
from quiesce.stateful.choices import Strategy
from quiesce.stateful.driver import VOCAB_SIZE
from quiesce.stateful.ledger_device import true_tokens
from quiesce.stateful.scenario import World, run
from quiesce.statemachine.effects import LaunchStep

STEP_ARRAYS = tuple(name for name in StepInput.__slots__ if name not in ("step", "epoch", "version", "adjustments"))


@dataclass
class Played:
    """Everything that can be seen of a run, and which way its steps went."""

    outputs: dict[str, list[RequestOutput]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    """What the device was given, but for the choice of blocks."""
    known: frozenset[bytes] = frozenset()
    """What the prefix cache holds at the end."""
    status: Status | None = None
    launched: list[int] = field(default_factory=list)
    """Numbers of the steps that a cohort launched."""
    landed: int = 0
    """Steps that landed as a cohort's."""
    preempted: list[tuple[str, bool]] = field(default_factory=list)
    """Whom, and whether a cohort's step was in flight."""

    def tokens(self, name: str, child: int = 0) -> list[int]:
        return list(self.outputs[name][-1].outputs[child].token_ids)

    def seen(self) -> tuple[object, ...]:
        return (self.outputs, self.steps, self.known, self.status, [name for name, _ in self.preempted])


class Teller:
    """A running engine, as a story sees it."""

    def __init__(self, world: World, played: Played) -> None:
        self.world, self.loop, self.engine, self.device, self.played = world, world.loop, world.engine, world.device, played
        self.core: Core = world.engine._core

    async def ask(self, name: str, prompt: list[int], max_tokens: int, **params: Any) -> list[RequestOutput]:
        """Greedy unless `temperature` is given; never ends by the end-of-sequence token."""
        sampling = SamplingParams.of(**({"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True} | params))
        heard = self.played.outputs.setdefault(name, [])
        async for output in self.engine.generate(prompt, sampling, request_id=name):
            heard.append(output)
        return heard

    def begin(self, name: str, prompt: list[int], max_tokens: int, **params: Any) -> asyncio.Task[list[RequestOutput]]:
        return asyncio.create_task(self.ask(name, prompt, max_tokens, **params))

    async def until_step(self, number: int) -> None:
        """Everything has happened that can before this step lands."""
        self.loop.hold(f"step {number}")
        await self.loop.wait_settled()

    def go_on(self, number: int) -> None:
        self.loop.release(f"step {number}")


Story = Callable[[Teller], Awaitable[None]]


def balance(core: Core) -> None:
    """The batch arrays against what they sum up: steps in flight, and blocks held."""
    batch, world = core.batch, core.world
    pending: Counter[int] = Counter()
    for step in (world.older, world.newer):
        planned = core.pipeline.plans.get(step.key)
        if planned is None or planned.launched_s is None:
            continue
        rows, samples = planned.plan.rows.tolist(), planned.plan.samples.tolist()
        assert batch.key[rows].tolist() == planned.keys.tolist(), "a row is kept while a step names it"
        assert sorted(step.members) == sorted(planned.keys.tolist())
        pending.update(row for row, sampled in zip(rows, samples, strict=True) if sampled)
    for request in core.requests.values():
        row = request.row
        if row == NO_ROW:
            continue
        assert batch.num_pending[row] == pending[row], f"{request.name}: tokens in flight"
        assert batch.block_tables[row, : batch.num_blocks[row]].tolist() == request.blocks, request.name
        assert batch.num_scheduled[row] <= min(batch.num_blocks[row] * batch.block_size, batch.limit[row] - 1)
        assert batch.num_hashed[row] == len(request.hashes)


def remembers_rightly(core: Core) -> None:
    """What the world and the monitor have found true once, and would not look at again, is true."""
    world = core.world
    marked = [r for r in world.requests.values() if r.abort_mark or r.eos_mark or r.fault_mark]
    if world._runnable_at == world.population:
        assert all(r.state == RequestState.running and r not in marked for r in world._members.values())
    if core.monitor._nobody_owed_at == world.population:
        assert not [r for r in marked if r.state != RequestState.draining]


def _watch(patch: pytest.MonkeyPatch, teller: Teller) -> None:
    """Hangs the audits into the engine of this run."""
    core, device, played = teller.core, teller.device, teller.played
    fire, close, preempt = core.gate.fire, core._close_pass, core.lifecycle.preempt
    launch, run_step = device.launch, device._run
    given: dict[int, dict[str, Any]] = {}

    def audited_fire(*args: Any) -> Any:
        outcome = fire(*args)
        remembers_rightly(core)
        return outcome

    def audited_close() -> None:
        balance(core)
        close()

    def noted_preempt(victim: Any) -> bool:
        inside = any(planned.plan.cohort is not None for planned in core.pipeline.plans.values())
        moved = preempt(victim)
        if moved:
            played.preempted.append((victim.name, inside))
        return moved

    def noted_launch(effect: LaunchStep, step: StepInput) -> None:
        given[step.step] = {name: getattr(step, name).copy() for name in STEP_ARRAYS}
        played.steps.append({name: array.tolist() for name, array in given[step.step].items() if name != "block_tables"})
        launch(effect, step)

    def checked_run(step: StepInput) -> StepOutput:
        for name, array in given[step.step].items():
            assert np.array_equal(array, getattr(step, name)), f"{name} of step {step.step} was written to after its launch"
        return run_step(step)

    for owner, name, watched in (
        (core.gate, "fire", audited_fire),
        (core, "_close_pass", audited_close),
        (core.lifecycle, "preempt", noted_preempt),
        (device, "launch", noted_launch),
        (device, "_run", checked_run),
    ):
        patch.setattr(owner, name, watched)


def count_cohorts(patch: pytest.MonkeyPatch, played: Played) -> None:
    """Notes each step that a cohort launches and lands."""
    follows, landed = Pipeline.follows_its_own, Cohort.landed

    def noted_launch(pipeline: Pipeline, number: int, cohort: Cohort) -> bool:
        played.launched.append(number)
        return follows(pipeline, number, cohort)

    def noted_landing(cohort: Cohort, batch: Any) -> None:
        played.landed += 1
        landed(cohort, batch)

    patch.setattr(Pipeline, "follows_its_own", noted_launch)
    patch.setattr(Cohort, "landed", noted_landing)


def play(folder: Path, story: Story, cohorts: bool, strategy: Strategy | None = None, **config: Any) -> Played:
    """One run. Without `cohorts` every step takes the general path."""
    played = Played()
    with pytest.MonkeyPatch.context() as patch:
        count_cohorts(patch, played)
        if not cohorts:
            patch.setattr(Cohort, "fits", staticmethod(lambda *_: False))

        async def body(world: World) -> None:
            teller = Teller(world, played)
            _watch(patch, teller)
            await story(teller)
            await world.loop.wait_settled()
            played.status = world.engine.status()
            played.known = frozenset(teller.core.pool.prefix_cache._blocks)

        engine = run(folder, body, strategy, **config)
        assert engine._core.failure is None
    return played


def both_ways(folder: Path, story: Story, **config: Any) -> Played:
    """Plays the story both ways; they must look the same from everywhere. Returns the one with cohorts, of which there must be some."""
    plain, quick = play(folder, story, False, **config), play(folder, story, True, **config)
    assert (plain.launched, plain.landed) == ([], 0)
    assert quick.launched, "the story was meant to have a cohort"
    assert quick.landed
    assert quick.seen() == plain.seen()
    return quick


def truth(prompt: list[int], count: int) -> list[int]:
    return true_tokens(prompt, count, VOCAB_SIZE)
