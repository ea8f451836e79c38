"""Promises on the moves of memory, weights and the prefix cache."""

from __future__ import annotations

from quiesce.proofs.after import after, implies, same
from quiesce.proofs.claims import Promise, View, carried, effects, happens, never, only
from quiesce.proofs.expr import FALSE, TRUE, Expr, conj, disj, neg
from quiesce.proofs.model import Action

TAGS = {
    "resident": ("releasing", "undefined"),
    "releasing": ("released", "resident", "undefined"),
    "released": ("restoring", "undefined"),
    "restoring": ("resident", "undefined", "released"),
    "undefined": ("resident", "releasing"),
}
WEIGHTS = {
    "stable": ("updating", "undefined"),
    "updating": ("committing", "stable", "undefined"),
    "committing": ("stable", "undefined"),
    "undefined": ("updating",),
}
COMPLETIONS = ("released", "release_failed", "restored", "restore_failed")
ENDS = ("stop", "fail")
HOLDERS = "any_request(each.state in (running, retracting, draining))"
UNUSED = {
    "weights": "not update_open",
    "kv_cache": "not any_request(each.state in (draining, retracting)) and (policy == offload or not any_request(each.state == running))",
}
"""Tag -> when nobody reads or writes it, and nothing of it that is needed goes with it."""
DEVICE = {
    "released": ("releasing", "released"),
    "release_failed": ("releasing", "resident"),
    "restore_failed": ("restoring", "released"),
    "kv_ready": ("undefined", "resident"),
}
"""What the device says -> where the tag was, and where it is then."""


def _legal(view: View, action: Action, instance: str) -> Expr:
    return only(view, action, TAGS, "memory", instance)


def _transit(view: View, action: Action, instance: str) -> Expr:
    """A tag in transit is moved by the device, or by the end of it; and as the device said."""
    if happens(action, "engine", "fail"):
        return TRUE
    here = view.guard("state in (releasing, restoring)", "memory", instance)
    if action.machine == "memory" and action.instance == instance and action.event.name in DEVICE:
        source, target = DEVICE[str(action.event.name)]
        found = [
            view.guard(f"state == {source}", "memory", instance),
            after(action, view.guard(f"state == {target}", "memory", instance)),
        ]
        return conj(found)
    if action.machine == "memory" and action.instance == instance and action.event.name == "restored":
        return conj([view.guard("state == restoring", "memory", instance), after(action, neg(here))])
    return never(action, here, neg(here))


def _leaves(view: View, action: Action, instance: str) -> Expr:
    """Memory leaves only when nobody uses it, and asks the device for it exactly then."""
    releasing, mapped = (
        view.guard(f"state {test}", "memory", instance) for test in ("== releasing", "in (resident, undefined)")
    )
    if not effects(action, f"memory[{instance}].unmap"):
        return never(action, mapped, releasing)
    when = view.guard(
        f"quiet and engine.state == partially_awake and policy != none and {UNUSED[instance]}", "memory", instance
    )
    return conj([mapped, when, after(action, releasing)])


def _returns(view: View, action: Action, instance: str) -> Expr:
    """Memory comes back only while nothing is written into it or given back; the device is told then."""
    restoring, released = (view.guard(f"state == {state}", "memory", instance) for state in ("restoring", "released"))
    if not effects(action, f"memory[{instance}].map"):
        return never(action, released, restoring)
    claims = [view.guard("not update_open")]
    if instance == "kv_cache":
        claims.append(view.guard("not any_request(each.state in (draining, retracting))"))
    return implies(conj([neg(restoring), after(action, restoring)]), conj([released, *claims]))


def _valid(view: View, action: Action, instance: str) -> Expr:
    """T8."""
    resident = view.guard("state == resident", "memory", instance)
    if after(action, resident) == resident:
        return TRUE
    arrives = conj([neg(resident), after(action, resident)])
    if happens(action, "memory", "release_failed"):
        return implies(arrives, view.guard("state == releasing", "memory", instance))
    if happens(action, "memory", "restored"):
        return implies(arrives, view.guard("policy == offload", "memory", instance))
    if happens(action, "memory", "kv_ready"):
        return implies(arrives, view.guard("engine.state == partially_awake") if instance == "kv_cache" else FALSE)
    written = instance == "weights" and effects(action, "new_version")
    return TRUE if written else neg(arrives)


def _policy(view: View, action: Action, instance: str) -> Expr:
    """A policy is chosen by a sleep, never changed, and forgotten when the tag is back, before it left, or at the end."""
    none, offload, discard = (view.guard(f"policy == {name}", "memory", instance) for name in ("none", "offload", "discard"))
    chosen = carried(action).get(instance) if happens(action, "engine", "sleep") else None
    if chosen in ("offload", "discard"):
        wanted = offload if chosen == "offload" else discard
        return conj([disj([none, wanted]), after(action, wanted)])
    claims = [never(action, neg(offload), offload), never(action, neg(discard), discard)]
    here = view.guard("state in (resident, undefined)", "memory", instance)
    if happens(action, "engine", *ENDS) or (
        action.instance == instance and happens(action, "memory", "restored", "release_failed")
    ):
        claims.append(after(action, none))
    elif happens(action, "engine", "withdraw_sleep"):
        claims.append(same(disj([none, here]), after(action, none)))
    elif happens(action, "engine", "wake_up", "shutdown"):
        claims.append(never(action, neg(disj([none, here])), none))
    else:
        claims.append(never(action, neg(none), none))
    return conj(claims)


def _weights(view: View, action: Action, _: str) -> Expr:
    return only(view, action, WEIGHTS, "weights", "")


def _base(view: View, action: Action, _: str) -> Expr:
    """The old weights are whole from the beginning of an update on stable weights to the first byte; only then it is undone cleanly."""
    intact, updating, stable = (
        view.guard(text) for text in ("weights.base_intact", "weights.state == updating", "weights.state == stable")
    )
    claims = [never(action, conj([neg(intact), updating]), conj([intact, updating]))]
    if happens(action, "weights", "load"):
        claims.append(after(action, neg(intact)) if effects(action, "load_weights") == 1 else FALSE)
    elif effects(action, "load_weights"):
        return FALSE
    if after(action, updating) != updating:
        claims.append(implies(conj([neg(updating), after(action, updating)]), same(stable, after(action, intact))))
    if not effects(action, "new_version"):
        claims.append(implies(conj([updating, after(action, stable)]), intact))
        claims.append(never(action, neg(disj([updating, stable])), stable))
    if happens(action, "weights", "rollback"):
        claims.append(implies(intact, after(action, stable)))
    return conj(claims)


def _lost(view: View, action: Action, _: str) -> Expr:
    """Weights lose their content only by an update that fails or is undone too late, a discard, an empty start, or the end."""
    stable, gone = view.guard("weights.state == stable"), view.guard("weights.state == undefined")
    lost = view.guard("weights.state == undefined and not weights.base_intact")
    if happens(action, "engine", "ready_empty", *ENDS):
        return after(action, lost)
    if happens(action, "memory", "released") and action.instance == "weights":
        discard = view.guard("policy == discard", "memory", "weights")
        return conj([implies(discard, after(action, lost)), implies(conj([stable, after(action, gone)]), discard)])
    return never(action, stable, gone)


def _new_version(view: View, action: Action, _: str) -> Expr:
    """T7: a new version is one move: stable weights, an empty prefix index, mapped memory, a free token, no step on its way."""
    stable = view.guard("weights.state == stable")
    if not effects(action, "new_version"):
        return never(action, view.guard("weights.state == committing"), stable)
    now = view.guard("weights.state in (updating, committing) and engine.state in (paused, partially_awake) and quiet")
    then = view.guard("weights.state == stable and memory[weights].state == resident and pause_token[update].state == free")
    gone = TRUE if effects(action, "drop_prefix_index") else FALSE
    kept = (
        TRUE
        if happens(action, "weights", "commit_keep")
        else view.guard("not any_request(each.state in (running, retracting))")
    )
    return conj([now, after(action, then), gone, kept])


def _prefix(view: View, action: Action, _: str) -> Expr:
    """T7: the prefix index is dropped where the KV behind it goes, and nowhere else."""
    drops = effects(action, "drop_prefix_index")
    if happens(action, "engine", "cleared", *ENDS) or effects(action, "new_version"):
        return TRUE if drops == 1 else FALSE
    if happens(action, "memory", "released") and action.instance == "kv_cache":
        discard = view.guard("policy == discard", "memory", "kv_cache")
        return conj([discard, view.guard(f"not {HOLDERS}")]) if drops else neg(discard)
    return FALSE if drops else TRUE


def _commit_is_quiet(view: View, action: Action, _: str) -> Expr:
    return view.guard("quiet") if effects(action, "new_version") else TRUE


def _unmap_is_quiet(view: View, action: Action, _: str) -> Expr:
    return view.guard("quiet") if effects(action, "unmap") else TRUE


PROMISES = (
    Promise("S3_unmap_when_quiet", "engine", _unmap_is_quiet),
    Promise("T3_legal_tag_moves", "memory", _legal),
    Promise("T3_in_transit_the_device_speaks", "memory", _transit),
    Promise("T3_leaves_unused", "memory", _leaves),
    Promise("T3_returns_untouched", "memory", _returns),
    Promise("T3_policy_is_kept", "memory", _policy),
    Promise("T7_commit_when_quiet", "engine", _commit_is_quiet),
    Promise("T7_legal_weights_moves", "engine", _weights),
    Promise("T7_clean_rollback", "engine", _base),
    Promise("T7_content_is_lost_for_a_reason", "engine", _lost),
    Promise("T7_a_new_version_is_one_move", "engine", _new_version),
    Promise("T7_prefix_goes_with_its_kv", "engine", _prefix),
    Promise("T8_resident_for_a_reason", "memory", _valid),
)
