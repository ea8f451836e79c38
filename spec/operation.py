"""A control call, from its acceptance to its one answer. Cancelling the caller detaches the caller; the operation runs to its end."""

from __future__ import annotations

from quiesce.spec.language import BIT, ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import OperationEvent as E
from quiesce.spec.vocabulary import OperationKind as Kind
from quiesce.spec.vocabulary import OperationState as S
from quiesce.spec.vocabulary import Presence

ENDED = (S.done, S.failed, S.superseded)
PASS = "the pass runs to its fixpoint"
DRAINS = "kind in (pause, sleep, begin_weight_update, update_weights, reset_prefix_cache)"
DRAIN_OVER = "drained and not engine.state in (starting, running, draining)"

MACHINE = Machine(
    name="operation",
    file="spec/operation.py",
    purpose="pause, resume, sleep, wake_up, update and shutdown, as callers see them.",
    states=S,
    initial=S.queued,
    terminal=ENDED,
    meanings={
        S.queued: "not begun: new, or behind an operation that is sure to end",
        S.draining: "its drain runs; a deadline or a stronger call can still withdraw it",
        S.acting: "its effect is under way, and ends with its copies",
        S.done: "its effect holds; answered",
        S.failed: "it had no effect, or the engine is in a declared, retryable state; answered with the error",
        S.superseded: "a later call took its place; answered with that call's name",
    },
    variables={"kind": tuple(Kind), "names_weights": BIT, "names_kv": BIT, "delivered": BIT, "caller": tuple(Presence)},
    events=(
        Event(E.take, Owner.core, Fairness.strong, "tried after every event of the core, first come, first served; what is waited for is sure to end"),
        Event(E.act, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.deliver, Owner.device, Fairness.weak, "copies end or fail"),
        Event(E.complete, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.give_up, Owner.core),
        Event(E.supersede, Owner.operator),
        Event(E.expire, Owner.timer),
        Event(E.detach, Owner.client),
    ),
    rows=(
        Row(E.take, (S.queued,), S.draining, "its turn has come; the gate is closed", when=DRAINS),
        Row(E.take, (S.queued,), S.acting, "acts on the operation in hand; there is nothing to drain", when=f"not ({DRAINS})"),
        Row(E.act, (S.draining,), S.acting, "the device is idle and every terminal that was due is handed over", when=DRAIN_OVER),
        Row(E.deliver, (S.acting,), None, "the device has done its part", sets=("delivered := yes",)),
        Row(E.complete, (S.acting,), S.done, "the gate is closed and nothing runs", when="kind == pause and pause_token[clear].state == free",
            effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "its token is free", when="kind == resume", effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "every tag it named is away",
            when="kind == sleep and (not names_weights or memory[weights].state == released)"
                 " and (not names_kv or memory[kv_cache].state == released)", effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "every tag it named is back; discarded weights wait for an update",
            when="kind == wake_up and (not names_weights or memory[weights].state in (resident, undefined))"
                 " and (not names_kv or memory[kv_cache].state == resident)", effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "the update is open", when="kind == begin_weight_update and weights.state == updating",
            effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "every tensor it brought is written", when="kind == load_weights and delivered", effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "the new version serves, or will once the gate opens",
            when="kind in (update_weights, finish_weight_update) and weights.state == stable", effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "no update is open", when="kind == abort_weight_update and not update_open", effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "the device has summed up what is loaded", when="kind == weights_checksum and delivered",
            effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "nothing cached is found any more", when="kind == reset_prefix_cache and pause_token[clear].state == free",
            effects=("answer(done)",)),
        Row(E.complete, (S.acting,), S.done, "everybody is answered and everything given back", when="kind == shutdown and engine.state == stopped",
            effects=("answer(done)",)),
        Row(E.give_up, (S.queued, S.draining, S.acting), S.failed, "refused, rolled back, or the engine failed", effects=("answer(failed)",)),
        Row(E.supersede, (S.queued, S.draining), S.superseded, "overtaken before it acted", effects=("answer(superseded)",)),
        Row(E.expire, (S.queued, S.draining), S.failed, "withdrawn: its token is released, what it froze goes on", effects=("answer(deadline)",)),
        Row(E.detach, (S.queued, S.draining, S.acting), None, "the caller left; the operation runs to its declared end",
            when="caller == present", sets=("caller := gone",)),
    ),
    ignored=(
        Ignored(E.detach, (S.queued, S.draining, S.acting, *ENDED), "nobody waits any more"),
        Ignored(E.supersede, (S.acting, *ENDED), "too late: it acts, or is answered"),
        Ignored(E.expire, (S.acting, *ENDED), "lost race: a deadline runs until the operation acts"),
        Ignored(E.give_up, ENDED, "answered already"),
        Ignored(E.deliver, ELSEWHERE, "a completion of an operation that is answered"),
    ),
    refused=(
        Refused(E.take, ELSEWHERE, Error.defect, "only what is queued is taken"),
        Refused(E.act, ELSEWHERE, Error.defect, "an operation acts once"),
        Refused(E.complete, ELSEWHERE, Error.defect, "only what acts completes"),
    ),
)
