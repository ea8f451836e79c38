"""Who holds the engine, and how strongly. One token per owner; a release removes only the owner's own (S11)."""

from __future__ import annotations

from quiesce.spec.language import Error, Event, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import TokenEvent as E
from quiesce.spec.vocabulary import TokenOwner
from quiesce.spec.vocabulary import TokenState as S

MACHINE = Machine(
    name="pause_token",
    file="spec/pause_token.py",
    purpose="One owner's hold on the engine. The strongest held mode rules: abort over wait over keep.",
    states=S,
    initial=S.free,
    terminal=(S.free,),
    meanings={
        S.free: "this owner holds nothing",
        S.keep: "held; what runs is frozen",
        S.wait: "held; what runs may run to its end",
        S.abort: "held; what is live is ended",
    },
    instances=tuple(TokenOwner),
    events=(Event(E.hold, Owner.operator, takes=("mode",)), Event(E.release, Owner.operator)),
    rows=(
        Row(E.hold, (S.free,), S.keep, "taken in the mode asked for", when="event.mode == keep"),
        Row(E.hold, (S.free, S.keep), S.wait, "taken, or strengthened", when="event.mode == wait"),
        Row(E.hold, (S.free, S.keep, S.wait), S.abort, "taken, or strengthened", when="event.mode == abort"),
        Row(E.release, (S.keep, S.wait, S.abort), S.free, "by its owner, its time to live, or the end of the engine"),
    ),
    ignored=(
        Ignored(E.hold, (S.keep, S.wait, S.abort), "held as strongly or stronger: a token never weakens until it is released"),
        Ignored(E.release, (S.free,), "an idempotent release"),
    ),
    refused=(Refused(E.hold, (S.free,), Error.InvalidRequest, "name a mode: keep, wait or abort"),),
)
