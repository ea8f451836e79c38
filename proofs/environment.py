"""What surrounds the machines of the tables in the smaller worlds, in the language of the tables: mailboxes, and an engine cut down to
what a link sees of it.

Nothing here is part of the engine. The rows of `spec/` stay as they are; a `Surroundings` says which moves of the environment go with
them (`joins`), which moves only the environment makes (`additions`), and what is said instead of what a world leaves out
(`abstractions`), each with its reason. `x[this]` is the instance of `x` with the number of the one the row is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum, auto

from quiesce.spec.language import (
    ELSEWHERE,
    Error,
    Event,
    Fairness,
    Ignored,
    Judge,
    Machine,
    Modality,
    Owner,
    Property,
    Refused,
    Row,
)
from quiesce.spec.request import FORGET
from quiesce.spec.vocabulary import LinkState, RequestState

FILE = "proofs/environment.py"
DRAINED = "both ends drain their mailboxes each turn"
PASSES = "link.state == up and link.core == alive"


@dataclass(frozen=True, slots=True)
class Addition:
    """Events and rows of a machine of the tables that only its environment brings about."""

    events: tuple[Event, ...]
    rows: tuple[Row, ...]
    ignored: tuple[Ignored, ...] = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a world adds to the tables."""

    machines: tuple[Machine, ...] = ()
    additions: Mapping[str, Addition] = field(default_factory=dict)
    joins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Moves that go with an event (`link.crash`), with an effect (`stream.send_add`), or with the rows of an event that lead to a state
    (`session.turn > active`)."""
    messages: Mapping[str, str] = field(default_factory=dict)
    """Events that are messages (`stream.ack`), and the move that takes them: they happen only when that can. Where the tables ignore the
    event the message is thrown away."""
    conditions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """When an event of the tables can happen at all, and why: `session.request_ended`, or of one instance `operation[1].take`."""
    abstractions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """A part of a guard -> what is said instead, and why that is sound."""
    no_variables: frozenset[str] = frozenset()
    """Variables that are not modelled: a guard that names one must be decided by an abstraction, what is written to it is forgotten."""
    left_out: frozenset[str] = frozenset()
    """Events that happen only together with others, or not at all."""
    starts: Mapping[str, str] = field(default_factory=dict)
    """Machine -> the state it begins in, where that is not the table's."""
    patient: frozenset[str] = frozenset()
    """Events of the core that wait for its boundary work, as calls do (R1)."""
    judged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Machine -> the instances whose leads-to stand for all."""
    properties: tuple[Property, ...] = ()
    """About the environment's own machines."""

    def around(self, machines: Mapping[str, Machine]) -> dict[str, Machine]:
        """These tables with what the environment adds to them, and its own machines."""
        found = dict(machines)
        for name, addition in self.additions.items():
            table = found[name]
            found[name] = replace(
                table, events=(*table.events, *addition.events), rows=(*table.rows, *addition.rows), ignored=(*table.ignored, *addition.ignored)
            )  # fmt: skip
        return {**found, **{machine.name: machine for machine in self.machines}}

    def with_also(
        self, joins: Mapping[str, tuple[str, ...]], conditions: Mapping[str, tuple[str, str]], left_out: frozenset[str]
    ) -> Surroundings:
        """The same with more."""
        return replace(
            self, joins={**self.joins, **joins}, conditions={**self.conditions, **conditions}, left_out=self.left_out | left_out
        )  # fmt: skip


# ---- mailboxes --------------------------------------------------------------------------------------------------------------


class ToCore(StrEnum):
    empty = auto()
    add = auto()
    abort = auto()
    overrun = auto()


class ToClient(StrEnum):
    empty = auto()
    ack = auto()
    ack_term = auto()
    term = auto()
    nak = auto()
    overrun = auto()


LOST = Ignored("drop", ELSEWHERE, "nothing to drop")
TO_CORE = Machine(
    name="to_core",
    file=FILE,
    purpose="What the front end has sent about one request and the core has not taken. Order across requests is not modelled: that allows more.",
    states=ToCore,
    initial=ToCore.empty,
    terminal=(),
    meanings={
        ToCore.empty: "nothing is on its way",
        ToCore.add: "a call",
        ToCore.abort: "an abort",
        ToCore.overrun: "more than the front end may ever have sent",
    },
    events=(
        Event("add", Owner.client),
        Event("abort", Owner.client),
        Event("deliver", Owner.core, Fairness.weak, DRAINED),
        Event("drop", Owner.core),
    ),
    rows=(
        Row("add", (ToCore.empty,), ToCore.add, "a slot stands for one incarnation at a time: ids carry a generation, an old one's message is nobody's",
            when="request[this].state == ended and to_client[this].state == empty"),
        Row("abort", (ToCore.empty,), ToCore.abort, "posted", when="link.state == up"),
        Row("abort", (ToCore.add, ToCore.abort, ToCore.overrun), ToCore.overrun, "never so", when="link.state == up"),
        Row("deliver", (ToCore.add,), ToCore.empty, "the core accepts", when=f"{PASSES} and accepting", also=("request[this].submit",)),
        Row("deliver", (ToCore.add,), ToCore.empty, "the core refuses", when=f"{PASSES} and not accepting", also=("to_client[this].nak",)),
        Row("deliver", (ToCore.abort,), ToCore.empty, "the core ends it, if it lives", when=PASSES, also=("request[this].abort",)),
        Row("drop", (ToCore.add, ToCore.abort, ToCore.overrun), ToCore.empty, "the link is lost"),
    ),
    ignored=(Ignored("abort", tuple(ToCore), "the link is lost: nobody takes it"), LOST),
    refused=(
        Refused("add", tuple(ToCore), Error.defect, "one incarnation at a time"),
        Refused("deliver", ELSEWHERE, Error.defect, "nothing to take"),
    ),
)  # fmt: skip

TO_CLIENT = Machine(
    name="to_client",
    file=FILE,
    purpose="What the core has sent about one request and the front end has not taken. Tokens are left out: they are cumulative.",
    states=ToClient,
    initial=ToClient.empty,
    terminal=(),
    meanings={
        ToClient.empty: "nothing is on its way",
        ToClient.ack: "accepted",
        ToClient.ack_term: "accepted, and ended already",
        ToClient.term: "the terminal",
        ToClient.nak: "refused",
        ToClient.overrun: "more than one answer, or an answer behind the terminal",
    },
    events=(
        Event("ack", Owner.core),
        Event("nak", Owner.core),
        Event("terminal", Owner.core),
        Event("take_ack", Owner.core),
        Event("take_nak", Owner.core),
        Event("take_terminal", Owner.core),
        Event("drop", Owner.core),
    ),
    rows=(
        Row("ack", (ToClient.empty,), ToClient.ack, "posted", when="link.state == up"),
        Row("ack", tuple(ToClient)[1:], ToClient.overrun, "never so", when="link.state == up"),
        Row("nak", (ToClient.empty,), ToClient.nak, "posted", when="link.state == up"),
        Row("nak", tuple(ToClient)[1:], ToClient.overrun, "never so", when="link.state == up"),
        Row("terminal", (ToClient.empty,), ToClient.term, "posted", when="link.state == up"),
        Row("terminal", (ToClient.ack,), ToClient.ack_term, "posted behind the ack", when="link.state == up"),
        Row("terminal", tuple(ToClient)[2:], ToClient.overrun, "never so", when="link.state == up"),
        Row("take_ack", (ToClient.ack,), ToClient.empty, "taken"),
        Row("take_ack", (ToClient.ack_term,), ToClient.term, "taken; the terminal is next"),
        Row("take_nak", (ToClient.nak,), ToClient.empty, "taken"),
        Row("take_terminal", (ToClient.term,), ToClient.empty, "taken"),
        Row("drop", tuple(ToClient)[1:], ToClient.empty, "the link is lost"),
    ),
    ignored=(
        *(Ignored(event, tuple(ToClient), "a message of a lost epoch: nobody takes it") for event in ("ack", "nak", "terminal")), LOST,
    ),
    refused=tuple(Refused(event, ELSEWHERE, Error.defect, "nothing to take") for event in ("take_ack", "take_nak", "take_terminal")),
)  # fmt: skip


# ---- the core as its link sees it ---------------------------------------------------------------------------------------------


class Admission(StrEnum):
    accept = auto()
    queue = auto()
    reject = auto()
    sweep = auto()


MOVES = {"reopen": Admission.accept, "hold_back": Admission.queue, "refuse": Admission.reject, "end_all": Admission.sweep}
ADMISSION = Machine(
    name="admission",
    file=FILE,
    purpose="What the engine, its tokens, tags and weights are to a request. It moves at will: whatever they do is among it.",
    states=Admission,
    initial=Admission.accept,
    terminal=(),
    meanings={
        Admission.accept: "the engine runs",
        Admission.queue: "held in mode keep, or starting: calls are accepted and wait",
        Admission.reject: "held in mode wait: calls are refused, what waits goes on waiting",
        Admission.sweep: "held in mode abort, stopping or failed: calls are refused, what there is is ended",
    },
    events=tuple(Event(name, Owner.environment) for name in MOVES),
    rows=tuple(
        Row(name, tuple(other for other in Admission if other != target), target, "at will") for name, target in MOVES.items()
    ),
    ignored=tuple(Ignored(name, (target,), "it is so") for name, target in MOVES.items()),
    refused=(),
)


class Call(StrEnum):
    idle = auto()
    asked = auto()
    taken = auto()
    replied = auto()
    lost = auto()


CALL = Machine(
    name="call",
    file=FILE,
    purpose="One control call on its way to the core and back. What it does there is the engine's world.",
    states=Call,
    initial=Call.idle,
    terminal=(),
    meanings={
        Call.idle: "nobody asks",
        Call.asked: "on its way",
        Call.taken: "the core works on it",
        Call.replied: "the answer is on its way",
        Call.lost: "the caller waits, and nobody will answer",
    },
    events=(
        Event("ask", Owner.operator),
        Event("take", Owner.core, Fairness.weak, DRAINED),
        Event("reply", Owner.core, Fairness.weak, "every operation ends"),
        Event("deliver", Owner.core, Fairness.weak, DRAINED),
        Event("drop", Owner.core),
        Event("vanish", Owner.environment),
        Event("fail", Owner.core, Fairness.weak, "the supervisor loop"),
    ),
    rows=(
        Row("ask", (Call.idle,), Call.asked, "posted", when="link.state == up"),
        Row("take", (Call.asked,), Call.taken, "the core has it", when=PASSES),
        Row("reply", (Call.taken,), Call.replied, "posted", when=PASSES),
        Row("reply", (Call.taken,), Call.lost, "posted to a link that is lost", when="link.state != up and link.core == alive"),
        Row("deliver", (Call.replied,), Call.idle, "the caller has it", when="link.state == up"),
        Row("drop", (Call.asked, Call.replied), Call.lost, "the link is lost"),
        Row("vanish", (Call.taken,), Call.lost, "the core is gone"),
        Row("fail", (Call.asked, Call.taken, Call.replied, Call.lost), Call.idle, "the caller gets an error", when="link.state == lost"),
    ),
    ignored=(
        Ignored("drop", ELSEWHERE, "nothing is on its way"),
        Ignored("vanish", ELSEWHERE, "the core does not have it"),
        Ignored("ask", tuple(Call), "one call stands for all"),
    ),
    refused=tuple(Refused(event, ELSEWHERE, Error.defect, "never so") for event in ("take", "reply", "deliver", "fail")),
)  # fmt: skip

ALL_BUT_OVER = tuple(state for state in RequestState if state not in (RequestState.absent, RequestState.ended))
SEES = "the link sees whether a request lives and has its answer; "
LINK = Surroundings(
    machines=(TO_CORE, TO_CLIENT, ADMISSION, CALL),
    additions={
        "request": Addition(
            (Event("vanish", Owner.environment),),
            (Row("vanish", ALL_BUT_OVER, RequestState.ended, "the core is gone, and whatever was in it", sets=FORGET),),
            (Ignored("vanish", ELSEWHERE, "nothing to lose"),),
        ),
        "link": Addition(
            (Event("use_up", Owner.environment),),
            (Row("use_up", tuple(LinkState), None, "how many restarts there are is left open", when="budget == some", sets=("budget := none",)),),
        ),
    },
    joins={
        "stream.send_add": ("to_core[this].add",),
        "stream.send_abort": ("to_core[this].abort",),
        "request.accept": ("to_client[this].ack",),
        "request.terminal": ("to_client[this].terminal",),
        "link.drop_mailboxes": ("to_core[*].drop", "to_client[*].drop", "call.drop"),
        "link.kill_core": ("request[*].vanish", "call.vanish"),
        "link.crash": ("request[*].vanish", "call.vanish"),
    },
    messages={
        "stream.ack": "to_client[this].take_ack",
        "stream.nak": "to_client[this].take_nak",
        "stream.terminal": "to_client[this].take_terminal",
    },
    abstractions={
        "accepting": ("admission.state in (accept, queue)", "the admission column says it"),
        "engine.state == running": ("admission.state == accept", "the admission column says it"),
        "gate_open": ("admission.state == accept", SEES + "what a drain lets run on may start later here, and ends all the same"),
        "holds_abort": ("admission.state == sweep", "the admission column says it"),
        "engine.state == stopping": ("admission.state == sweep", "the admission column says it"),
        "engine.state in (failed, stopped)": ("admission.state == sweep", "the admission column says it"),
        "engine.goal == stop": ("admission.state == sweep", "the admission column says it"),
        "free > 0": ("true", SEES + "blocks come home (L2b in the engine's world)"),
        "begun": ("false", SEES + "what has begun and waits may be swept here, too: more is allowed"),
        "marked": ("abort_mark", "the other marks are not modelled"),
        "eos_mark": ("true", SEES + "what runs may end at any time"),
        "stale": ("false", "which blocks are cached is the engine's world"),
        "in_flight": ("false", "fences fall (L2b in the engine's world); until then `reap` has not happened"),
        "kv_copy": ("false", "a copy is a fence"),
        "memory[kv_cache].state == resident": ("true", "which blocks are cached is the engine's world"),
        "weights.state == stable": ("true", "which blocks are cached is the engine's world"),
        "control == idle": ("call.state == idle", "one call stands for all"),
        "control == pending": ("call.state != idle", "one call stands for all"),
    },
    no_variables=frozenset(
        {"request.begun", "request.eos_mark", "request.fault_mark", "request.stale", "request.oldest", "request.member[0]", "request.member[1]",
         "link.control"}
    ),
    properties=(
        Property("one_answer_at_a_time", Modality.always, "A mailbox never holds more than one call needs.", (Judge.model,),
                 when="to_core[this].state != overrun and to_client[this].state != overrun", machine="stream"),
        Property("a_new_core_hears_nothing_old", Modality.always, "While a core is being started nothing is on its way.", (Judge.model,),
                 when="not link.state in (connecting, restarting) or (to_core[this].state == empty and to_client[this].state == empty)",
                 machine="stream"),
        Property("no_call_is_forgotten", Modality.always, "A control call is lost only with its core or its link, and then it is failed.",
                 (Judge.model,), when="not call.state == lost or link.state == lost or link.core == dead"),
    ),
    left_out=frozenset(
        {"request.submit", "request.abort", "request.vanish", "request.preempt", "request.retract", "request.retracted", "request.eos",
         "request.fail", "request.device_fault", "request.fault"}
    ),
)  # fmt: skip
"""Left out is what messages drive, and what is the engine's world: what yields its blocks still lives, and a terminal is a terminal."""
SESSION = LINK.with_also(
    joins={
        "session.turn > active": ("stream[this].call",),
        "session.abort_turn": ("stream[this].abort",),
        "stream.gone": ("session[this].stream_closed",),
        "stream.deliver_terminal": ("session[this].stream_closed",),
        "stream.deliver_refusal": ("session[this].stream_closed",),
        "stream.deliver_error": ("session[this].stream_closed",),
    },
    conditions={
        "session.request_ended": (
            "not turn_request_ended and turn_stream_closed and stream[this].state == closed and request[this].state == ended"
            " and to_core[this].state == empty and to_client[this].state == empty",
            "the core says it behind everything else it has to say; a call that never got there, or whose core is gone, has no request",
        ),
    },
    left_out=frozenset({"stream.call", "session.stream_closed"}),
)
"""Every stream is a turn's. A turn whose call is refused at once is no turn: it begins and ends in one instant."""
