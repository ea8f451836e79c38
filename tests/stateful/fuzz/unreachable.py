"""Declared cells that nobody can bring about from outside in one process, each with the reason. A test wants all others to be touched."""

from __future__ import annotations

from collections.abc import Mapping

from quiesce.stateful.fuzz.coverage import Cell

IN_ONE_MOVE = (
    "frozen requests have no step in flight, so that they are retracted, and the commit ends, in the pass in which it begins"
)
OF_A_PROCESS = (
    "a core in a thread dies only with its process, and is not started again; the process back end's own tests do this"
)
BEFORE_ANY_STEP = "the device faults what a step named, and a step names only what runs; the table stays total for a device that checks earlier"

UNREACHABLE: Mapping[Cell, str] = {
    **{("weights", "committing", event): IN_ONE_MOVE for event in ("begin_in_place", "load", "commit", "commit_keep", "rollback", "load_failed", "lose")},
    **{("link", state, "crash"): OF_A_PROCESS for state in ("connecting", "up", "lost", "restarting")},
    **{("link", state, "detect"): OF_A_PROCESS for state in ("connecting", "up", "lost", "restarting")},
    **{("link", state, "lose"): OF_A_PROCESS for state in ("connecting", "lost", "restarting")},
    ("link", "restarting", "connect"): OF_A_PROCESS,
    **{("request", state, event): BEFORE_ANY_STEP for state in ("received", "admitted") for event in ("device_fault", "fault")},
    ("memory", "undefined", "deselect"): "weights without content are chosen while partially awake, where nothing drains and no deadline withdraws",
    ("step", "planned", "plan"): "the scheduler chooses a whole batch at once; the row is there for one that adds to it",
    ("step", "landed", "void"): "a step retires in the pass in which it lands, before anything else is taken",
}  # fmt: skip
