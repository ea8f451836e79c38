"""Which weights serve, and the transaction that changes them. The version is a number outside the machine; it is part of every cache key."""

from __future__ import annotations

from quiesce.spec.language import BIT, ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import WeightsEvent as E
from quiesce.spec.vocabulary import WeightsState as S

OPEN_HERE = "engine.state in (paused, partially_awake)"
NOTHING_MOVES = "not tag_in_transit and not any_tag(each.state in (resident, undefined) and each.policy != none) and memory[kv_cache].state != undefined"
HOLD_UPDATE = "pause_token[update].hold(mode=event.mode)"
NO_UPDATE = "begin_weight_update first"

MACHINE = Machine(
    name="weights",
    file="spec/weights.py",
    purpose="The weights' content, and the one update that may be open on it.",
    states=S,
    initial=S.stable,
    terminal=(),
    meanings={
        S.stable: "whole, of one version",
        S.updating: "an update is open; its client loads, finishes or aborts",
        S.committing: "every tensor is in; what was kept is being retracted",
        S.undefined: "not valid: gated, alive, healed by a full update",
    },
    variables={"base_intact": BIT},
    events=(
        Event(E.begin, Owner.core),
        Event(E.begin_in_place, Owner.client, takes=("mode",)),
        Event(E.load, Owner.client),
        Event(E.commit, Owner.client),
        Event(E.commit_keep, Owner.client),
        Event(E.committed, Owner.core, Fairness.weak, "the pass runs to its fixpoint", boundary=True),
        Event(E.rollback, Owner.client),
        Event(E.load_failed, Owner.environment),
        Event(E.lose, Owner.environment),
    ),
    rows=(
        Row(E.begin, (S.stable,), S.updating, "the drain has ended; the old weights are whole", sets=("base_intact := yes",)),
        Row(E.begin, (S.undefined,), S.updating, "the drain has ended; only a full update can heal", sets=("base_intact := no",)),
        Row(E.begin_in_place, (S.stable,), S.updating, "already drained by a sleep",
            when=f"engine.state == partially_awake and memory[weights].state == resident and {NOTHING_MOVES}",
            sets=("base_intact := yes",), also=(HOLD_UPDATE,)),
        Row(E.begin_in_place, (S.undefined,), S.updating, "already drained by a sleep; only a full update can heal",
            when=f"engine.state == partially_awake and memory[weights].state in (resident, undefined) and {NOTHING_MOVES}",
            sets=("base_intact := no",), also=(HOLD_UPDATE,)),
        Row(E.load, (S.updating,), None, "the first byte ends the old weights", when=OPEN_HERE, sets=("base_intact := no",), effects=("load_weights",)),
        Row(E.commit, (S.updating,), S.committing, "validated; what is kept is retracted first", when=OPEN_HERE),
        Row(E.commit_keep, (S.updating,), S.stable, "validated; kept requests keep the KV of the old version, and their spans say so",
            when=OPEN_HERE, sets=("request[*].stale := each.state in (running, retracting, draining)",),
            also=("memory[weights].content_valid", "pause_token[update].release"), effects=("new_version", "drop_prefix_index")),
        Row(E.committed, (S.committing,), S.stable, "new version, empty prefix index, gate free, in one move (R30)",
            when=f"{OPEN_HERE} and not any_request(each.state in (running, retracting))",
            sets=("request[*].stale := each.state == draining",),
            also=("memory[weights].content_valid", "pause_token[update].release"), effects=("new_version", "drop_prefix_index")),
        Row(E.rollback, (S.updating,), S.stable, "not one byte was written (R32)", when="base_intact", also=("pause_token[update].release",)),
        Row(E.rollback, (S.updating,), S.undefined, "the old weights are gone; the state keeps the gate shut",
            also=("pause_token[update].release",)),
        Row(E.load_failed, (S.updating,), S.undefined, "the old weights are gone; the state keeps the gate shut",
            also=("pause_token[update].release",)),
        Row(E.lose, tuple(S), S.undefined, "the content is gone", sets=("base_intact := no",)),
    ),
    ignored=(Ignored(E.load_failed, ELSEWHERE, "no update is open any more"),),
    refused=(
        Refused(E.begin, ELSEWHERE, Error.defect, "a second update never drains"),
        Refused(E.begin_in_place, (S.stable, S.undefined), Error.TransitionConflict, "await the sleep or the wake_up, or wake_up(['weights'])"),
        Refused(E.begin_in_place, ELSEWHERE, Error.TransitionConflict, "finish_weight_update or abort_weight_update"),
        Refused(E.load, (S.updating,), Error.TransitionConflict, "await the drain"),
        Refused(E.load, ELSEWHERE, Error.TransitionConflict, NO_UPDATE),
        Refused(E.commit, (S.updating,), Error.TransitionConflict, "await the drain"),
        Refused(E.commit, ELSEWHERE, Error.TransitionConflict, NO_UPDATE),
        Refused(E.commit_keep, (S.updating,), Error.TransitionConflict, "await the drain"),
        Refused(E.commit_keep, ELSEWHERE, Error.TransitionConflict, NO_UPDATE),
        Refused(E.rollback, ELSEWHERE, Error.TransitionConflict, NO_UPDATE),
        Refused(E.committed, ELSEWHERE, Error.defect, "only what is committing is committed"),
    ),
)
