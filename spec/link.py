"""The way from a front end to its core. A loss is final for its epoch, even when the core turns out to be alive (R35)."""

from __future__ import annotations

from quiesce.spec.language import ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import LinkEvent as E
from quiesce.spec.vocabulary import LinkState as S

SUPERVISOR = "the supervisor loop"
SETTLED = "core == dead and all_streams(each.state == closed) and control == idle"

MACHINE = Machine(
    name="link",
    file="spec/link.py",
    purpose="Front end and core: whether they hear each other, and whether the core lives.",
    states=S,
    initial=S.connecting,
    terminal=(S.down,),
    meanings={
        S.connecting: "the core is being started",
        S.up: "messages pass",
        S.lost: "the core is dead or taken for dead; everything pending is being answered",
        S.restarting: "a new core is being started, under a new epoch",
        S.down: "no core will come; calls fail at once",
    },
    variables={"core": ("alive", "dead"), "control": ("idle", "pending"), "budget": ("some", "none")},
    events=(
        Event(E.connect, Owner.core, Fairness.weak, SUPERVISOR),
        Event(E.crash, Owner.environment),
        Event(E.detect, Owner.core, Fairness.weak, "process sentinel and heartbeat"),
        Event(E.lose, Owner.environment),
        Event(E.kill, Owner.core, Fairness.weak, SUPERVISOR, boundary=True),
        Event(E.restart, Owner.core, Fairness.weak, SUPERVISOR, boundary=True),
        Event(E.give_up, Owner.core, Fairness.weak, SUPERVISOR, boundary=True),
    ),
    rows=(
        Row(E.connect, (S.connecting, S.restarting), S.up, "the core answers", when="core == alive"),
        Row(E.crash, (S.connecting, S.up, S.lost, S.restarting), None, "the core ends by itself, and nobody knows yet", when="core == alive",
            sets=("core := dead",)),
        Row(E.detect, (S.connecting, S.up, S.restarting), S.lost, "dead; its messages are dropped from now", when="core == dead",
            effects=("drop_mailboxes",)),
        Row(E.lose, (S.connecting, S.up, S.restarting), S.lost, "too slow to be told from dead: its messages are dropped from now",
            when="core == alive", effects=("drop_mailboxes",)),
        Row(E.kill, (S.lost,), None, "before any restart: one core only", when="core == alive", sets=("core := dead",), effects=("kill_core",)),
        Row(E.restart, (S.lost,), S.restarting, "every stream and call of the old core is answered", when=f"{SETTLED} and budget == some",
            sets=("core := alive",), effects=("start_core",)),
        Row(E.give_up, (S.lost,), S.down, "the restarts are used up", when=f"{SETTLED} and budget == none"),
    ),
    ignored=(
        Ignored(E.crash, (S.down,), "over already"),
        Ignored(E.detect, (S.lost, S.down), "known already"),
        Ignored(E.lose, (S.lost, S.down), "known already"),
    ),
    refused=(
        Refused(E.connect, ELSEWHERE, Error.defect, "only what is being started connects"),
        Refused(E.kill, ELSEWHERE, Error.defect, "only a lost core is killed"),
        Refused(E.restart, ELSEWHERE, Error.defect, "only after a loss"),
        Refused(E.give_up, ELSEWHERE, Error.defect, "only after a loss"),
    ),
)
