"""A control call, from its acceptance to its one answer. Cancelling the caller detaches the caller; the operation runs to its end."""

from __future__ import annotations

from quiesce.spec.language import BIT, ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import OperationEvent as E
from quiesce.spec.vocabulary import OperationState as S
from quiesce.spec.vocabulary import Presence

ENDED = (S.done, S.failed, S.superseded)
PASS = "the pass runs to its fixpoint"

MACHINE = Machine(
    name="operation",
    file="spec/operation.py",
    purpose="pause, resume, sleep, wake_up, update and shutdown, as callers see them.",
    states=S,
    initial=S.queued,
    terminal=ENDED,
    meanings={
        S.queued: "behind an operation that is sure to end",
        S.draining: "its drain runs; a deadline or a stronger call can still withdraw it",
        S.acting: "its effect is under way, and ends with its copies",
        S.done: "its effect holds; answered",
        S.failed: "it had no effect, or the engine is in a declared, retryable state; answered with the error",
        S.superseded: "a later call took its place; answered with that call's name",
    },
    variables={"front": BIT, "at_once": BIT, "caller": tuple(Presence)},
    events=(
        Event(E.take, Owner.core, Fairness.weak, "every operation in front ends: drains have deadlines, copies are device-fair", boundary=True),
        Event(E.act, Owner.core, Fairness.weak, PASS, boundary=True),
        Event(E.finish, Owner.core, Fairness.weak, "copies end or fail", boundary=True),
        Event(E.fail, Owner.core),
        Event(E.supersede, Owner.operator),
        Event(E.expire, Owner.timer),
        Event(E.detach, Owner.client),
    ),
    rows=(
        Row(E.take, (S.queued,), S.draining, "its turn has come; the gate is closed", when="front and not at_once"),
        Row(E.act, (S.queued,), S.acting, "acts on the operation in hand, never queued", when="at_once"),
        Row(E.act, (S.draining,), S.acting, "the drain has ended", when="drained"),
        Row(E.finish, (S.acting,), S.done, "truthful: the effect holds", effects=("answer(done)",)),
        Row(E.fail, (S.queued, S.draining, S.acting), S.failed, "rolled back, or the engine failed", effects=("answer(failed)",)),
        Row(E.supersede, (S.queued, S.draining), S.superseded, "overtaken before it acted", effects=("answer(superseded)",)),
        Row(E.expire, (S.queued, S.draining), S.failed, "withdrawn: its token is released, what it froze goes on", effects=("answer(deadline)",)),
        Row(E.detach, (S.queued, S.draining, S.acting), None, "the caller left; the operation runs to its declared end",
            when="caller == present", sets=("caller := gone",)),
    ),
    ignored=(
        Ignored(E.detach, (S.queued, S.draining, S.acting, *ENDED), "nobody waits any more"),
        Ignored(E.supersede, (S.acting, *ENDED), "too late: it acts, or is answered"),
        Ignored(E.expire, (S.acting, *ENDED), "lost race: a deadline runs until the operation acts"),
        Ignored(E.fail, ENDED, "answered already"),
    ),
    refused=(
        Refused(E.take, ELSEWHERE, Error.defect, "only what is queued is taken"),
        Refused(E.act, ELSEWHERE, Error.defect, "an operation acts once"),
        Refused(E.finish, ELSEWHERE, Error.defect, "only what acts finishes"),
    ),
)
