"""Where the time of each step goes, as a Chrome trace: `quiesce bench --profile FILE`, then chrome://tracing or https://ui.perfetto.dev.

Two tracks. The host's: every pass of the core, and in it

    commit     what landed and what was posted, until the scheduler is asked
    schedule   who runs next, its blocks and its arrays, until the device is given the step
    launch     the device takes the step
    account    what nobody waited for: prefix hashes, the books, the checks
    deliver    answers go to the front end

The device's: each step from its beginning to its end, as the device reports it. A landed step is an arrow from the device's track to
the pass that took it. Nothing is hung into an engine that is not profiled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quiesce.engine.core import Core
from quiesce.engine.link.thread import ThreadLink
from quiesce.engine.messages import Completion, StepInput, StepOutput
from quiesce.statemachine.effects import LaunchStep

HOST, DEVICE = 1, 2
"""Track numbers."""
NAMES: Final = ("pass", "commit", "schedule", "launch", "account", "deliver", "device")
PASS, COMMIT, SCHEDULE, LAUNCH, ACCOUNT, DELIVER, DEVICE_RUN = range(len(NAMES))
CAPACITY: Final = 1 << 18
"""Spans kept; the oldest go first. Six and a half million bytes."""


class Ring:
    """Spans as they are stamped: kind, begin and end in `time.perf_counter` nanoseconds, and one number."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._spans: NDArray[np.int64] = np.zeros((capacity, 4), np.int64)
        self.count = 0
        """Spans ever stamped."""

    def add(self, kind: int, begin_ns: int, end_ns: int, number: int) -> None:
        self._spans[self.count % len(self._spans)] = (kind, begin_ns, end_ns, number)
        self.count += 1

    def spans(self) -> list[tuple[int, int, int, int]]:
        """What is kept, oldest first."""
        place = self.count % len(self._spans)
        kept = self._spans[: self.count] if self.count <= len(self._spans) else np.roll(self._spans, -place, axis=0)
        return [(kind, begin, end, number) for kind, begin, end, number in kept.tolist()]


class Profiler:
    """Stamps the passes of one core. `link` is what an `AsyncEngine` takes as `make_link`."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.ring = Ring(capacity)
        self.sizes: dict[int, tuple[int, int]] = {}
        """Step to its rows and tokens, as long as it is kept."""
        self.landed: dict[int, int] = {}
        """Step to when the core took it, nanoseconds."""
        self._mark = 0
        """When the part of the pass that is under way began; 0 between passes."""

    def link(self, core: Core, call_in_loop: Callable[..., object]) -> ThreadLink:
        """A core in a thread, with stamps."""
        self.attach(core)

        def stamped(function: Callable[..., object], *args: object) -> None:
            if not self._mark:  # the link itself speaks, between passes
                call_in_loop(function, *args)
                return
            self._close(ACCOUNT, core.pass_number)
            call_in_loop(function, *args)
            self._close(DELIVER, core.pass_number)

        return ThreadLink(core, stamped)

    def attach(self, core: Core) -> None:
        """Hangs stamps into this core's pass and its calls of the device."""
        run_pass, fill, launch, poll = core.step, core.pipeline.fill, core.device.launch, core.device.poll

        def stamped_step() -> None:
            begin = self._mark = time.perf_counter_ns()
            run_pass()
            end = time.perf_counter_ns()
            self.ring.add(ACCOUNT, self._mark, end, core.pass_number)
            self.ring.add(PASS, begin, end, core.pass_number)
            self._mark = 0

        def stamped_fill() -> None:
            self._close(COMMIT, core.pass_number)
            fill()
            self._close(SCHEDULE, core.pass_number)

        def stamped_launch(effect: LaunchStep, step: StepInput) -> None:
            self._close(SCHEDULE, core.pass_number)
            launch(effect, step)
            self._close(LAUNCH, step.step)
            self.sizes[step.step] = (len(step.rows), len(step.token_ids))

        def stamped_poll() -> list[Completion]:
            found = poll()
            for completion in found:
                if isinstance(completion, StepOutput):
                    begin, end = int(completion.started_s * 1e9), int(completion.ended_s * 1e9)
                    self.ring.add(DEVICE_RUN, begin, end, completion.step)
                    self.landed[completion.step] = time.perf_counter_ns()
            return found

        core.step, core.pipeline.fill = stamped_step, stamped_fill  # type: ignore[method-assign]
        core.device.launch, core.device.poll = stamped_launch, stamped_poll  # type: ignore[method-assign]

    def _close(self, kind: int, number: int) -> None:
        now = time.perf_counter_ns()
        self.ring.add(kind, self._mark, now, number)
        self._mark = now

    def chrome_trace(self) -> dict[str, Any]:
        """The document that the viewers read: times in microseconds from the first stamp."""
        spans = self.ring.spans()
        zero = min((begin for _, begin, _, _ in spans), default=0)
        events: list[dict[str, Any]] = [_named("process_name", 0, "quiesce"), _named("thread_name", HOST, "host"),
                                        _named("thread_name", DEVICE, "device")]  # fmt: skip
        for kind, begin, end, number in spans:
            on_device = kind == DEVICE_RUN
            event: dict[str, Any] = {
                "ph": "X", "pid": 0, "tid": DEVICE if on_device else HOST, "ts": (begin - zero) / 1e3, "dur": (end - begin) / 1e3,
                "name": f"step {number}" if on_device else NAMES[kind], "cat": "device" if on_device else "host",
                "args": {"step" if kind in (LAUNCH, DEVICE_RUN) else "pass": number},
            }  # fmt: skip
            if on_device and number in self.sizes:
                event["args"]["rows"], event["args"]["tokens"] = self.sizes[number]
            events.append(event)
            if on_device and number in self.landed:
                events += _arrow(number, begin, self.landed[number], zero)
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def write(self, path: Path) -> None:
        """Writes the trace; the folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.chrome_trace()), encoding="utf-8")


def _named(what: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 0, "tid": track, "name": what, "args": {"name": name}}


def _arrow(step: int, begin: int, landed: int, zero: int) -> list[dict[str, Any]]:
    """From the step on the device to the pass that took it."""
    both: dict[str, Any] = {"pid": 0, "cat": "landed", "name": "landed", "id": step}
    return [
        both | {"ph": "s", "tid": DEVICE, "ts": (begin - zero) / 1e3},
        both | {"ph": "f", "bp": "e", "tid": HOST, "ts": (landed - zero) / 1e3},
    ]
