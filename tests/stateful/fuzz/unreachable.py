"""Declared cells that nobody can bring about from outside, each with the reason. A test wants all others to be touched."""

from __future__ import annotations

from collections.abc import Mapping

from quiesce.stateful.fuzz.coverage import Cell

IN_ONE_MOVE = (
    "frozen requests have no step in flight, so that they are retracted, and the commit ends, in the pass in which it begins"
)
IN_ONE_CALL = (
    "everything of a lost core is answered, and it is killed and restarted or given up, in the call that learns of the loss"
)
BEFORE_ANY_STEP = "the device faults what a step named, and a step names only what runs; the table stays total for a device that checks earlier"

UNREACHABLE: Mapping[Cell, str] = {
    **{("weights", "committing", event): IN_ONE_MOVE for event in ("begin_in_place", "load", "commit", "commit_keep", "rollback", "load_failed", "lose")},
    **{("link", "lost", event): IN_ONE_CALL for event in ("crash", "detect", "lose")},
    **{("request", state, event): BEFORE_ANY_STEP for state in ("received", "admitted") for event in ("device_fault", "fault")},
    ("memory", "undefined", "deselect"): "weights without content are chosen while partially awake, where nothing drains and no deadline withdraws",
    ("step", "planned", "plan"): "the scheduler chooses a whole batch at once; the row is there for one that adds to it",
    ("step", "landed", "void"): "a step retires in the pass in which it lands, before anything else is taken",
}  # fmt: skip
