"""Promises on the moves of the engine, its tokens and its steps: the gate, the drains, who holds and who frees."""

from __future__ import annotations

from quiesce.proofs.after import after, implies
from quiesce.proofs.claims import Promise, View, carried, effects, happens, never, only
from quiesce.proofs.expr import FALSE, TRUE, Expr, conj, disj, neg
from quiesce.proofs.model import Action

ENGINE = {
    "starting": ("running", "paused", "stopping", "failed"),
    "running": ("draining", "failed"),
    "draining": ("running", "paused", "partially_awake", "stopping", "failed"),
    "paused": ("running", "draining", "stopping", "failed"),
    "partially_awake": ("sleeping", "paused", "stopping", "failed"),
    "sleeping": ("partially_awake", "stopping", "failed"),
    "stopping": ("stopped", "failed"),
    "stopped": (),
    "failed": ("stopped",),
}
DRAINS = {"pause": ("paused", "running"), "sleep": ("partially_awake",), "update": ("paused",), "stop": ("stopping",)}
"""Goal -> where its drain ends."""
DRAINED = ("drained_pause", "drained_sleep", "drained_update", "drained_stop")
GRANTS = ("drained_pause", "drained_sleep", "drained_update", "ready", "ready_empty")
FREES_A_TOKEN = {
    "sleep": {"settle_paused", "wake_up", "withdraw_sleep", "shutdown"},
    "update": {"withdraw_update", "committed", "commit_keep", "rollback", "load_failed", "shutdown"},
    "clear": {"cleared", "withdraw_clear"},
    "shutdown": set(),
    "caller": {"resume"},
}
"""Events after which an owner's token may be free, beside those that end the engine."""
FREED = {
    "sleep": {"settle_paused", "withdraw_sleep"},
    "update": {"withdraw_update", "committed", "commit_keep", "rollback", "load_failed"},
    "clear": {"cleared", "withdraw_clear"},
    "shutdown": set(),
}
"""Events after which it is free."""
TAKES = {"sleep": {"sleep"}, "update": {"begin_update"}, "clear": {"clear"}, "shutdown": {"shutdown", "shutdown_deadline"}}
"""Calls that take an owner's token, or strengthen it; a caller's is taken by the pause that names it."""
ENDS = {"stop", "fail"}
STRENGTHS = ("free", "keep", "wait", "abort")
GOALS = {"sleep": "sleep", "begin_update": "update", "shutdown": "stop", "pause": "pause", "clear": "pause"}
"""Call -> what a drain that it begins is for."""
ARRIVES = {"plan": "planned", "launch": "launched", "land": "landed", "drop": "empty"}
"""Event of a step -> what its slot is then; `retire` and `void` are said apart."""
SLOT = {"empty": ("planned",), "planned": ("launched", "empty"), "launched": ("landed",), "landed": ()}


def _is_step(action: Action) -> bool:
    return happens(action, "step", "plan", "launch")


def _gate(view: View, action: Action, _: str) -> Expr:
    return view.guard("gate_open") if _is_step(action) else TRUE


def _still(view: View, action: Action, _: str) -> Expr:
    return view.guard("not engine.granted") if _is_step(action) else TRUE


def _handed_over(view: View, action: Action, _: str) -> Expr:
    drained = "quiet and not any_request(each.state == draining or each.eos_mark)"
    return view.guard(drained) if happens(action, "engine", *DRAINED) else TRUE


def _wait(view: View, action: Action, _: str) -> Expr:
    return view.guard("not holds_wait or not begun_left") if happens(action, "engine", *DRAINED) else TRUE


def _abort(view: View, action: Action, _: str) -> Expr:
    return view.guard("not holds_abort or not any_request(each.live)") if happens(action, "engine", *DRAINED) else TRUE


def _stop(view: View, action: Action, _: str) -> Expr:
    """A drain to stop ends, and an engine stops, with everybody answered and nothing owned."""
    over = view.guard("quiet and everybody_ended")
    if happens(action, "engine", "drained_stop"):
        return over
    stopped = view.guard("engine.state == stopped")
    given_back = TRUE if effects(action, "release_everything") else FALSE
    return neg(given_back) if after(action, stopped) == stopped else implies(after(action, stopped), conj([over, given_back]))


def _own(view: View, action: Action, owner: str) -> bool:
    """Whether the action is the owner's own call."""
    if owner in TAKES:
        return happens(action, "engine", *TAKES[owner])
    return happens(action, "engine", "pause") and carried(action)["owner"] == owner


def _level(view: View, owner: str, *states: str) -> Expr:
    return view.guard(f"state in ({', '.join(states)},)", "pause_token", owner)


def _freed(view: View, action: Action, owner: str) -> Expr:
    """S11: by its own release, stop or failure; and these do free it."""
    free = _level(view, owner, "free")
    named = happens(action, "engine", "resume") and carried(action)["owner"] == owner
    if named or str(action.event.name) in FREED.get(owner, set()) | ENDS:
        return after(action, free)
    if happens(action, "engine", "shutdown") and owner in ("sleep", "update"):  # it takes the place of what was pending
        return implies(view.guard("engine.state == draining"), after(action, free))
    if happens(action, "engine", "wake_up") and owner == "sleep":  # it withdraws the sleep, or ends one of level 0
        return implies(view.guard("engine.state in (draining, paused)"), after(action, free))
    if str(action.event.name) in FREES_A_TOKEN.get(owner, set()):
        return TRUE
    return never(action, neg(free), free)


def _weakens(view: View, action: Action, owner: str) -> Expr:
    """S11: while it is held a token never weakens."""
    claims = []
    for number in (2, 3):
        held, weaker = _level(view, owner, *STRENGTHS[number:]), _level(view, owner, *STRENGTHS[1:number])
        claims.append(never(action, held, weaker))
    return conj(claims)


def _takes(view: View, action: Action, owner: str) -> Expr:
    """T5: a call takes its own token at least as strongly as it says, and no other."""
    held = [_level(view, owner, *STRENGTHS[number:]) for number in (1, 2, 3)]
    if not _own(view, action, owner):
        return conj([never(action, neg(level), level) for level in held])
    mode = carried(action).get("mode", {"clear": "keep", "shutdown_deadline": "abort"}.get(str(action.event.name), "keep"))
    wanted = STRENGTHS.index(mode)
    claims = [disj([view.guard("engine.state == failed"), after(action, held[wanted - 1])])]
    if owner != "shutdown":
        claims += [never(action, neg(level), level) for level in held[wanted:]]
    return conj(claims)


def _legal(view: View, action: Action, _: str) -> Expr:
    return only(view, action, ENGINE, "engine", "")


def _goal(view: View, action: Action, _: str) -> Expr:
    """A drain ends where its goal says, a call sets its own goal, a withdrawal makes it a pause; a stop is never given up."""
    claims = []
    for goal, ends in DRAINS.items():
        legal = view.guard(f"engine.state in (draining, failed, {', '.join(ends)})")
        if after(action, legal) != legal:
            claims.append(implies(view.guard(f"engine.state == draining and goal == {goal}"), after(action, legal)))
    draining = view.guard("engine.state == draining")
    event = str(action.event.name) if action.machine == "engine" else ""
    level_0 = event == "sleep" and "weights=none, kv_cache=none" in action.name
    joins = level_0 or event in ("pause", "clear")
    if event in ("withdraw_sleep", "withdraw_update"):
        claims.append(after(action, view.guard("goal == pause")))
    elif event in GOALS:
        wanted = view.guard(f"goal == {'pause' if level_0 else GOALS[event]}")
        began = conj([neg(draining), after(action, draining)]) if joins else after(action, draining)
        claims.append(implies(began, after(action, wanted)))
    if joins or event not in ("sleep", "begin_update", "shutdown", "wake_up", "withdraw_sleep", "withdraw_update"):
        for goal in DRAINS:
            kept = view.guard(f"goal == {goal}")
            claims.append(never(action, conj([draining, kept]), conj([draining, neg(kept)])))
    stop = view.guard("goal == stop")
    claims.append(never(action, stop, conj([draining, neg(stop)])))
    return conj(claims)


def _granted(view: View, action: Action, _: str) -> Expr:
    """Told "paused" by the end of a drain or of loading; taken back by `reopen` alone, or lost with the engine."""
    granted, paused = view.guard("engine.granted"), view.guard("engine.state in (paused, partially_awake)")
    claims = []
    if happens(action, "engine", *GRANTS):
        claims.append(implies(after(action, paused), after(action, granted)))
    else:
        claims.append(never(action, neg(granted), granted))
    if happens(action, "engine", "reopen"):
        claims.append(after(action, conj([view.guard("engine.state == running"), neg(granted)])))
    elif not happens(action, "engine", "fail"):
        claims.append(never(action, granted, neg(granted)))
    return conj(claims)


def _opens(view: View, action: Action, _: str) -> Expr:
    """Loading ends in a gate that is open exactly if nobody holds it and the weights are there; a held drain does not reopen it."""
    running = view.guard("engine.state == running")
    if happens(action, "engine", "ready"):
        return conj(
            [implies(view.guard("no_token"), after(action, running)), implies(after(action, running), view.guard("no_token"))]
        )
    return implies(after(action, running), view.guard("no_token")) if after(action, running) != running else TRUE


def _begins(view: View, action: Action, _: str) -> Expr:
    """An update begins, and an engine is asleep, where its drain has ended."""
    if happens(action, "engine", "drained_update"):
        return after(action, view.guard("weights.state == updating"))
    updating = view.guard("weights.state == updating")
    in_place = view.guard("engine.state == partially_awake")
    if happens(action, "engine", "begin_update") and after(action, updating) == updating:
        return implies(in_place, updating)
    if after(action, updating) == updating:
        return TRUE
    here = view.guard("engine.state == partially_awake and not tag_in_transit and memory[kv_cache].state != undefined"
                      " and not any_tag(each.state in (resident, undefined) and each.policy != none)"
                      " and memory[weights].state in (resident, undefined)")  # fmt: skip
    begins = conj([neg(updating), after(action, updating)])
    if not happens(action, "engine", "begin_update"):
        return neg(begins)
    return conj([implies(begins, here), implies(in_place, after(action, updating))])


def _slots(view: View, action: Action, slot: str) -> Expr:
    """A step is planned, launched and landed in order; it retires when it has landed, and the newer one takes its place."""
    if happens(action, "engine", "fail"):
        return after(action, view.guard("state == empty", "step", slot))
    if not happens(action, "step", "retire"):
        return only(view, action, SLOT, "step", slot)
    if slot == "1":
        return after(action, view.guard("state == empty", "step", "1"))
    moved = [
        implies(view.guard(f"step[1].state == {state}"), after(action, view.guard(f"step[0].state == {state}")))
        for state in SLOT
    ]
    return conj([view.guard("step[0].state == landed"), *moved])


def _launch(view: View, action: Action, slot: str) -> Expr:
    """The device is given a step, or its results are taken, exactly once and in order."""
    claims: list[Expr] = []
    for word, event in (("launch_step", "launch"), ("retire_step", "retire"), ("drop_step", "drop")):
        number = effects(action, f"step[{slot}].{word}")
        wanted = action.machine == "step" and action.instance == slot and action.event.name == event
        claims.append(TRUE if number == wanted else FALSE)
    if action.machine == "step" and action.instance == slot:
        if action.event.name in ARRIVES:
            claims.append(after(action, view.guard(f"state == {ARRIVES[str(action.event.name)]}", "step", slot)))
        if action.event.name in ("launch", "plan") and slot == "1":
            claims.append(view.guard("step[0].state in (launched, landed)"))
        elif action.event.name == "land" and slot == "1":
            claims.append(view.guard("step[0].state == landed"))
        if action.event.name == "launch":
            claims.append(view.guard(f"any_request(each.member[{slot}])"))
        elif action.event.name == "drop":
            claims.append(view.guard(f"not gate_open or not any_request(each.member[{slot}])"))
    return conj(claims)


PROMISES = (
    Promise("S11_ownership", "pause_token", _freed),
    Promise("S11_never_weakens", "pause_token", _weakens),
    Promise("S12_granted_is_still", "engine", _still),
    Promise("T1_handed_over", "engine", _handed_over),
    Promise("T1_wait_is_kept", "engine", _wait),
    Promise("T1_abort_is_kept", "engine", _abort),
    Promise("T1_stop_is_kept", "engine", _stop),
    Promise("T4_steps_through_the_gate", "engine", _gate),
    Promise("T4_legal_step_moves", "step", _slots),
    Promise("T4_launched_once_and_in_order", "step", _launch),
    Promise("T5_takes_its_own_token", "pause_token", _takes),
    Promise("T9_legal_engine_moves", "engine", _legal),
    Promise("T9_goal_is_kept", "engine", _goal),
    Promise("T9_granted_by_a_drain", "engine", _granted),
    Promise("T9_opens_for_nobody_held", "engine", _opens),
    Promise("T9_update_begins_drained", "engine", _begins),
)
