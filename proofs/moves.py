"""Promises on moves, said here because they speak of actions: whenever one of them is taken, something holds in the state it leaves.

No state shows that such a promise was broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quiesce.proofs.explorer import MoveProperty
from quiesce.proofs.model import Action, Builder

FREES_A_TOKEN = {
    "sleep": {"settle_paused", "wake_up", "withdraw_sleep", "shutdown"},
    "update": {"withdraw_update", "committed", "commit_keep", "rollback", "load_failed", "shutdown"},
    "clear": {"cleared", "withdraw_clear"},
    "shutdown": set(),
    "caller": {"resume"},
}
"""Events after which an owner's token may be free, beside those that end the engine."""
ENDS = {"stop", "fail"}


def on_moves(builder: Builder) -> list[MoveProperty]:
    """What must hold in the state that certain actions leave."""
    return [*_gate(builder), *_drains(builder), *_tokens(builder), *_blocks(builder), *_cache(builder)]


def _promise(
    builder: Builder, name: str, sentence: str, of: Callable[[Action], bool], before: str, instance: str = ""
) -> MoveProperty:
    machine = "request" if instance else "engine"
    tree = builder.guard(machine, instance, before)
    return MoveProperty(name, sentence, {number: tree for number, action in enumerate(builder.model.actions) if of(action)})


def _gate(builder: Builder) -> Iterator[MoveProperty]:
    yield _promise(
        builder, "T4_steps_through_the_gate", "Steps are planned and launched only through an open gate.",
        lambda action: action.machine == "step" and action.event.name in ("plan", "launch"), "gate_open",
    )  # fmt: skip
    yield _promise(
        builder, "S12_granted_is_still", "Once a pause is granted nothing is planned or launched until the engine reopens.",
        lambda action: action.machine == "step" and action.event.name in ("plan", "launch"), "not engine.granted",
    )  # fmt: skip
    yield _promise(
        builder, "T6_admitted_only_while_running", "A request is admitted only while the engine runs.",
        lambda action: action.machine == "request" and action.event.name == "admit", "engine.state == running",
    )  # fmt: skip
    yield _promise(
        builder, "T6_accepted_only_when_accepting", "A call is accepted only where the gate admits or queues.",
        lambda action: action.machine == "request" and action.event.name == "submit", "accepting",
    )  # fmt: skip


def _drains(builder: Builder) -> Iterator[MoveProperty]:
    ends = {"drained_pause", "drained_sleep", "drained_update", "drained_stop"}

    def is_end(action: Action) -> bool:
        return action.machine == "engine" and action.event.name in ends

    yield _promise(builder, "T1_handed_over", "A drain ends with every due terminal handed over and nothing on its way.", is_end,
                   "quiet and not any_request(each.state == draining or each.eos_mark)")  # fmt: skip
    yield _promise(
        builder, "T1_wait_is_kept", "A wait drain ends with nothing begun left.", is_end, "not holds_wait or not begun_left"
    )
    yield _promise(builder, "T1_abort_is_kept", "An abort drain ends with nothing live.", is_end,
                   "not holds_abort or not any_request(each.live)")  # fmt: skip


def _tokens(builder: Builder) -> Iterator[MoveProperty]:
    """An action that writes `free` to a token is one of those that may."""
    for owner in builder.world.instances["pause_token"]:
        place = builder.place[f"pause_token[{owner}].state"]
        allowed = FREES_A_TOKEN.get(owner, {"resume"}) | ENDS

        def frees_wrongly(action: Action, place: int = place, allowed: set[str] = allowed) -> bool:
            writes = any(one.variable == place and one.value == 0 and one.source is None for one in action.assigns)
            return writes and str(action.event.name) not in allowed

        yield _promise(builder, f"S11_ownership[{owner}]", f"The token of `{owner}` is freed only by its own release, stop or failure.",
                       frees_wrongly, "false")  # fmt: skip


def _blocks(builder: Builder) -> Iterator[MoveProperty]:
    for request in builder.world.instances["request"]:

        def frees(action: Action, request: str = request) -> bool:
            return (
                action.machine == "request"
                and action.instance == request
                and any("free_blocks" in text for text in action.effects)
            )

        yield _promise(builder, f"S7_no_free_under_a_writer[{request}]", "Blocks come back only from requests that no step names and no copy moves.",
                       frees, "not in_flight and not kv_copy", request)  # fmt: skip

    def unmaps(action: Action) -> bool:
        return any(text.endswith("unmap") for text in action.effects)

    yield _promise(builder, "S3_unmap_when_quiet", "Memory leaves only when no step is on its way.", unmaps, "quiet")


def _cache(builder: Builder) -> Iterator[MoveProperty]:
    for request in builder.world.instances["request"]:

        def caches(action: Action, request: str = request) -> bool:
            return (
                action.machine == "request"
                and action.instance == request
                and any("free_blocks(cache)" in text for text in action.effects)
            )

        yield _promise(builder, f"T7_only_current_blocks_are_cached[{request}]", "Only KV of the present weights, mapped and valid, enters the prefix cache.",
                       caches, "not stale and memory[kv_cache].state == resident and weights.state == stable", request)  # fmt: skip

    def changes_version(action: Action) -> bool:
        return any(text.endswith("new_version") for text in action.effects)

    yield _promise(builder, "T7_commit_when_quiet", "A new version begins with no step on its way.", changes_version, "quiet")
