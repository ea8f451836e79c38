"""Promises on the moves of requests: their terminals, their blocks, their marks, and why they end."""

from __future__ import annotations

from quiesce.proofs.after import after, implies
from quiesce.proofs.claims import Promise, View, effects, happens, never, only
from quiesce.proofs.expr import FALSE, TRUE, Expr, conj, neg
from quiesce.proofs.model import Action

LIVE, HOLDING = "live", "state in (running, retracting, draining)"
CURRENT = "not stale and memory[kv_cache].state == resident and weights.state == stable"
RUNS_ON_STALE = "stale and state == running and not fault_mark"
MOVES = {
    "absent": ("received",),
    "received": ("admitted", "absent"),
    "admitted": ("running", "absent"),
    "running": ("retracting", "draining"),
    "retracting": ("admitted", "draining"),
    "draining": ("absent",),
}
MARKED_BY = {"abort_mark": "abort", "eos_mark": "eos", "fault_mark": "device_fault", "begun": "start"}
"""Mark -> the event that sets it, and no other does."""
REASONS = {
    "abort": "abort_mark or holds_abort or engine.state == stopping or (engine.goal == stop and (state == received or (state == admitted and not begun)))",
    "finish": "eos_mark and state in (running, retracting)",
    "error": "fault_mark or engine.state == failed",
}
"""What a terminal says -> when it may."""
YIELDS = {
    "preempt": "gate_open",
    "retract": "memory[kv_cache].policy == discard or weights.state == committing or pause_token[clear].state == keep",
}
"""How a request comes to give its blocks back while it lives -> when it may."""


def mine(action: Action, instance: str, *events: str) -> bool:
    return action.machine == "request" and action.instance == instance and action.event.name in events


def _terminal(view: View, action: Action, instance: str) -> Expr:
    """S4."""
    number = effects(action, f"request[{instance}].terminal")
    live = view.guard(LIVE, "request", instance)
    if number > 1:
        return FALSE
    return conj([live, after(action, neg(live))]) if number else never(action, live, neg(live))


def _balance(view: View, action: Action, instance: str) -> Expr:
    """S6."""
    takes = effects(action, f"request[{instance}].allocate_blocks")
    gives = effects(action, f"request[{instance}].free_blocks")
    held = view.guard(HOLDING, "request", instance)
    taken = conj([view.guard("free > 0"), neg(held), after(action, held)]) if takes else never(action, neg(held), held)
    return conj([FALSE if takes > 1 else taken, TRUE if gives else never(action, held, neg(held))])


def _freed_once(view: View, action: Action, instance: str) -> Expr:
    """S8."""
    gives = effects(action, f"request[{instance}].free_blocks")
    held = view.guard(HOLDING, "request", instance)
    return TRUE if not gives else FALSE if gives > 1 else conj([held, after(action, neg(held))])


def _freed_by_nobody_else(view: View, action: Action, instance: str) -> Expr:
    """S7."""
    return (
        view.guard("not in_flight and not kv_copy", "request", instance)
        if effects(action, f"request[{instance}].free_blocks")
        else TRUE
    )


def _version(view: View, action: Action, instance: str) -> Expr:
    """S9."""
    runs, stale, holds = (view.guard(text, "request", instance) for text in (RUNS_ON_STALE, "stale", HOLDING))
    claims = [never(action, stale, conj([neg(stale), holds]))]
    if not happens(action, "weights", "commit_keep"):
        claims.append(never(action, neg(runs), runs))
    if effects(action, "new_version"):
        claims.append(after(action, implies(holds, stale)))
    elif mine(action, instance, "device_fault"):
        claims.append(after(action, stale))
    else:
        claims.append(never(action, neg(stale), stale))
    return conj(claims)


def _current(view: View, action: Action, instance: str) -> Expr:
    """T7: what is cached is current, and what is current is not thrown away."""
    if effects(action, f"request[{instance}].free_blocks(cache)"):
        return view.guard(CURRENT, "request", instance)
    return view.guard(f"not ({CURRENT})", "request", instance) if effects(action, f"request[{instance}].free_blocks") else TRUE


def _legal(view: View, action: Action, instance: str) -> Expr:
    return only(view, action, MOVES, "request", instance)


def _marks(view: View, action: Action, instance: str) -> Expr:
    """A mark comes by its own event, and stays until the request is gone; a failed device samples nothing."""
    claims = []
    for name, event in MARKED_BY.items():
        mark = view.guard(name, "request", instance)
        there = view.guard("state != absent", "request", instance)
        if mine(action, instance, event):
            claims.append(conj([TRUE if name == "begun" else neg(mark), after(action, mark)]))
        else:
            claims.append(never(action, neg(mark), mark))
        if not (name == "eos_mark" and happens(action, "engine", "fail")):
            claims.append(never(action, mark, conj([neg(mark), there])))
    return conj(claims)


def _steps(view: View, action: Action, instance: str) -> Expr:
    """T4: who is named, or launched, may run."""
    claims = []
    for slot in ("0", "1"):
        member = view.guard(f"member[{slot}]", "request", instance)
        if action.machine == "step" and action.instance == slot and action.event.name == "plan":
            claims.append(implies(conj([neg(member), after(action, member)]), view.guard("runnable", "request", instance)))
            claims.append(after(action, member) if action.request == instance else TRUE)
        elif not happens(action, "step", "retire"):
            claims.append(never(action, neg(member), member))
        if action.machine == "step" and action.instance == slot and action.event.name == "launch":
            claims.append(implies(member, view.guard("runnable", "request", instance)))
    return conj(claims)


def _members(view: View, action: Action, instance: str) -> Expr:
    """T4: nobody leaves a batch unnoticed."""
    if happens(action, "engine", "fail"):
        return after(action, view.guard("not in_flight", "request", instance))
    first, second = (view.guard(f"member[{slot}]", "request", instance) for slot in ("0", "1"))
    if happens(action, "step", "retire"):
        moved = implies(second, after(action, first))
        return conj([moved, implies(after(action, first), second), after(action, neg(second))])
    claims = []
    for slot, member in (("0", first), ("1", second)):
        planned = view.guard(f"step[{slot}].state == planned")
        leaves = conj([member, after(action, neg(member))])
        if happens(action, "step", "strip_members"):
            claims.append(member if (action.instance, action.request) == (slot, instance) else TRUE)
            claims.append(implies(leaves, conj([planned, neg(view.guard("runnable", "request", instance))])))
        elif happens(action, "step", "drop"):
            claims.append(implies(leaves, planned))
        else:
            claims.append(never(action, member, neg(member)))
    return conj(claims)


def _reason(view: View, action: Action, instance: str) -> Expr:
    """T6: what a terminal says is so."""
    told = [when for word, when in REASONS.items() if effects(action, f"request[{instance}].terminal({word})")]
    return conj([view.guard(when, "request", instance) for when in told])


def _begins(view: View, action: Action, instance: str) -> Expr:
    """T6: a wait drain starts again only what had begun, and nobody starts what is to be answered."""
    if not mine(action, instance, "start"):
        return TRUE
    return view.guard("gate_open and not marked and (engine.state == running or begun)", "request", instance)


def _admitted(view: View, action: Action, instance: str) -> Expr:
    return (
        view.guard("engine.state == running and not marked", "request", instance) if mine(action, instance, "admit") else TRUE
    )


def _accepted(view: View, action: Action, instance: str) -> Expr:
    """And is counted exactly once."""
    if effects(action, f"request[{instance}].accept") != mine(action, instance, "submit"):
        return FALSE
    return view.guard("accepting") if mine(action, instance, "submit") else TRUE


def _yields(view: View, action: Action, instance: str) -> Expr:
    """T6: nothing that runs gives its blocks back without need; what is to be answered is answered instead."""
    running, retracting = (view.guard(f"state == {state}", "request", instance) for state in ("running", "retracting"))
    when = YIELDS.get(str(action.event.name), "false") if action.machine == "request" else "false"
    leaves = conj([running, after(action, retracting)])
    return (
        TRUE
        if after(action, retracting) == retracting
        else implies(leaves, view.guard(f"({when}) and not marked", "request", instance))
    )


PROMISES = (
    Promise("S4_exactly_one_terminal", "request", _terminal),
    Promise("S6_conservation", "request", _balance),
    Promise("S7_no_free_under_a_writer", "request", _freed_by_nobody_else),
    Promise("S8_no_double_free", "request", _freed_once),
    Promise("S9_version_coherence", "request", _version),
    Promise("T2_legal_request_moves", "request", _legal),
    Promise("T2_marks_stay", "request", _marks),
    Promise("T4_only_what_may_run_is_stepped", "request", _steps),
    Promise("T4_nobody_is_lost", "request", _members),
    Promise("T6_accepted_only_when_accepting", "request", _accepted),
    Promise("T6_admitted_only_while_running", "request", _admitted),
    Promise("T6_starts_only_what_may", "request", _begins),
    Promise("T6_ends_for_a_reason", "request", _reason),
    Promise("T6_yields_for_a_reason", "request", _yields),
    Promise("T7_only_current_blocks_are_cached", "request", _current),
)
