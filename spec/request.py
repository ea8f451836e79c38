"""The life of a request, from the client's call to the last of its KV blocks.

State outside the named states: four marks (work that the next pass does first), `begun`, `stale`, and which step slots name it.
Order and age are not here: first come, first served, and "the oldest" are mechanisms of the scheduler, relied on as strong fairness.
"""

from __future__ import annotations

from quiesce.spec.language import BIT, ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import RequestEvent as E
from quiesce.spec.vocabulary import RequestState as S

LIVE = (S.received, S.admitted, S.running, S.retracting)
WAITING = (S.received, S.admitted)
HOLDING = (S.running, S.retracting)
FORGET = ("begun := no", "abort_mark := no", "eos_mark := no", "fault_mark := no", "stale := no")
CURRENT = "not stale and memory[kv_cache].state == resident and weights.state == stable"
SWEPT = "holds_abort or engine.state == stopping"
MUST_RETRACT = (
    "(engine.state == draining and engine.goal == sleep and memory[kv_cache].policy == discard)"
    " or (engine.state == partially_awake and memory[kv_cache].policy == discard)"
    " or weights.state == committing"
    " or (engine.state == paused and pause_token[clear].state == keep)"
)
PASS = "the pass runs its boundary rows to a fixpoint before it takes the next call"

MACHINE = Machine(
    name="request",
    file="spec/request.py",
    purpose="What a client asked for, until it is answered and owns nothing.",
    states=S,
    initial=S.absent,
    terminal=(S.ended,),
    meanings={
        S.absent: "no such request",
        S.received: "accepted, not yet looked at",
        S.admitted: "waits for KV blocks; holds none",
        S.running: "holds KV blocks and is named by steps",
        S.retracting: "gives its blocks back as soon as no step in flight names it, then waits again",
        S.draining: "its client has the terminal; its blocks wait for the last step that names it",
        S.ended: "owns nothing",
    },
    variables={
        "begun": BIT,
        "abort_mark": BIT,
        "eos_mark": BIT,
        "fault_mark": BIT,
        "stale": BIT,
        "oldest": BIT,
        "member[0]": BIT,
        "member[1]": BIT,
    },
    events=(
        Event(E.submit, Owner.client),
        Event(E.admit, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.start, Owner.core, Fairness.strong, "first come, first served: the oldest waiting request gets the next free blocks"),
        Event(E.preempt, Owner.core),
        Event(E.retract, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.retracted, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.abort, Owner.client),
        Event(E.aborted, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.sweep, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.eos, Owner.device, Fairness.strong, "max_tokens: the tokens left strictly decrease with each step that retires"),
        Event(E.finish, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.fail, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.device_fault, Owner.device),
        Event(E.fault, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.reap, Owner.core, Fairness.weak, PASS, boundary=True),
    ),
    rows=(
        Row(E.submit, (S.absent,), S.received, "accepted while the gate admits or queues", when="accepting", effects=("accept",)),
        Row(E.admit, (S.received,), S.admitted, "only in running: not while starting, and not in a wait drain (R12)",
            when="engine.state == running and not marked"),
        Row(E.start, (S.admitted,), S.running, "a wait drain restarts what had begun and nothing else (R11)",
            when="gate_open and (engine.state == running or begun) and free > 0 and not marked",
            sets=("begun := yes",), effects=("allocate_blocks",)),
        Row(E.preempt, (S.running,), S.retracting, "memory is short; the oldest request is never the one that yields (R23)",
            when="gate_open and not marked and not oldest"),
        Row(E.retract, (S.running,), S.retracting, "its KV is about to be discarded, recomputed or cleared (R20)",
            when=f"not marked and not holds_abort and not (holds_wait and not engine.granted) and ({MUST_RETRACT})"),
        Row(E.retracted, (S.retracting,), S.admitted, "no step names it any more; what it computed may still serve others (R16)",
            when=f"not in_flight and not marked and not kv_copy and {CURRENT}", sets=("stale := no",), effects=("free_blocks(cache)",)),
        Row(E.retracted, (S.retracting,), S.admitted, "same, but what it computed is no longer current (R31)",
            when=f"not in_flight and not marked and not kv_copy and not ({CURRENT})", sets=("stale := no",), effects=("free_blocks(drop)",)),
        Row(E.abort, LIVE, None, "remembered, and acted on in this pass, whatever the engine's state (R14)",
            when="not abort_mark", sets=("abort_mark := yes",)),
        Row(E.aborted, WAITING, S.ended, "it never held a block", when="abort_mark", sets=FORGET, effects=("terminal(abort)",)),
        Row(E.aborted, HOLDING, S.draining, "answered now; its blocks wait for the fence (R17)", when="abort_mark", effects=("terminal(abort)",)),
        Row(E.sweep, (S.received,), S.ended, "the gate closed for good, or an abort token is held (R13)",
            when=f"{SWEPT} or engine.goal == stop", sets=FORGET, effects=("terminal(abort)",)),
        Row(E.sweep, (S.admitted,), S.ended, "same; what had begun may run on until the shutdown deadline",
            when=f"{SWEPT} or (engine.goal == stop and not begun)", sets=FORGET, effects=("terminal(abort)",)),
        Row(E.sweep, HOLDING, S.draining, "answered with its tokens so far", when=SWEPT, effects=("terminal(abort)",)),
        Row(E.eos, HOLDING, None, "the step that landed sampled its last token", when="step[0].state == landed and member[0] and not eos_mark",
            sets=("eos_mark := yes",)),
        Row(E.finish, HOLDING, S.draining, "a retracting request can still reach its end (R24)", when="eos_mark", effects=("terminal(finish)",)),
        Row(E.fail, WAITING, S.ended, "the engine failed: everybody is answered", when="engine.state == failed", sets=FORGET,
            effects=("terminal(error)",)),
        Row(E.fail, HOLDING, S.draining, "the engine failed: everybody is answered", when="engine.state == failed", effects=("terminal(error)",)),
        Row(E.device_fault, LIVE, None, "its own work failed: what it computed is for nobody", when="not fault_mark",
            sets=("fault_mark := yes", "stale := yes")),
        Row(E.fault, WAITING, S.ended, "one bad request never fails the engine", when="fault_mark", sets=FORGET, effects=("terminal(error)",)),
        Row(E.fault, HOLDING, S.draining, "one bad request never fails the engine", when="fault_mark", effects=("terminal(error)",)),
        Row(E.reap, (S.draining,), S.ended, "the last step that named it has retired, and no copy of the KV runs (R15, R18)",
            when=f"not in_flight and not kv_copy and {CURRENT}", sets=FORGET, effects=("free_blocks(cache)",)),
        Row(E.reap, (S.draining,), S.ended, "same, but what it computed is no longer current (R31)",
            when=f"not in_flight and not kv_copy and not ({CURRENT})", sets=FORGET, effects=("free_blocks(drop)",)),
    ),
    ignored=(
        Ignored(E.abort, ELSEWHERE, "late: it is answered already, or unknown; reported in not_found"),
        Ignored(E.abort, LIVE, "it is being aborted already: one terminal only"),
        Ignored(E.eos, (S.draining, S.ended, S.absent), "its client has the terminal: the token is dropped, the fence still counts"),
        Ignored(E.device_fault, (S.draining, S.ended, S.absent), "its client has the terminal"),
    ),
    refused=(
        Refused(E.submit, (S.absent,), Error.EngineDead, "start a new engine", when="engine.state in (failed, stopped)"),
        Refused(E.submit, (S.absent,), Error.Unavailable, "it is shutting down: start a new engine", when="engine.state == stopping or engine.goal == stop"),
        Refused(E.submit, (S.absent,), Error.Unavailable, "wait until the engine is running, or resume what holds it"),
        Refused(E.submit, ELSEWHERE, Error.DuplicateRequest, "wait for the terminal of the request that has this id"),
        Refused(E.eos, ELSEWHERE, Error.defect, "no step names a request that holds no block"),
        Refused(E.admit, ELSEWHERE, Error.defect, "only what is received is admitted"),
        Refused(E.start, ELSEWHERE, Error.defect, "only what is admitted starts"),
        Refused(E.preempt, ELSEWHERE, Error.defect, "only what runs is preempted"),
        Refused(E.retract, ELSEWHERE, Error.defect, "only what runs is retracted"),
        Refused(E.retracted, ELSEWHERE, Error.defect, "only what retracts gives its blocks back this way"),
        Refused(E.aborted, ELSEWHERE, Error.defect, "only what is live is aborted"),
        Refused(E.sweep, ELSEWHERE, Error.defect, "only what is live is swept"),
        Refused(E.finish, ELSEWHERE, Error.defect, "only what holds blocks finishes"),
        Refused(E.fail, ELSEWHERE, Error.defect, "only what is live is failed"),
        Refused(E.fault, ELSEWHERE, Error.defect, "only what is live is faulted"),
        Refused(E.reap, ELSEWHERE, Error.defect, "only what drains is reaped"),
    ),
)
