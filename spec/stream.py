"""The client's end of a request: one stream, owned by the front end.

A cancel that arrives before the core has answered the opening is remembered, and acted on when the outcome is known. Tokens are data:
they are merged into the one pending output while the stream is open or closing, and fire nothing.
"""

from __future__ import annotations

from quiesce.spec.language import BIT, ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import Presence
from quiesce.spec.vocabulary import StreamEvent as E
from quiesce.spec.vocabulary import StreamState as S

DRAINED = "both ends drain their mailboxes each turn"

MACHINE = Machine(
    name="stream",
    file="spec/stream.py",
    purpose="What a client listens to, from its call to its one terminal.",
    states=S,
    initial=S.closed,
    terminal=(S.closed,),
    meanings={
        S.closed: "nobody listens and nothing is owed",
        S.opening: "the call is on its way; its outcome is not known",
        S.open: "accepted; outputs arrive",
        S.closing: "an abort is on its way; the terminal is owed",
    },
    variables={"cancel": BIT, "client": tuple(Presence)},
    events=(
        Event(E.call, Owner.client),
        Event(E.gone, Owner.client),
        Event(E.abort, Owner.client),
        Event(E.ack, Owner.core, Fairness.weak, DRAINED),
        Event(E.nak, Owner.core, Fairness.weak, DRAINED),
        Event(E.terminal, Owner.core, Fairness.weak, DRAINED),
        Event(E.fail, Owner.core, Fairness.weak, "the supervisor loop"),
    ),
    rows=(
        Row(E.call, (S.closed,), S.opening, "the id is remembered before anything is sent", when="link.state == up",
            sets=("cancel := no", "client := present"), effects=("send_add",)),
        Row(E.gone, (S.opening,), None, "remembered: never acted on before the outcome is known (R36)", when="not cancel",
            sets=("cancel := yes", "client := gone")),
        Row(E.gone, (S.opening,), None, "an abort is remembered already; now nobody waits either", when="cancel and client == present",
            sets=("client := gone",)),
        Row(E.gone, (S.open,), S.closing, "a disconnect is an abort", sets=("client := gone",), effects=("send_abort",)),
        Row(E.gone, (S.closing,), None, "the abort is on its way already", when="client == present", sets=("client := gone",)),
        Row(E.abort, (S.opening,), None, "remembered: never acted on before the outcome is known (R36)", when="not cancel",
            sets=("cancel := yes",)),
        Row(E.abort, (S.open,), S.closing, "exactly one abort per stream", effects=("send_abort",)),
        Row(E.ack, (S.opening,), S.open, "accepted, and still wanted", when="link.state == up and not cancel"),
        Row(E.ack, (S.opening,), S.closing, "accepted, and no longer wanted (R37)", when="link.state == up and cancel",
            sets=("cancel := no",), effects=("send_abort",)),
        Row(E.nak, (S.opening,), S.closed, "refused: whoever waits is told why", sets=("cancel := no",), effects=("deliver_refusal",)),
        Row(E.terminal, (S.open, S.closing), S.closed, "the one terminal; whoever waits gets it", effects=("deliver_terminal",)),
        Row(E.fail, (S.opening, S.open, S.closing), S.closed, "the core is gone: whoever waits gets an error with the tokens so far",
            when="link.state == lost", sets=("cancel := no",), effects=("deliver_error",)),
    ),
    ignored=(
        Ignored(E.gone, (S.opening, S.closing), "remembered once"),
        Ignored(E.gone, (S.closed,), "late: the terminal was delivered"),
        Ignored(E.abort, (S.opening,), "remembered once"),
        Ignored(E.abort, (S.closing, S.closed), "late: it is being aborted, or has its terminal"),
        Ignored(E.ack, (S.closed,), "late: the stream was failed with its link"),
        Ignored(E.nak, (S.closed,), "late: the stream was failed with its link"),
        Ignored(E.terminal, (S.closed,), "late: the stream was failed with its link"),
        Ignored(E.fail, (S.closed,), "nothing is owed"),
    ),
    refused=(
        Refused(E.call, (S.closed,), Error.EngineDead, "start a new engine", when="link.state == down"),
        Refused(E.call, (S.closed,), Error.Unavailable, "the core cannot be reached; retry when the link is up"),
        Refused(E.call, ELSEWHERE, Error.DuplicateRequest, "wait for the terminal of the request that has this id"),
        Refused(E.ack, ELSEWHERE, Error.defect, "an opening is answered once"),
        Refused(E.nak, ELSEWHERE, Error.defect, "an opening is answered once"),
        Refused(E.terminal, ELSEWHERE, Error.defect, "a terminal is sent after the ack of its request"),
    ),
)
