"""The monitor lets the clean run pass, and each mutant of it is caught by the property it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from quiesce.spec import PROPERTIES
from quiesce.spec.language import Judge, Modality
from quiesce.spec.vocabulary import Goal
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.machine import build
from quiesce.statemachine.monitor import ConformanceError, Monitor
from quiesce.statemachine.records import RequestRecord, StepRecord, World
from tests.statemachine.worlds import add_request, add_step, open_world, put


@dataclass
class Run:
    """One core in miniature: a world, its gate and the monitor that watches both."""

    world: World
    gate: Gate
    monitor: Monitor

    def fire(self, record: Any, event: str, **carried: Any) -> None:
        assert self.gate.fire(record, event, carried).moved, (record.name, event)

    def end_pass(self) -> None:
        log, self.gate.log = self.gate.log, []
        self.monitor.check(log)


def new_run(edit: Callable[[Any], None] | None = None, machine: str = "request") -> Run:
    """A run of the declaration, or of a mutant: `edit` is given the machine before it is sealed."""
    machines = build()
    if edit is not None:
        edit(machines[machine])
    world = open_world()
    run = Run(world, Gate(machines), Monitor(world))
    run.gate.watch = run.monitor.watch
    return run


def start(run: Run, key: int = 1) -> RequestRecord:
    """A request that runs, by declared moves."""
    request = RequestRecord(run.world, key, f"r{key}")
    for event in ("submit", "admit", "start"):
        run.fire(request, event)
    return request


def launch(run: Run, request: RequestRecord, number: int = 5) -> StepRecord:
    step = run.world.new_step(number)
    run.fire(step, "plan", requests=[request])
    run.fire(step, "launch")
    return step


def test_a_clean_run_passes_from_submit_to_the_last_block() -> None:
    run = new_run()
    request = start(run)
    step = launch(run, request)
    run.end_pass()
    run.fire(request, "abort")
    run.fire(request, "aborted")
    assert not run.gate.fire(request, "reap").moved
    run.end_pass()
    run.fire(step, "land")
    run.fire(step, "retire")
    run.fire(request, "reap")
    run.fire(run.world.engine, "pause", owner="caller", mode="keep")
    run.fire(run.world.engine, "drained_pause")
    run.end_pass()
    assert run.monitor.num_checked == 13


def test_an_undeclared_transition_is_caught() -> None:
    def shortcut(machine: Any) -> None:
        machine.events["aborted"].transitions["running"][0].dest = "ended"

    run = new_run(shortcut)
    request = start(run)
    run.fire(request, "abort")
    run.fire(request, "aborted")
    with pytest.raises(ConformanceError, match="request r1: aborted from running to ended is not declared"):
        run.end_pass()


def test_a_state_changed_behind_the_gate_is_caught_as_a_discontinuity() -> None:
    run = new_run()
    request = start(run)
    run.end_pass()
    put(request, "retracting")
    request.eos_mark = True
    run.fire(request, "finish")
    with pytest.raises(ConformanceError, match="request r1: was running, now leaves retracting by finish"):
        run.end_pass()


def test_a_launch_through_a_closed_gate_is_caught_before_it_is_made() -> None:
    def careless(machine: Any) -> None:
        machine.events["launch"].transitions["planned"][0].conditions.clear()

    run = new_run(careless, "step")
    request = start(run)
    step = run.world.new_step(5)
    run.fire(step, "plan", requests=[request])
    run.fire(run.world.engine, "pause", owner="caller", mode="keep")
    with pytest.raises(ConformanceError, match="T4_steps_through_the_gate: step 5"):
        run.gate.fire(step, "launch")
    assert step.state == "planned"


@pytest.mark.parametrize("mark", ["abort_mark", "fault_mark", "eos_mark"])
def test_a_launch_before_boundary_work_is_caught(mark: str) -> None:
    run = new_run()
    first, second = start(run, 1), start(run, 2)
    step = run.world.new_step(5)
    run.fire(step, "plan", requests=[first])
    setattr(second, mark, True)
    with pytest.raises(ConformanceError, match="R1_boundary_first: step 5 is launched before r2 was seen to"):
        run.gate.fire(step, "launch")


@pytest.mark.parametrize(("event", "state"), [("reap", "draining"), ("retracted", "retracting")])
def test_freeing_blocks_under_a_writer_is_caught(event: str, state: str) -> None:
    def hasty(machine: Any) -> None:
        machine.events[event].transitions[state][0].conditions.clear()

    run = new_run(hasty)
    request = add_request(run.world, 1, state)
    add_step(run.world, 5, "launched", (request,))
    with pytest.raises(ConformanceError, match="S7_no_free_under_a_writer: step 5 still names r1"):
        run.gate.fire(request, event)
    assert request.state == state


def launched_under_lost_weights(world: World) -> None:
    close(world)
    add_step(world, 5, "launched")
    put(world.weights, "undefined")


def held_while_running(world: World) -> None:
    put(world.token("caller"), "keep")


def planned_while_committing(world: World) -> None:
    close(world)
    add_step(world, 5, "planned")
    put(world.weights, "committing")


def planned_while_paused(world: World) -> None:
    put(world.engine, "paused")
    add_step(world, 5, "planned")


def a_request_outlives_the_engine(world: World) -> None:
    put(world.engine, "stopped")
    add_request(world, 1)


def held_after_failure(world: World) -> None:
    put(world.engine, "failed")
    put(world.token("caller"), "keep")


def a_goal_while_running(world: World) -> None:
    world.engine.goal = Goal.pause


def close(world: World) -> None:
    put(world.engine, "draining")
    world.engine.goal = Goal.pause


BREAKS = {
    "S1_residency": launched_under_lost_weights,
    "S2_running_is_open": held_while_running,
    "S3_quiesce_before_mutate": planned_while_committing,
    "drained_means_drained": planned_while_paused,
    "stopped_is_empty": a_request_outlives_the_engine,
    "failed_answers_everybody": held_after_failure,
    "goal_only_while_draining": a_goal_while_running,
}


@pytest.mark.parametrize(("name", "spoil"), BREAKS.items())
def test_a_world_in_which_a_property_does_not_hold_is_caught_at_the_end_of_the_pass(
    name: str, spoil: Callable[[World], object]
) -> None:
    world = open_world()
    monitor = Monitor(world)
    monitor.check([])
    spoil(world)
    with pytest.raises(ConformanceError, match=rf"^{name}: "):
        monitor.check([])


def test_every_always_property_that_the_monitor_can_evaluate_has_a_mutant_here() -> None:
    evaluated = {p.name for p in PROPERTIES if p.modality is Modality.always and Judge.monitor in p.judges and p.when}
    assert evaluated == set(BREAKS)


def test_the_memory_of_the_monitor_forgets_what_has_ended() -> None:
    run = new_run()
    for key in range(50):
        request = RequestRecord(run.world, key, f"r{key}")
        for event in ("submit", "abort", "aborted"):
            run.fire(request, event)
        run.end_pass()
    assert [record for record in run.monitor._last if isinstance(record, RequestRecord)] == []
