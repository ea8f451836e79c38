"""The project's tables with one rule broken: what a judge is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quiesce.spec import CATALOG
from quiesce.spec.language import Machine, Row

Mutate = Callable[[Row], Row | None]


def mutated(machine: str, change: Mutate) -> dict[str, Machine]:
    """The project's tables with some rows of one machine changed, or dropped (None)."""
    table = CATALOG.machines[machine]
    rows = tuple(kept for row in table.rows if (kept := change(row)) is not None)
    assert rows != table.rows, "the mutant differs"
    return {**CATALOG.machines, machine: replace(table, rows=rows)}


def without(text: str, event: str) -> Mutate:
    """Drops a conjunct of the guards of one event."""

    def change(row: Row) -> Row:
        if row.event != event or text not in row.when:
            return row
        return replace(row, when=row.when.replace(f" and {text}", "").replace(f"{text} and ", "").replace(text, "true"))

    return change


RULES = [
    ("R3: wait cannot rise over frozen requests", "engine", without("(event.mode != wait or not granted or not begun_left)", "pause"), None),
    ("R5: a drain that came from paused goes back there", "engine",
     lambda row: replace(row, when=row.when.replace(" and not granted", "")) if row.event == "undrain" else row, "S2_running_is_open"),
    ("R6: withdrawing a sleep frees its choices", "engine",
     lambda row: replace(row, also=row.also[:1]) if row.event == "withdraw_sleep" else row, "S2_running_is_open"),
    ("R9: launch looks at the gate again", "step", without("gate_open", "launch"), "T4_steps_through_the_gate"),
    ("R12: admission only in running", "request", without("engine.state == running", "admit"), "T6_admitted_only_while_running"),
    ("R15: blocks wait for the fence", "request", without("not in_flight", "reap"), "S7_no_free_under_a_writer[0]"),
    ("R16: retracting waits for the fence", "request", without("not in_flight", "retracted"), "S7_no_free_under_a_writer[0]"),
    ("R18: a copy is a fence", "request", without("not kv_copy", "reap"), "S7_no_free_under_a_writer[0]"),
    ("R25: failure empties the slots", "engine",
     lambda row: replace(row, also=tuple(text for text in row.also if "step" not in text)) if row.event == "fail" else row,
     "failed_answers_everybody"),
    ("R34: stopped waits for everybody", "engine", without("everybody_ended", "stop"), "stopped_is_empty"),
]  # fmt: skip
