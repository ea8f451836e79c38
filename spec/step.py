"""The life of one device step. Two slots: the older and the newer; both may be launched and not landed (depth 2).

State outside the named states: the place (older or newer), and the members, kept as bits of the requests (`spec/request.py`).
"""

from __future__ import annotations

from quiesce.spec.language import ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import Place
from quiesce.spec.vocabulary import StepEvent as E
from quiesce.spec.vocabulary import StepState as S

IN_ORDER = "(place == older or step[0].state in (launched, landed))"
OVER = (S.retired, S.dropped)

MACHINE = Machine(
    name="step",
    file="spec/step.py",
    purpose="One batch on its way through the device.",
    states=S,
    initial=S.empty,
    terminal=OVER,
    meanings={
        S.empty: "the slot names nobody",
        S.planned: "a batch is chosen; nothing runs",
        S.launched: "given to the device",
        S.landed: "came back, results not yet taken",
        S.retired: "results taken; the slot is free",
        S.dropped: "never launched, or lost with a failed device; the slot is free",
    },
    variables={"place": tuple(Place)},
    instances=("0", "1"),
    events=(
        Event(E.plan, Owner.core, Fairness.strong, "the running queue is served in age order; a step always includes the oldest",
              takes=("requests",)),
        Event(E.strip_members, Owner.core, Fairness.weak, "the pass runs to its fixpoint", boundary=True, takes=("requests",)),
        Event(E.launch, Owner.core, Fairness.strong, "plan and launch are in the same pass, after boundary work"),
        Event(E.land, Owner.device, Fairness.weak, "device steps end, or the watchdog fails the engine"),
        Event(E.retire, Owner.core, Fairness.weak, "the pass runs to its fixpoint", boundary=True),
        Event(E.drop, Owner.core, Fairness.weak, "the pass runs to its fixpoint", boundary=True),
        Event(E.void, Owner.core),
    ),
    rows=(
        Row(E.plan, (S.empty,), S.planned, "a batch of requests that run",
            when=f"gate_open and all_named(each.runnable) and {IN_ORDER}", sets=("named.member[this] := yes",)),
        Row(E.plan, (S.planned,), None, "more requests join the batch before it is launched",
            when=f"gate_open and all_named(each.runnable) and {IN_ORDER}", sets=("named.member[this] := yes",)),
        Row(E.strip_members, (S.planned,), None, "who ended or yielded leaves the batch; the others keep their turn (R22)",
            when="all_named(each.member[this] and not each.runnable)", sets=("named.member[this] := no",)),
        Row(E.launch, (S.planned,), S.launched, "the gate is looked at again: what was planned before a drain is never launched after (R9)",
            when=f"gate_open and any_member(true) and all_members(each.runnable) and {IN_ORDER}", effects=("launch_step",)),
        Row(E.land, (S.launched,), S.landed, "steps land in the order they were launched", when="place == older or step[0].state == landed"),
        Row(E.retire, (S.landed,), S.retired, "its tokens go out; the newer step becomes the older", when="place == older",
            sets=("request[*].member[this] := false",), effects=("retire_step",), shifts=True),
        Row(E.drop, (S.planned,), S.dropped, "the gate closed, or nobody is left in it (R9)", when="not gate_open or not any_member(true)",
            sets=("request[*].member[this] := false",), effects=("drop_step",)),
        Row(E.void, (S.planned, S.launched, S.landed), S.dropped, "the device context is gone, its fences are void (R25)",
            sets=("request[*].member[this] := false",)),
    ),
    ignored=(
        Ignored(E.void, ELSEWHERE, "nothing of it is left to void"),
        Ignored(E.land, OVER, "a completion of a dead epoch"),
    ),
    refused=(
        Refused(E.plan, ELSEWHERE, Error.defect, "a batch is chosen before it is launched"),
        Refused(E.strip_members, ELSEWHERE, Error.defect, "only a planned batch can lose members"),
        Refused(E.launch, ELSEWHERE, Error.defect, "a step is launched once, after it is planned"),
        Refused(E.land, ELSEWHERE, Error.defect, "only what was launched can land"),
        Refused(E.retire, ELSEWHERE, Error.defect, "a step retires once, after it has landed"),
        Refused(E.drop, ELSEWHERE, Error.defect, "only a planned batch can be dropped: a launched one is waited for"),
    ),
)
