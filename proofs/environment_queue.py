"""What surrounds the queue of operations: an engine cut down to what its control calls wait for, and `engine/verbs.py` as rows.

Small machines stand for the engine: the gate, the two tags, the update, the token `clear`, and whether it lives. `verbs` has one
instance to an operation and one state: its rows say when each kind of call begins, what it then moves, and when it is refused. A call
waits only for what is sure to end; behind an update that only its client can end it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, auto

from quiesce.proofs.environment import Addition, Surroundings
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
from quiesce.spec.operation import DRAINS
from quiesce.spec.vocabulary import OperationKind as Kind
from quiesce.spec.vocabulary import OperationState

FILE = "proofs/environment_queue.py"
ENDED = (OperationState.done, OperationState.failed, OperationState.superseded)
QUEUED = "kind in (sleep, wake_up, reset_prefix_cache, begin_weight_update, update_weights)"
"""Kinds that may wait for what is sure to end, in the order of their calls."""
BEGUN = "any_operation(each.state in (draining, acting))"
SLEEP_DRAINS = "any_operation(each.kind == sleep and each.state == draining)"
UPDATE_DRAINS = "any_operation(each.kind in (begin_weight_update, update_weights) and each.state == draining)"
LOADING = "(update.state == own or any_operation(each.kind == load_weights and each.state == acting and not each.delivered))"
CLIENTS = "(update.state == open or any_operation(each.kind == begin_weight_update and each.state == draining))"
"""An update is open, or about to open, that only its client can end."""
MOVES = "(tags[weights].state in (leaving, returning) or tags[kv_cache].state in (leaving, returning))"
ALL_HERE = "tags[weights].state == here and tags[kv_cache].state == here"
ALIVE = "life.state == alive"
OVER = "life.state in (failed, stopped)"


def _never(*events: str) -> tuple[Refused, ...]:
    return tuple(Refused(event, ELSEWHERE, Error.defect, "never so") for event in events)


def _named(says: str) -> str:
    """That something holds of each tag that the operation names; `TAG` and `NAMES` stand for the tag and for the bit that names it."""
    tags = (("weights", "names_weights"), ("kv_cache", "names_kv"))
    parts = [f"(not operation[this].{bit} or ({says.replace('NAMES', bit).replace('TAG', tag)}))" for tag, bit in tags]
    return "(" + " and ".join(parts) + ")"


NO_SLEEP = _named("not any_operation(each.kind == sleep and each.state in (draining, acting) and each.NAMES)")
NO_WAKE_UP = _named("not any_operation(each.kind == wake_up and each.state in (draining, acting) and each.NAMES)")
BOTH = "operation[this].names_weights and operation[this].names_kv"
NAMINGS = (
    ("operation[this].names_weights and not operation[this].names_kv", ("weights",)),
    ("not operation[this].names_weights and operation[this].names_kv", ("kv_cache",)),
    (BOTH, ("weights", "kv_cache")),
)


class Gate(StrEnum):
    open = auto()
    draining = auto()
    closed = auto()


class Tags(StrEnum):
    here = auto()
    leaving = auto()
    away = auto()
    returning = auto()


class Update(StrEnum):
    none = auto()
    own = auto()
    open = auto()
    committing = auto()


class Clear(StrEnum):
    free = auto()
    held = auto()


class Life(StrEnum):
    alive = auto()
    stopping = auto()
    failed = auto()
    stopped = auto()


class Verbs(StrEnum):
    ready = auto()


def _machine(
    states: type[StrEnum], purpose: str, events: tuple[Event, ...], rows: tuple[Row, ...], ignored: tuple[Ignored, ...] = (),
    refused: tuple[Refused, ...] = (), variables: Mapping[str, tuple[str, ...]] | None = None, instances: tuple[str, ...] = (),
) -> Machine:  # fmt: skip
    first = next(iter(states))
    return Machine(
        name=states.__name__.lower(), file=FILE, purpose=purpose, states=states, initial=first, terminal=(),
        meanings={state: f"{states.__name__.lower()}: {state}" for state in states}, events=events, rows=rows, ignored=ignored,
        refused=refused, variables=variables or {}, instances=instances,
    )  # fmt: skip


GATE = _machine(
    Gate, "The engine runs, drains, or is gated with nothing in flight.",
    (Event("close", Owner.core), Event("drained", Owner.device, Fairness.weak, "drains end (L3)"), Event("reopen", Owner.environment)),
    (
        Row("close", (Gate.open,), Gate.draining, "the gate closes first"),
        Row("drained", (Gate.draining,), Gate.closed, "the device is idle and everybody is answered"),
        Row("reopen", (Gate.draining, Gate.closed), Gate.open, "whoever still holds a token may release it; an operation in hand holds one",
            when=f"not {BEGUN} and clear.state == free and {ALL_HERE} and update.state == none and {ALIVE}"),
    ),
    (Ignored("close", ELSEWHERE, "it is closed already"), Ignored("drained", ELSEWHERE, "nothing drains"), Ignored("reopen", (Gate.open,), "it is open")),
)  # fmt: skip
TAGS = _machine(
    Tags, "Memory, for each tag.",
    (Event("leave", Owner.core), Event("come", Owner.core), Event("arrived", Owner.device, Fairness.weak, "copies end or fail"),
     Event("fail", Owner.environment)),
    (
        Row("leave", (Tags.here,), Tags.leaving, "what the sleep named"),
        Row("come", (Tags.away,), Tags.returning, "what the wake_up named"),
        Row("arrived", (Tags.leaving,), Tags.away, "away"),
        Row("arrived", (Tags.returning,), Tags.here, "back, and valid"),
        *(
            Row("fail", (before,), after, "rolled back (R27)", when=f"tag == {tag}", also=(f"verbs[*].{tag}_failed",))
            for before, after in ((Tags.leaving, Tags.here), (Tags.returning, Tags.away)) for tag in ("weights", "kv_cache")
        ),
    ),
    (Ignored("leave", (Tags.leaving, Tags.away), "under way"), Ignored("come", (Tags.here, Tags.returning), "under way"),
     Ignored("arrived", (Tags.here, Tags.away), "nothing moves"), Ignored("fail", (Tags.here, Tags.away), "nothing moves")),
    _never("leave", "come"), {"tag": ("weights", "kv_cache")}, ("weights", "kv_cache"),
)  # fmt: skip
UPDATE = _machine(
    Update, "A weight update: `own` ends by itself, because its tensors came with the call; `open` is its client's to end.",
    (Event("begin", Owner.core), Event("begin_own", Owner.core), Event("commit", Owner.core), Event("over", Owner.core), Event("close", Owner.core),
     Event("loaded", Owner.device, Fairness.weak, "a source has an end"),
     Event("committed", Owner.core, Fairness.weak, "what was kept is retracted", boundary=True), Event("fail", Owner.environment)),
    (
        Row("begin", (Update.none,), Update.open, "drained"),
        Row("begin_own", (Update.none,), Update.own, "drained"),
        Row("commit", (Update.open,), Update.committing, "complete"),
        Row("loaded", (Update.own,), Update.committing, "complete"),
        Row("committed", (Update.committing,), Update.none, "the new version"),
        Row("over", (Update.own, Update.open), Update.none, "rolled back", also=("verbs[*].update_over",)),
        Row("fail", (Update.own, Update.open), Update.none, "a chunk could not be written; a lease is over", also=("verbs[*].update_over",)),
        Row("close", (Update.own, Update.open, Update.committing), Update.none, "with the engine"),
    ),
    (Ignored("close", (Update.none,), "none is open"), Ignored("fail", ELSEWHERE, "none is open"), Ignored("loaded", ELSEWHERE, "none is own"),
     Ignored("committed", ELSEWHERE, "none commits")),
    _never("begin", "begin_own", "commit", "over"),
)  # fmt: skip
CLEAR = _machine(
    Clear, "The token `clear`.",
    (Event("hold", Owner.core), Event("cleared", Owner.core, Fairness.weak, "nobody holds a block", boundary=True), Event("drop", Owner.core)),
    (
        Row("hold", (Clear.free,), Clear.held, "taken"),
        Row("cleared", (Clear.held,), Clear.free, "nobody holds a block", when=f"gate.state == closed and {ALL_HERE} and {ALIVE}"),
        Row("drop", (Clear.held,), Clear.free, "with the engine"),
    ),
    (Ignored("hold", (Clear.held,), "held already"), Ignored("drop", (Clear.free,), "nobody holds it"), Ignored("cleared", (Clear.free,), "nobody holds it")),
)  # fmt: skip
LIFE = _machine(
    Life, "Whether the engine lives.",
    (Event("stop", Owner.core), Event("over", Owner.core, Fairness.weak, "everybody ends, copies end", boundary=True), Event("fail", Owner.environment)),
    (
        Row("stop", (Life.alive,), Life.stopping, "a shutdown began"),
        Row("stop", (Life.failed,), Life.stopped, "everybody is answered"),
        Row("over", (Life.stopping,), Life.stopped, "no teardown under a copy", when=f"not {MOVES}", also=("verbs[*].engine_over", "update.close", "clear.drop")),
        Row("over", (Life.failed,), Life.stopped, "somebody waits for its end", when="any_operation(each.kind == shutdown and each.state == acting)"),
        Row("fail", (Life.alive, Life.stopping), Life.failed, "everybody is answered", also=("verbs[*].engine_failed", "update.close", "clear.drop")),
    ),
    (Ignored("stop", (Life.stopping, Life.stopped), "already going"), Ignored("over", (Life.alive, Life.stopped), "not now"),
     Ignored("fail", (Life.failed, Life.stopped), "over already")),
)  # fmt: skip

# ---- when each call begins, and what it moves: `engine/verbs.py` ------------------------------------------------------------------

FREE = f"{ALIVE} and update.state == none and not {UPDATE_DRAINS}"
UPDATES = f"{FREE} and tags[weights].state == here and tags[kv_cache].state in (here, away) and not {SLEEP_DRAINS}"
NAMES_ALL = " and ".join(
    f"(operation[this].{bit} or not any_operation(each.kind == sleep and each.state == draining and each.{bit}))" for bit in ("names_weights", "names_kv")
)  # fmt: skip
NOTHING_AWAY = _named("tags[TAG].state in (here, returning)")
BEGINS: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    (Kind.pause, ALIVE, ("gate.close",)),
    (Kind.resume, ALIVE, ("verbs[*].resumed",)),
    (Kind.sleep, f"{FREE} and clear.state == free and {_named('tags[TAG].state != returning')} and ({NO_WAKE_UP} or gate.state == draining)", ("gate.close",)),
    (Kind.wake_up, f"{ALIVE} and gate.state == draining and {NAMES_ALL}", ("verbs[*].woken",)),
    (Kind.wake_up, f"{ALIVE} and gate.state != draining and {NOTHING_AWAY} and {NO_SLEEP}", ()),
    *(
        (Kind.wake_up, f"{ALIVE} and gate.state != draining and update.state == none and not {NOTHING_AWAY} and {_named('tags[TAG].state != leaving')}"
                       f" and {NO_SLEEP} and {named}", tuple(f"tags[{tag}].come" for tag in tags))
        for named, tags in NAMINGS
    ),
    (Kind.begin_weight_update, UPDATES, ("gate.close",)),
    (Kind.update_weights, UPDATES, ("gate.close",)),
    (Kind.load_weights, f"{ALIVE} and update.state == open and not {LOADING}", ()),
    (Kind.finish_weight_update, f"{ALIVE} and update.state == open and not {LOADING}", ("update.commit",)),
    (Kind.abort_weight_update, f"{ALIVE} and update.state in (open, own)", ("update.over",)),
    (Kind.abort_weight_update, f"{ALIVE} and update.state == none and {UPDATE_DRAINS}", ("verbs[*].withdrawn",)),
    (Kind.weights_checksum, f"{ALIVE} and tags[weights].state == here", ()),
    (Kind.reset_prefix_cache, f"{ALIVE} and {ALL_HERE} and not {SLEEP_DRAINS} and not {UPDATE_DRAINS}", ("clear.hold", "gate.close")),
    (Kind.shutdown, "true", ("life.stop",)),
)  # fmt: skip
"""Kind, when it can begin, what begins with it."""
CAN_BEGIN = " or ".join(f"(operation[this].kind == {kind} and {when})" for kind, when, _ in BEGINS)


def waits(place: int) -> str:
    """That what is in the way is sure to end. Of calls only those before it: later ones could follow each other for ever."""
    begun = [f"operation[{earlier}].state in (draining, acting)" for earlier in range(place)]
    sure_to_end = " or ".join(["clear.state == held", MOVES, *begun])
    return (
        f"{ALIVE} and ((operation[this].{QUEUED} and not {CLIENTS} and ({sure_to_end}))"
        f" or (operation[this].kind in (load_weights, finish_weight_update) and {LOADING}))"
    )


ACTS = (
    *((f"operation[this].kind == sleep and {named}", tuple(f"tags[{tag}].leave" for tag in tags)) for named, tags in NAMINGS),
    ("operation[this].kind == begin_weight_update", ("update.begin",)),
    ("operation[this].kind == update_weights", ("update.begin_own",)),
)


def _to_others(event: str, when: str, move: str, why: str) -> Row:
    return Row(event, (Verbs.ready,), None, why, when=when, also=(f"operation[this].{move}",))


PENDING = "operation[this].state in (queued, draining)"
OTHERS = (
    _to_others("resumed", f"operation[this].kind == pause and {PENDING}", "supersede", "nobody waits for the pause of a free token"),
    _to_others("woken", "operation[this].kind == sleep and operation[this].state == draining", "supersede", "the sleep is withdrawn (R6)"),
    _to_others("withdrawn", "operation[this].kind in (begin_weight_update, update_weights) and operation[this].state == draining", "supersede",
               "the update is withdrawn"),
    _to_others("overtaken", f"event.kind == shutdown and operation[this].kind != shutdown and {PENDING}", "supersede", "a shutdown was called"),
    *(_to_others(f"{tag}_failed", f"operation[this].kind in (sleep, wake_up) and operation[this].state == acting and operation[this].{bit}",
                 "give_up", "its copy failed") for tag, bit in (("weights", "names_weights"), ("kv_cache", "names_kv"))),
    _to_others("update_over", "operation[this].kind in (load_weights, update_weights) and operation[this].state == acting and not operation[this].delivered",
               "give_up", "its tensors are for nobody"),
    _to_others("engine_over", "operation[this].kind != shutdown and operation[this].state == acting", "give_up", "the engine has stopped"),
    _to_others("engine_failed", "operation[this].kind != shutdown and operation[this].state in (queued, draining, acting)", "give_up", "the engine failed"),
)  # fmt: skip
VERBS = _machine(
    Verbs, "How a call begins, and what becomes of others by it.",
    (Event("begin", Owner.core), Event("act", Owner.core), Event("refuse", Owner.core, Fairness.strong, "tried after every event of the core"),
     Event("reject", Owner.environment), Event("spoil", Owner.environment),
     *(Event(row.event, Owner.core, takes=("kind",) if row.event == "overtaken" else ()) for row in OTHERS)),
    (
        *(Row("begin", (Verbs.ready,), None, "it can", when=f"operation[this].kind == {kind} and {when}", also=also) for kind, when, also in BEGINS),
        *(Row("act", (Verbs.ready,), None, "its effect begins", when=when, also=moves) for when, moves in ACTS),
        Row("refuse", (Verbs.ready,), None, "it cannot begin, and nothing that is sure to end is in its way",
            when=f"operation[this].state == queued and not ({CAN_BEGIN})", also=("operation[this].give_up",)),
        Row("reject", (Verbs.ready,), None, "for a reason of its own: a bad source, another policy, a mode that cannot rise",
            when="operation[this].state == queued", also=("operation[this].give_up",)),
        Row("spoil", (Verbs.ready,), None, "its tensors are not wanted, or the device cannot sum up",
            when="operation[this].kind in (load_weights, weights_checksum) and operation[this].state == acting and not operation[this].delivered",
            also=("operation[this].give_up",)),
        *OTHERS,
    ),
    (Ignored("act", (Verbs.ready,), "it has drained, and that is all"), *(Ignored(row.event, (Verbs.ready,), "it is none of these") for row in OTHERS)),
    (Refused("begin", (Verbs.ready,), Error.defect, "not now"),),
)  # fmt: skip

# ---- the queue ----------------------------------------------------------------------------------------------------------------------


OF_TAGS = "event.kind in (sleep, wake_up)"
CALLED = ("kind := event.kind",)


def _in_order(num_places: int) -> dict[str, tuple[str, str]]:
    """First come, first served: when the call in each place can arrive, begin, be refused, and leave."""
    found = {}
    for place in range(num_places):
        nobody_before = " and ".join(f"operation[{earlier}].state != queued" for earlier in range(place)) or "true"
        in_order = f"not operation[{place}].{QUEUED} or ({nobody_before})"
        found[f"operation[{place}].take"] = (in_order, "first come, first served among those that queue")
        found[f"verbs[{place}].refuse"] = (
            f"({in_order}) and not ({waits(place)})",
            "whoever waits for what is sure to end is not refused",
        )
        forgotten = f"kind == {next(iter(Kind))} and not delivered and not names_weights and not names_kv and caller == present"
        alone = f"operation[{place + 1}].state == done" if place + 1 < num_places else "true"
        found[f"operation[{place}].leave"] = (
            f"not ({forgotten} and {alone})",
            "there is something to forget, or somebody moves up",
        )
        if place:
            found[f"operation[{place}].call"] = (f"operation[{place - 1}].state != done", "the first place that is free")
    return found


def queue(num_places: int) -> Surroundings:
    """The first call is in the first place; whoever is answered leaves, and those behind move up."""
    return Surroundings(
        machines=(GATE, TAGS, UPDATE, CLEAR, LIFE, VERBS),
        additions={
            "operation": Addition(
                (Event("call", Owner.operator, takes=("kind", "tags")), Event("leave", Owner.core, Fairness.weak, "answered is forgotten", boundary=True)),
                (
                    Row("call", ENDED, OperationState.queued, "of tags", when=f"{OF_TAGS} and event.tags == weights", sets=(*CALLED, "names_weights := yes")),
                    Row("call", ENDED, OperationState.queued, "of tags", when=f"{OF_TAGS} and event.tags == kv_cache", sets=(*CALLED, "names_kv := yes")),
                    Row("call", ENDED, OperationState.queued, "of tags", when=f"{OF_TAGS} and event.tags == both",
                        sets=(*CALLED, "names_weights := yes", "names_kv := yes")),
                    Row("call", ENDED, OperationState.queued, "a new call", when=f"not {OF_TAGS} and event.tags == both", sets=CALLED),
                    Row("leave", ENDED, None, "those behind move up", shifts=True),
                ),
                (Ignored("call", tuple(OperationState), "the place is taken, or the call has no use for tags"), Ignored("leave", ELSEWHERE, "not answered")),
            )
        },
        joins={
            "operation.call": ("verbs[*].overtaken(kind=event.kind)",),
            "operation.take": ("verbs[this].begin",),
            "operation.act": ("verbs[this].act",),
        },
        conditions={
            **_in_order(num_places),
            "operation.deliver": ("kind in (load_weights, weights_checksum) and not delivered", "what the device does for a call, it does once"),
            "operation.expire": ("not (kind == sleep and state == draining and gate.state == closed)", "lost race: memory moves"),
        },
        abstractions={
            "drained": ("gate.state == closed", "drains end (L3)"),
            "engine.state in (starting, running, draining)": ("gate.state != closed", "gated, and nothing in flight"),
            "engine.state == stopped": ("life.state == stopped", "stopped"),
            "pause_token[clear].state == free": ("clear.state == free", "the token itself"),
            "memory[weights].state == released": ("tags[weights].state == away", "the tag itself"),
            "memory[kv_cache].state == released": ("tags[kv_cache].state == away", "the tag itself"),
            "memory[weights].state in (resident, undefined)": ("tags[weights].state == here", "what is in it is the engine's world"),
            "memory[kv_cache].state == resident": ("tags[kv_cache].state == here", "what is in it is the engine's world"),
            "weights.state == updating": ("update.state in (open, own)", "whoever ends it"),
            "weights.state == stable": ("update.state == none", "a failed update is over, too: its operation is"),
            "update_open": ("update.state != none", "whoever ends it"),
        },
        left_out=frozenset({"operation.supersede", "operation.give_up"}),
        starts={"operation": OperationState.done},
        judged={"operation": ("0",)},
        patient=frozenset({"operation.take", "verbs.refuse"}),
        properties=(
            Property("acts_behind_a_closed_gate", Modality.always, "What drains acts only while the gate is closed.", (Judge.model,),
                     machine="operation", when=f"not (state == acting and {DRAINS}) or gate.state == closed or {OVER}"),
            *(
                Property(f"one_way_at_a_time_{bit}", Modality.always, "Nobody puts to sleep what another wakes.", (Judge.model,),
                         when=f"not any_operation(each.kind == sleep and each.state == acting and each.{bit})"
                              f" or not any_operation(each.kind == wake_up and each.state == acting and each.{bit})")
                for bit in ("names_weights", "names_kv")
            ),
        ),
    )  # fmt: skip
