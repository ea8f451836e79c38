"""What must be possible: an event that somebody relies on can happen wherever it is promised. Judged in every state, like a predicate.

Promises on moves say what may not happen; a table without rows keeps them all. These say what may not be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from quiesce.proofs.after import implies
from quiesce.proofs.expr import TRUE, Expr, conj, disj
from quiesce.proofs.model import Builder

GATED = "engine.state in (starting, draining, paused, sleeping, partially_awake)"
OPEN_HERE = "weights.state == updating and engine.state in (paused, partially_awake)"
CAN_WAIT = "(not granted or not begun_left)"
NO_CLEAR = "pause_token[clear].state == free"
NOTHING_MOVES = ("not tag_in_transit and not any_tag(each.state in (resident, undefined) and each.policy != none)"
                 " and memory[kv_cache].state != undefined and memory[weights].state in (resident, undefined)")  # fmt: skip
CALLS = {
    "clear": "engine.state == running or (engine.state in (draining, paused) and goal in (none, pause))",
    "withdraw_sleep": "goal == sleep",
    "withdraw_update": "goal == update",
    "withdraw_clear": f"engine.state == draining and not {NO_CLEAR}",
    "shutdown_deadline": "goal == stop and pause_token[shutdown].state == wait",
    "fail": "not engine.state in (stopped, failed)",
    "ready_empty": "engine.state == starting",
    "ready": "engine.state == starting",
    "wake_up(tags=weights)": "engine.state in (sleeping, partially_awake) and memory[weights].state == released and not update_open",
    "wake_up(tags=kv_cache)": "engine.state in (sleeping, partially_awake) and memory[kv_cache].state == released and not update_open"
                              " and not any_request(each.state in (draining, retracting))",
    "wake_up(tags=both)": "engine.state in (sleeping, partially_awake) and memory[weights].state == released and memory[kv_cache].state == released"
                          " and not update_open and not any_request(each.state in (draining, retracting))",
}  # fmt: skip
"""Call, or event of a timer or the environment -> where it can happen."""
SLEEPING_CALLS = (
    "goal == sleep",
    "not goal in (stop, sleep) and engine.state in (draining, paused) and pause_token[sleep].state != free",
)
"""Where a wake_up of both tags has something to end before memory is away."""
ONE_TAG = (("none", "offload"), ("none", "discard"), ("offload", "none"), ("discard", "none"))
"""Policies of a sleep that chooses one tag, whatever becomes of the other."""
CORE = {
    "undrain": "goal == pause and no_token and (not granted or quiet)",
    "drained_pause": "goal == pause and not no_token and drained",
    "drained_sleep": "goal == sleep and drained",
    "drained_update": "goal == update and drained",
    "drained_stop": "goal == stop and quiet and everybody_ended",
    "reopen": "engine.state == paused and no_token and weights.state == stable and all_resident",
    "settle_sleeping": "engine.state == partially_awake and all_tags(each.state == released)",
    "settle_paused": "engine.state == partially_awake and all_resident and all_tags(each.policy == none)",
    "cleared": f"engine.state == paused and not {NO_CLEAR} and not any_request(each.state in (running, retracting))",
    "stop": "engine.state == stopping and quiet and everybody_ended and not tag_in_transit",
}
"""What the core finishes -> when it can."""
ANSWERS = {
    "abort": "live and not abort_mark",
    "aborted": "live and abort_mark",
    "finish": "live and eos_mark",
    "fault": "live and fault_mark",
    "fail": "live and engine.state == failed",
    "sweep": "live and (holds_abort or engine.state == stopping or (engine.goal == stop and state in (received, admitted) and not begun))",
}
"""How a request is answered -> when it can be."""
LIVES = {
    "submit": "state == absent and accepting",
    "admit": "state == received and engine.state == running and not marked",
    "start": "state == admitted and gate_open and (engine.state == running or begun) and free > 0 and not marked",
    "preempt": "state == running and gate_open and not marked",
    "eos": "state in (running, retracting) and step[0].state == landed and member[0] and not eos_mark",
    "device_fault": "live and not fault_mark",
    "retracted": "state == retracting and not in_flight and not marked and not kv_copy",
    "reap": "state == draining and not in_flight and not kv_copy",
    "retract": "state == running and not marked and not holds_abort and not (holds_wait and not engine.granted)"
               " and ((memory[kv_cache].policy == discard and engine.state in (draining, partially_awake)) or weights.state == committing"
               " or (engine.state == paused and pause_token[clear].state == keep))",
}  # fmt: skip
"""How a request goes on -> when it can."""
MEMORY = {
    "release": "engine.state == partially_awake and policy != none and state in (resident, undefined)"
               " and ((tag == weights and not update_open) or (tag == kv_cache and state == resident"
               " and not any_request(each.state in (draining, retracting))"
               " and (policy == offload or not any_request(each.state == running))))",
    "released": "state == releasing",
    "release_failed": "state == releasing",
    "restored": "state == restoring",
    "restore_failed": "state == restoring",
    "kv_ready": "tag == kv_cache and state == undefined and engine.state == partially_awake",
}  # fmt: skip
WEIGHTS = {
    "load": OPEN_HERE,
    "commit": OPEN_HERE,
    "commit_keep": OPEN_HERE,
    "rollback": "weights.state == updating",
    "load_failed": "weights.state == updating",
    "committed": "weights.state == committing and engine.state in (paused, partially_awake) and not any_request(each.state in (running, retracting))",
}


def offers(builder: Builder) -> dict[str, Expr]:
    """Name and predicate of all of them, in a world with an engine in it; else none.

    Raises:
        ValueError: the world has not been built: no action is known.
    """
    if "step" not in builder.world.instances:
        return {}
    if not builder.model.actions:
        raise ValueError("build the world first: what is possible is said of its actions")
    found: dict[str, list[Expr]] = {}
    for name, where in (*_engine(builder), *_tokens(builder), *_parts(builder), *_steps(builder)):
        found.setdefault(name, []).append(where)
    return {name: conj(parts) for name, parts in found.items()}


def due(builder: Builder) -> Expr:
    """Where the core has something to do before the next call (rule R1), said without looking at the marks of its events."""
    found = [builder.guard("engine", "", where) for where in (*CORE.values(), WEIGHTS["committed"])]
    for request in builder.world.instances["request"]:
        answers = [where for event, where in ANSWERS.items() if event != "abort"]
        goes_on = [LIVES[event] for event in ("admit", "retract", "retracted", "reap")]
        named = [
            f"step[{slot}].state == planned and member[{slot}] and not runnable" for slot in builder.world.instances["step"]
        ]
        found += [builder.guard("request", request, where) for where in (*answers, *goes_on, *named)]
    found += [builder.guard("memory", tag, MEMORY["release"]) for tag in builder.world.instances["memory"]]
    for slot in builder.world.instances["step"]:
        empty = f"state == planned and (not gate_open or not any_request(each.member[{slot}]))"
        found += [builder.guard("step", slot, where) for where in (empty, "state == landed and place == older")]
    return disj(found)


def _offer(builder: Builder, action: str, where: str, machine: str = "engine", instance: str = "") -> Expr:
    """Where this is promised, some action of this name, data included, can be taken; not asked of what a world leaves out."""
    event = re.sub(r"\[.*?\]|\(.*\)", "", action)
    if event in builder.world.without:
        return TRUE
    possible = disj([one.guard for one in builder.model.actions if one.name == action])
    return implies(builder.guard(machine, instance, where), possible)


def _engine(builder: Builder) -> Iterator[tuple[str, Expr]]:
    for event, where in CALLS.items():
        yield "E1_calls_are_taken", _offer(builder, f"engine.{event}", where)
    for where in SLEEPING_CALLS:
        yield "E1_calls_are_taken", _offer(builder, "engine.wake_up(tags=both)", where)
    for event, where in CORE.items():
        yield "E2_the_core_goes_on", _offer(builder, f"engine.{event}", where)
    for event, where in WEIGHTS.items():
        yield "E3_updates_go_on", _offer(builder, f"weights.{event}", where)
    for mode in ("wait", "abort"):
        yield "E4_shutdown_is_taken", _offer(builder, f"engine.shutdown(mode={mode})",
              "engine.state in (starting, running, paused, sleeping, partially_awake) or (engine.state == draining and goal != stop)"
              " or (engine.state == failed and everybody_ended)")  # fmt: skip
    yield (
        "E4_shutdown_is_taken",
        _offer(builder, "engine.shutdown(mode=abort)", "goal == stop and pause_token[shutdown].state == wait"),
    )


def _tokens(builder: Builder) -> Iterator[tuple[str, Expr]]:
    for owner in [
        name for name in builder.world.instances["pause_token"] if name not in ("sleep", "update", "shutdown", "clear")
    ]:
        yield "E5_holds_and_releases_are_taken", _offer(builder, f"engine.resume(owner={owner})", f"{GATED} and goal != stop")
        for mode in ("keep", "wait", "abort"):
            can = f"engine.state == running or ({GATED} and goal != stop" + (f" and {CAN_WAIT})" if mode == "wait" else ")")
            yield "E5_holds_and_releases_are_taken", _offer(builder, f"engine.pause(owner={owner}, mode={mode})", can)
    for mode in ("keep", "wait", "abort"):
        rise = f" and {CAN_WAIT}" if mode == "wait" else ""
        update = (f"engine.state == running or (not update_open{rise} and ((engine.state == draining and goal == pause) or engine.state == paused"
                  f" or (engine.state == partially_awake and {NOTHING_MOVES} and (weights.state == undefined or memory[weights].state == resident))))")  # fmt: skip
        yield "E6_updates_and_sleeps_begin", _offer(builder, f"engine.begin_update(mode={mode})", update)
        level_0 = f"engine.state == running or (engine.state in (draining, paused, partially_awake) and goal != stop{rise})"
        yield "E6_updates_and_sleeps_begin", _offer(builder, f"engine.sleep(mode={mode}, weights=none, kv_cache=none)", level_0)
        sleep = (f"engine.state == running or (not update_open and {NO_CLEAR}{rise} and all_tags(each.policy == none)"
                 " and (engine.state == paused or (engine.state == draining and goal in (pause, sleep))))")  # fmt: skip
        for weights, kv in (("offload", "offload"), ("discard", "discard"), *ONE_TAG):
            chosen = [tag for tag, policy in (("weights", weights), ("kv_cache", kv)) if policy != "none"]
            there = " and ".join(f"memory[{tag}].state == resident and memory[{tag}].policy == none" for tag in chosen)
            more = f" or (engine.state == partially_awake and not update_open{rise} and {there})"
            name = f"engine.sleep(mode={mode}, weights={weights}, kv_cache={kv})"
            yield "E6_updates_and_sleeps_begin", _offer(builder, name, f"({sleep}){more}")


def _parts(builder: Builder) -> Iterator[tuple[str, Expr]]:
    for request in builder.world.instances["request"]:
        for event, where in ANSWERS.items():
            yield f"E7_answers_are_due[{request}]", _offer(builder, f"request[{request}].{event}", where, "request", request)
        for event, where in LIVES.items():
            yield f"E8_requests_go_on[{request}]", _offer(builder, f"request[{request}].{event}", where, "request", request)
    for tag in builder.world.instances["memory"]:
        for event, where in MEMORY.items():
            yield f"E9_memory_goes_on[{tag}]", _offer(builder, f"memory[{tag}].{event}", where, "memory", tag)


def _steps(builder: Builder) -> Iterator[tuple[str, Expr]]:
    for slot in builder.world.instances["step"]:
        in_order = "true" if slot == "0" else "step[0].state in (launched, landed)"
        named = f"each.member[{slot}]"
        steps = {
            "launch": f"state == planned and gate_open and {in_order} and any_request({named}) and all_requests(not {named} or each.runnable)",
            "land": "state == launched and " + ("true" if slot == "0" else "step[0].state == landed"),
            "drop": f"state == planned and (not gate_open or not any_request({named}))",
            "retire": "state == landed and place == older",
        }
        for event, where in steps.items():
            yield "E10_steps_go_on", _offer(builder, f"step[{slot}].{event}", where, "step", slot)
        for request in builder.world.instances["request"]:
            plan = f"step[{slot}].state in (empty, planned) and gate_open and {in_order} and runnable"
            strip = f"step[{slot}].state == planned and member[{slot}] and not runnable"
            for event, where in (("plan", plan), ("strip_members", strip)):
                name = f"step[{slot}].{event}(requests={request})"
                yield f"E11_steps_name_what_may_run[{request}]", _offer(builder, name, where, "request", request)
