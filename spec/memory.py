"""Where a tag's memory is: one table for `weights` and `kv_cache`.

What safety needs is tested at the point of use (`release`), not where a sleep was asked for.
"""

from __future__ import annotations

from quiesce.spec.language import ELSEWHERE, Error, Event, Fairness, Ignored, Machine, Owner, Refused, Row
from quiesce.spec.vocabulary import MemoryEvent as E
from quiesce.spec.vocabulary import MemoryState as S
from quiesce.spec.vocabulary import Policy, Tag

COPIES = "copies end or fail"
UNUSED = "not any_request(each.state in (draining, retracting)) and (policy == offload or not any_request(each.state == running))"
MAY_RELEASE = f"engine.state == partially_awake and policy in (offload, discard) and ((tag == weights and not update_open) or (tag == kv_cache and {UNUSED}))"

MACHINE = Machine(
    name="memory",
    file="spec/memory.py",
    purpose="One tag's arena: its pages, and whether what is in them means anything.",
    states=S,
    initial=S.resident,
    terminal=(),
    meanings={
        S.resident: "mapped, content valid",
        S.releasing: "a copy out or an unmap is under way",
        S.released: "given back",
        S.restoring: "a map or a copy in is under way",
        S.undefined: "mapped, content not valid",
    },
    variables={"policy": tuple(Policy), "tag": tuple(Tag)},
    instances=tuple(Tag),
    events=(
        Event(E.select, Owner.operator, takes=("policy",)),
        Event(E.deselect, Owner.core),
        Event(E.release, Owner.core, Fairness.weak, "the pass runs to its fixpoint", boundary=True),
        Event(E.released, Owner.device, Fairness.weak, COPIES),
        Event(E.release_failed, Owner.environment),
        Event(E.restore, Owner.operator),
        Event(E.restored, Owner.device, Fairness.weak, COPIES),
        Event(E.restore_failed, Owner.environment),
        Event(E.kv_ready, Owner.device, Fairness.weak, COPIES),
        Event(E.content_valid, Owner.core),
        Event(E.lose, Owner.environment),
    ),
    rows=(
        Row(E.select, (S.resident, S.undefined), None, "chosen by a sleep", when="event.policy in (offload, discard) and policy == none",
            sets=("policy := event.policy",)),
        Row(E.select, tuple(S), None, "not chosen by this sleep", when="event.policy == none"),
        Row(E.deselect, (S.resident, S.undefined), None, "the sleep was withdrawn before the tag left (R6)", sets=("policy := none",)),
        Row(E.release, (S.resident,), S.releasing, "the engine is drained and nobody reads or writes it", when=MAY_RELEASE, effects=("unmap",)),
        Row(E.release, (S.undefined,), S.releasing, "weights without content can leave too", when=f"tag == weights and {MAY_RELEASE}",
            effects=("unmap",)),
        Row(E.released, (S.releasing,), S.released, "the content waits elsewhere", when="policy == offload"),
        Row(E.released, (S.releasing,), S.released, "the weights' content is gone (R28)", when="policy == discard and tag == weights",
            also=("weights.lose",)),
        Row(E.released, (S.releasing,), S.released, "the KV is gone, and with it every prefix hash (R28)",
            when="policy == discard and tag == kv_cache", effects=("drop_prefix_index",)),
        Row(E.release_failed, (S.releasing,), S.resident, "rolled back; nothing was lost, nor given back", sets=("policy := none",)),
        Row(E.restore, (S.released,), S.restoring, "only what is released is woken (R26)",
            when="not update_open and (tag == weights or not any_request(each.state in (draining, retracting)))", effects=("map",)),
        Row(E.restored, (S.restoring,), S.resident, "the content is back", when="policy == offload", sets=("policy := none",)),
        Row(E.restored, (S.restoring,), S.undefined, "mapped; weights wait for an update, KV for zeroing", when="policy == discard",
            sets=("policy := none",)),
        Row(E.restore_failed, (S.restoring,), S.released, "rolled back, policy kept: a retry is legal (R27)"),
        Row(E.kv_ready, (S.undefined,), S.resident, "zeroed by the core itself (R29)", when="tag == kv_cache and engine.state == partially_awake"),
        Row(E.content_valid, (S.undefined, S.resident), S.resident, "an update has written every tensor", when="tag == weights"),
        Row(E.lose, tuple(S), S.undefined, "the device context is gone", sets=("policy := none",)),
    ),
    ignored=(
        Ignored(E.select, (S.resident, S.undefined, S.releasing, S.released), "done or under way under the same policy: the call joins"),
        Ignored(E.deselect, (S.releasing, S.released, S.restoring), "too late to withdraw; a wake_up brings it back"),
        Ignored(E.restore, (S.resident, S.restoring, S.undefined), "already there, or on its way"),
        Ignored(E.released, ELSEWHERE, "a completion of a dead epoch"),
        Ignored(E.restored, ELSEWHERE, "a completion of a dead epoch"),
        Ignored(E.kv_ready, ELSEWHERE, "a completion of a dead epoch"),
        Ignored(E.release_failed, ELSEWHERE, "a completion of a dead epoch"),
        Ignored(E.restore_failed, ELSEWHERE, "a completion of a dead epoch"),
    ),
    refused=(
        Refused(E.select, (S.resident, S.undefined, S.releasing, S.released), Error.TransitionConflict, "wake_up first: it is chosen, or away, under another policy",
                when="(event.policy == offload and policy == discard) or (event.policy == discard and policy == offload)"),
        Refused(E.select, (S.restoring,), Error.TransitionConflict, "await the wake_up"),
        Refused(E.restore, (S.releasing,), Error.TransitionConflict, "await the sleep"),
        Refused(E.restore, (S.released,), Error.TransitionConflict, "finish_weight_update or abort_weight_update, or await the drain"),
        Refused(E.release, ELSEWHERE, Error.defect, "only what is mapped is released"),
        Refused(E.content_valid, ELSEWHERE, Error.defect, "an update writes only what is mapped"),
    ),
)
