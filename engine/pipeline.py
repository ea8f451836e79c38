"""Starting, planning and launching: the second half of a pass, after the boundary work is done.

The scheduler says who; here it happens: rows and blocks are given, the gate is asked for each move, and up to two steps are on their way.
"""

from __future__ import annotations

import heapq
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.cohort import Cohort
from quiesce.engine.request import Request
from quiesce.engine.scheduler import StepPlan, blocks_to_begin, blocks_wanted, plan_step
from quiesce.spec.vocabulary import RequestState
from quiesce.statemachine.compile import compile_guard
from quiesce.statemachine.machine import NO_DATA

if TYPE_CHECKING:
    from quiesce.engine.core import Core

logger = logging.getLogger("quiesce.core")


@dataclass(slots=True)
class PlannedStep:
    """The data of a step beside its record."""

    plan: StepPlan
    keys: NDArray[np.int64]
    """[R] request keys of the rows when planned; a row that has another key when the step lands is not this step's."""
    launched_s: float | None = None
    version: int = -1
    """The batch's version at launch."""


class Pipeline:
    """The waiting queue and the steps on their way."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.world, self.lifecycle, self.pool, self.batch = core.world, core.lifecycle, core.pool, core.batch
        self.plans: dict[int, PlannedStep] = {}
        self._waiting: list[tuple[tuple[int, int], Request]] = []
        self._num_stale = 0
        """Upper bound of the places in the queue whose request has ended."""
        self._num_steps = 0
        self._cohort: Cohort | None = None
        self._planned_version = -1
        """The batch's version when the last plan was made from the arrays."""
        self._gate_open = compile_guard("engine", "gate_open")

    def wait(self, request: Request) -> None:
        """Queues an admitted request: lower priority first, then arrival."""
        heapq.heappush(self._waiting, (request.order, request))

    def wait_no_more(self) -> None:
        """A waiting request ended. Its place is cleared away when half of the queue is such places."""
        self._num_stale += 1
        if 2 * self._num_stale > len(self._waiting):
            self._waiting = [entry for entry in self._waiting if entry[1].state == RequestState.admitted]
            heapq.heapify(self._waiting)
            self._num_stale = 0

    def fill(self) -> None:
        """Starts who waits, then plans and launches while a slot is free. Plan and launch are in the same pass, after boundary work."""
        if self._gate_open is None or not self._gate_open(self.world.engine, NO_DATA):
            return
        self._launch_planned()
        self._start_waiting()
        while self.world.newer is self.world.empty_step and self._plan_next() and self._launch_planned():
            pass

    def _launch_planned(self) -> bool:
        """Launches the planned step, if there is one; without overlap not before the step in front has retired."""
        step = self.lifecycle.planned()
        if step is None or (step is self.world.newer and not self.core.config.overlap):
            return False
        launched = self.lifecycle.launch(step)
        self.core.act()
        return launched

    def _start_waiting(self) -> None:
        """Gives rows and blocks to waiting requests, first come, first served within a priority."""
        passed_over = []
        while self._waiting and self.batch.num_free_rows:
            entry = heapq.heappop(self._waiting)
            request = entry[1]
            if request.state != RequestState.admitted:
                continue  # it ended while it waited
            wanted = blocks_to_begin(len(request.token_ids), 0, self.pool.prefix_cache.block_size)
            growing = len(self.world.by_state[RequestState.running])  # leave each a block to grow into, or it preempts at once
            self.world.free = (self.pool.num_available - growing) // wanted
            if not self.lifecycle.start(request):
                passed_over.append(entry)
                if self.world.free <= 0:
                    break
            self.core.act()
        for entry in passed_over:
            heapq.heappush(self._waiting, entry)

    def _plan_next(self) -> bool:
        """Plans a step into the free slot. Where blocks are short the youngest request yields."""
        while True:
            plan = self._plan()
            lacking = self._reserve_blocks(plan)
            if not lacking:
                break
            if not self._make_room():
                plan = plan.without(np.array(lacking, np.int32))
                plan = plan.without(np.flatnonzero(~self.batch.running).astype(np.int32))
                break
        if not len(plan.rows):
            return False
        self._num_steps += 1
        step = self.world.new_step(self._num_steps)
        cohort = plan.cohort
        requests = cohort.requests if cohort is not None else self._requests(plan)
        if not self.lifecycle.plan(step, requests):
            self.world.vacate(step)
            return False
        self.plans[step.key] = PlannedStep(plan, cohort.keys if cohort is not None else self.batch.key[plan.rows])
        return True

    def _requests(self, plan: StepPlan) -> tuple[Request, ...]:
        found = map(self.batch.requests.__getitem__, plan.rows.tolist())
        return tuple(request for request in found if request is not None)

    def _plan(self) -> StepPlan:
        """The next step. In a batch that stays the same it is the last one, a position on; a second look at the same batch notices."""
        batch, cohort, config = self.batch, self._cohort, self.core.config
        if cohort is not None and cohort.version == batch.version and cohort.num_launched < cohort.horizon:
            return StepPlan(cohort.rows, cohort.ends, cohort.ones, cohort.trues, True, cohort, cohort.num_launched)
        if cohort is not None:
            cohort.give_up(batch)
            self._cohort = None
        plan = plan_step(batch, config.max_num_batched_tokens, config.enable_chunked_prefill)
        if (
            plan.steady
            and len(plan.rows)
            and self._planned_version == batch.version
            and Cohort.fits(batch, plan.rows, plan.starts)
        ):
            self._cohort = plan.cohort = Cohort(batch, plan.rows, plan.starts)
        self._planned_version = batch.version
        return plan

    def prepare(self) -> None:
        """Gives the cohort the blocks of its next step, where there are enough: now nobody waits for it."""
        cohort = self._cohort
        if cohort is not None and cohort.version == self.batch.version and cohort.num_launched < cohort.horizon:
            self._reserve_for(cohort, cohort.num_launched)

    def _reserve_for(self, cohort: Cohort, turn: int) -> bool:
        """Whether all rows of the cohort have the blocks of this step."""
        places = cohort.lacking(self.batch, turn)
        if len(places) > self.pool.num_available:
            return False
        if len(places):
            cohort.give(self.batch, places, self.pool.allocate(len(places)), turn)
        return True

    def _reserve_blocks(self, plan: StepPlan) -> list[int]:
        """Extends block tables for the plan, oldest first. Returns the rows for which there was nothing left."""
        if plan.cohort is not None:
            if self._reserve_for(plan.cohort, plan.turn):
                return []
            plan.cohort.give_up(self.batch)
            self._cohort = plan.cohort = None
        wanted = blocks_wanted(self.batch, plan)
        lacking: list[int] = []
        if not wanted.any():
            return lacking
        for index in np.flatnonzero(wanted):
            row, count = int(plan.rows[index]), int(wanted[index])
            request = self.batch.requests[row]
            if request is None or count > self.pool.num_available:
                lacking.append(row)
                continue
            blocks = self.pool.allocate(count)
            request.blocks += blocks
            self.batch.append_blocks(row, blocks)
        return lacking

    def _make_room(self) -> bool:
        """Preempts the youngest running request, unless blocks are on their way already. Whether blocks have come home at once."""
        by_state = self.world.by_state
        running = by_state[RequestState.running]
        if by_state[RequestState.draining] or by_state[RequestState.retracting] or len(running) < 2:
            return False
        victim = running[max(running)]
        if not self.lifecycle.preempt(victim):
            return False
        self.core.measures.preempted()
        logger.info("preempted %s: %d of %d blocks available", victim.name, self.pool.num_available, self.pool.num_blocks)
        self.core.settle()
        came_home: bool = victim.state == RequestState.admitted
        return came_home

    def launch_plan(self, number: int) -> StepPlan:
        """The plan of a step that is being launched, less the members it has lost since it was planned."""
        planned = self.plans[number]
        members = self.world.older.members if self.world.older.key == number else self.world.newer.members
        if len(members) != len(planned.keys):
            gone = ~np.isin(planned.keys, list(members))
            planned.plan = planned.plan.without(planned.plan.rows[gone])
            planned.keys = planned.keys[~gone]
        planned.launched_s = self.core.clock()
        planned.version = self.batch.version
        return planned.plan

    def follows_its_own(self, number: int, cohort: Cohort) -> bool:
        """Whether the step in flight before this one is the cohort's, too."""
        older = self.world.older.key
        return older != number and self.plans[older].plan.cohort is cohort

    def forget_plan(self, number: int) -> None:
        del self.plans[number]
