"""A core that makes its passes when it is told to, and whose scheduler does what a story says, or nothing.

What the tables leave to the scheduler is chosen here: who starts, who yields, whom a step names, whether a planned step is launched
now. Each choice is one that a scheduler may make (blocks or the token budget may be short, a pass may end early), and is carried out
by the engine's own code; what is boundary work the core does by itself, at once, as ever (rule R1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from quiesce.engine.answers import Answers
from quiesce.engine.core import Core
from quiesce.engine.inbox import Event
from quiesce.engine.outputs import Status
from quiesce.engine.request import Request
from quiesce.engine.scheduler import StepPlan, plan_step


class SteppedLink:
    """`engine.link.Link` without a thread: passes are made by `step`, answers are handed over in the caller's loop."""

    def __init__(self, core: Core, call_in_loop: Callable[..., object]) -> None:
        self.core = core
        self.now_s = 0.0
        self.is_over = False
        core.clock = lambda: self.now_s
        core.started_s = 0.0
        core.inbox.bind(lambda: None)
        core.device.bind(lambda: None)
        self._call_in_loop = call_in_loop
        self._ended: Callable[[BaseException | None], None] = lambda cause: None

    def start(self, deliver: Callable[[Answers], None], ended: Callable[[BaseException | None], None]) -> None:

        def hand_over(answers: Answers) -> None:
            asyncio.get_running_loop().call_soon(deliver, answers)

        self.core.deliver = hand_over
        self._ended = ended
        self.core.device.load()

    def post(self, event: Event) -> None:
        self.core.inbox.post(event)

    def status(self) -> Status:
        return self.core.status

    def join(self) -> None:
        """There is no thread to wait for."""

    def step(self) -> None:
        """One pass of the core."""
        if self.is_over:
            return
        cause: BaseException | None = None
        try:
            self.core.step()
        except Exception as error:  # noqa: BLE001  as the thread's last line: whoever waits must learn of it
            cause = error
        if cause is not None or self.core.finished_for_good:
            self.is_over = True
            asyncio.get_running_loop().call_soon(self._ended, cause)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the scheduler may do in the next pass."""

    start: int | None = None
    """Key of the request that gets blocks."""
    plan: Collection[int] = ()
    """Keys of the requests that a step names."""
    launch: bool = False
    preempt: bool = False
    """The youngest running request yields its blocks."""


NOTHING = Choice()


class Steering:
    """Between a core's scheduler and its gate. `choice` is what may be done; None: whatever the scheduler likes."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.choice: Choice | None = NOTHING
        pipeline, lifecycle = core.pipeline, core.lifecycle
        self._start, self._launch = lifecycle.start, pipeline._launch_planned
        self._plan_next, self._plan = pipeline._plan_next, pipeline._plan
        lifecycle.start = self._steered_start  # type: ignore[method-assign,assignment]
        pipeline._launch_planned = self._steered_launch  # type: ignore[method-assign]
        pipeline._plan_next = self._steered_plan_next  # type: ignore[method-assign]
        pipeline._plan = self._steered_plan  # type: ignore[method-assign]

    def _steered_start(self, request: Request) -> bool:
        if self.choice is not None and self.choice.start != request.key:
            return False
        return self._start(request)

    def _steered_launch(self) -> bool:
        if self.choice is not None and not self.choice.launch:
            return False
        return self._launch()

    def _steered_plan_next(self) -> bool:
        if self.choice is None:
            return self._plan_next()
        if self.choice.preempt:
            self.core.pipeline._make_room()
            return False
        return bool(self.choice.plan) and self._plan_next()

    def _steered_plan(self) -> StepPlan:
        """The scheduler's plan, less whom the choice leaves out."""
        plan, choice = self._plan(), self.choice
        if choice is None:
            return plan
        batch, pipeline = self.core.batch, self.core.pipeline
        left_out = [row for row in plan.rows.tolist() if int(batch.key[row]) not in choice.plan]
        if left_out and plan.cohort is not None:
            plan.cohort.give_up(batch)
            pipeline._cohort = None
            plan = plan_step(batch, self.core.config.max_num_batched_tokens, self.core.config.enable_chunked_prefill)
        return plan.without(np.array(left_out, np.int32)) if left_out else plan
