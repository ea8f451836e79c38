"""Several turns with one history. Add, cancel and end happen in that order by construction. Sessions live in the front end."""

from __future__ import annotations

from quiesce.spec.language import ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import SessionEvent as E
from quiesce.spec.vocabulary import SessionState as S

TURN_IS_OVER = "turn_stream_closed and turn_request_ended"

MACHINE = Machine(
    name="session",
    file="spec/session.py",
    purpose="A conversation: one turn at a time.",
    states=S,
    initial=S.absent,
    terminal=(S.absent,),
    meanings={
        S.absent: "no such session",
        S.idle: "no turn; its KV is ordinary evictable prefix cache",
        S.active: "a turn is on its way",
        S.closing: "closed by its client; the last turn's end is awaited, holding nothing",
    },
    variables={"turn_stream_closed": ("yes", "no"), "turn_request_ended": ("yes", "no")},
    events=(
        Event(E.open, Owner.client),
        Event(E.turn, Owner.client),
        Event(E.stream_closed, Owner.core, Fairness.weak, "every stream is answered"),
        Event(E.request_ended, Owner.core, Fairness.weak, "every fence falls"),
        Event(E.turn_over, Owner.core, Fairness.weak, "both ends drain their mailboxes each turn", boundary=True),
        Event(E.close, Owner.client),
        Event(E.closed, Owner.core, Fairness.weak, "both ends drain their mailboxes each turn", boundary=True),
    ),
    rows=(
        Row(E.open, (S.absent,), S.idle, "whatever the engine does, as long as there is one", when="link.state in (connecting, up)"),
        Row(E.turn, (S.idle,), S.active, "the previous turn is over (R38)", when=TURN_IS_OVER,
            sets=("turn_stream_closed := no", "turn_request_ended := no")),
        Row(E.turn, (S.active,), None, "the terminal is delivered, or its client has left: the next turn waits for the last fence, and is never refused",
            when="turn_stream_closed and not turn_request_ended"),
        Row(E.stream_closed, (S.active, S.closing), None, "the turn's client has its terminal, or has left", sets=("turn_stream_closed := yes",)),
        Row(E.request_ended, (S.active, S.closing), None, "the last fence of the turn's request has fallen, or there never was one",
            sets=("turn_request_ended := yes",)),
        Row(E.turn_over, (S.active,), S.idle, "the history is kept if the turn finished", when=TURN_IS_OVER),
        Row(E.close, (S.idle,), S.closing, "nothing to wait for"),
        Row(E.close, (S.active,), S.closing, "the turn's stream is told to end", effects=("abort_turn",)),
        Row(E.closed, (S.closing,), S.absent, "nothing is left of the last turn", when=TURN_IS_OVER),
    ),
    ignored=(
        Ignored(E.close, (S.closing, S.absent), "idempotent"),
        Ignored(E.stream_closed, ELSEWHERE, "the core is gone: its turns are over already"),
        Ignored(E.request_ended, ELSEWHERE, "the core is gone: its turns are over already"),
    ),
    refused=(
        Refused(E.open, (S.absent,), Error.EngineDead, "start a new engine", when="link.state == down"),
        Refused(E.open, (S.absent,), Error.Unavailable, "the core cannot be reached; retry when the link is up"),
        Refused(E.open, ELSEWHERE, Error.defect, "session ids are chosen by the engine"),
        Refused(E.turn, (S.idle, S.active), Error.TransitionConflict, "await or abort the turn in hand; it is untouched"),
        Refused(E.turn, (S.closing,), Error.TransitionConflict, "open_session"),
        Refused(E.turn, (S.absent,), Error.InvalidRequest, "open_session"),
        Refused(E.turn_over, ELSEWHERE, Error.defect, "only an active session has a turn"),
        Refused(E.closed, ELSEWHERE, Error.defect, "only a closing session ends"),
    ),
)
