"""What the machines share: the facts that guards name, the order of the pass, and what a held mode means for each request.

The rows that read or write another machine say so themselves (`when`, `sets`, `also`). Here is what no single row can say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from quiesce.spec.language import Fact
from quiesce.spec.vocabulary import EngineEvent, MemoryEvent, OperationEvent, RequestEvent, StepEvent, WeightsEvent

FACTS = (
    Fact("quiet", "", "all_steps(each.state in (empty, retired, dropped))", "nothing is planned, launched or landed"),
    Fact("all_resident", "", "all_tags(each.state == resident)", "every tag is mapped and valid"),
    Fact("no_token", "", "all_tokens(each.state == free)", "nobody holds the engine"),
    Fact("holds_abort", "", "any_token(each.state == abort)", "some token is held in mode abort"),
    Fact("holds_wait", "", "any_token(each.state == wait) and not holds_abort", "the strongest held mode is wait"),
    Fact("gate_open", "", "(engine.state == running or (engine.state == draining and holds_wait and not engine.granted))"
         " and all_resident and weights.state == stable", "steps may be planned and launched"),
    Fact("update_open", "", "weights.state in (updating, committing)", "a weight update is open"),
    Fact("kv_copy", "", "memory[kv_cache].state in (releasing, restoring)", "the KV is being copied, mapped or unmapped"),
    Fact("tag_in_transit", "", "any_tag(each.state in (releasing, restoring))", "some tag is being copied, mapped or unmapped"),
    Fact("everybody_ended", "", "all_requests(each.state in (absent, ended))", "no request owns anything"),
    Fact("begun_left", "", "any_request(each.state in (running, retracting) or (each.state == admitted and each.begun))",
         "something that has begun is not answered"),
    Fact("drained", "", "quiet and not any_request(each.state in (draining, retracting) or each.eos_mark)"
         " and (not holds_wait or not begun_left) and (not holds_abort or not any_request(each.live))",
         "the device is idle and every terminal that is due is handed over (R10)"),
    Fact("accepts", "", "engine.state == running", "a new call is accepted and admitted"),
    Fact("queues", "", "(engine.state == starting and not any_token(each.state in (wait, abort)))"
         " or (engine.state in (draining, paused, sleeping, partially_awake)"
         " and any_token(each.state == keep) and not any_token(each.state in (wait, abort)))", "a new call is accepted and waits"),
    Fact("accepting", "", "accepts or queues", "a new call is accepted"),
    Fact("marked", "request", "abort_mark or eos_mark or fault_mark", "something is to be done about it before any step"),
    Fact("runnable", "request", "state == running and not marked", "a step may name it"),
    Fact("in_flight", "request", "member[0] or member[1]", "a step slot names it"),
    Fact("live", "request", "state in (received, admitted, running, retracting)", "accepted and not answered"),
)

PASS_ORDER: tuple[tuple[str, StrEnum], ...] = (
    ("request", RequestEvent.aborted),
    ("request", RequestEvent.fail),
    ("request", RequestEvent.fault),
    ("request", RequestEvent.finish),
    ("request", RequestEvent.sweep),
    ("request", RequestEvent.retract),
    ("step", StepEvent.strip_members),
    ("step", StepEvent.drop),
    ("step", StepEvent.retire),
    ("request", RequestEvent.retracted),
    ("request", RequestEvent.reap),
    ("engine", EngineEvent.undrain),
    ("engine", EngineEvent.drained_stop),
    ("engine", EngineEvent.drained_pause),
    ("engine", EngineEvent.drained_sleep),
    ("engine", EngineEvent.drained_update),
    ("operation", OperationEvent.act),
    ("memory", MemoryEvent.release),
    ("weights", WeightsEvent.committed),
    ("engine", EngineEvent.settle_sleeping),
    ("engine", EngineEvent.settle_paused),
    ("engine", EngineEvent.cleared),
    ("engine", EngineEvent.reopen),
    ("engine", EngineEvent.stop),
    ("request", RequestEvent.admit),
    ("operation", OperationEvent.complete),
)
"""R1, the order of the pass: take one client or operator event, fire these to a fixpoint in this order, then plan and launch.
Fixpoint matters, order does not for the verdicts; it is fixed so that traces are reproducible. `session` and `link` have boundary
rows of their own, fired by the front end, which owns them."""


@dataclass(frozen=True, slots=True)
class HeldModePolicy:
    """What happens to a request in each state while this is the strongest held mode."""

    mode: str
    running: str
    admitted: str
    received: str
    new_call: str


HELD_MODE_POLICIES = (
    HeldModePolicy("abort", "ends `abort` with its tokens so far", "ends `abort`", "ends `abort` in that same pass", "refused, retryable"),
    HeldModePolicy("wait", "runs to its end", "stays queued; what had begun runs to its end", "stays queued", "refused, retryable"),
    HeldModePolicy("keep", "frozen, continues later", "frozen", "queued", "queued, bounded"),
    HeldModePolicy("shutdown", "runs to the deadline, then ends `abort`", "ends `abort`; what had begun runs to the deadline",
                   "ends `abort`", "refused"),
)
"""The policy column, in words. It is derived: `accepting`, `gate_open` and the rows of `sweep`, `start` and `retract` are the rule."""
