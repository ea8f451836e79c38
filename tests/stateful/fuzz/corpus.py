"""Programs that are worth playing: the runs without which no rule of the design would be there, and the ways into rare states.

A program is text: actions between semicolons, each a verb and the values that are not the ordinary ones. Nouns name themselves: the
clients are c0, c1 …, the sessions s0 …, the control calls o0 …. The hunt plays them as they are, and puts them among random words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from quiesce.stateful.fuzz.alphabet import CALLS, MAKES, VERBS, Action, Nouns, Values

BUSY = "settle; connect length=9 max_tokens=20; connect length=9 max_tokens=20; advance turns=10"
"""Two requests that run."""
FULL = "settle; connect length=30 max_tokens=20; connect length=30 max_tokens=20; connect length=17 max_tokens=20; advance turns=10"
"""More than the blocks hold: the youngest yields."""
ALL_AWAY = 'sleep_tags tags={"weights":"discard","kv_cache":"discard"} mode=keep'
STRAYS = "stray which=0 count=400"
"""Everything that could come astray."""

RUNS: Mapping[str, str] = {
    "R1: a toggled wait never hides the end of a drain": f'{BUSY}; sleep_tags tags={{"kv_cache":"offload"}} mode=keep; '
    "pause mode=wait; resume; advance; pause mode=wait; resume; advance; pause mode=wait; resume; settle; recover; settle",
    "R3: wait cannot rise over frozen requests": f"{BUSY}; pause; settle; pause mode=wait owner=ops; "
    'sleep_tags tags={"kv_cache":"offload"} mode=wait; update_weights mode=wait; settle; recover; settle',
    "R4: a shutdown after a grant aborts": f"{BUSY}; pause; settle; shutdown timeout=30.0; settle",
    "R5: a drain that came from paused goes back there": f"pause; settle; connect; {ALL_AWAY} timeout=0.0; settle; pass_time seconds=0.1; resume; settle",
    "R6: a sleep that is withdrawn takes its choices along": f"{BUSY}; stall; {ALL_AWAY} timeout=0.5; advance; wake_up; pass_time seconds=1.0; go_on; settle",
    "R7: a resume inside a sleep opens nothing": f"{BUSY}; pause; advance; {ALL_AWAY}; resume; settle; connect; recover; settle",
    "R8: a join is as exclusive as a fresh call": f"{BUSY}; begin_weight_update; settle; begin_weight_update timeout=0.0; {ALL_AWAY}; settle; "
    "load_weights; settle; finish_weight_update; settle",
    "R9: what was planned before a drain is never launched after": f"{BUSY}; pause mode=abort; settle; resume; {BUSY}; pause; settle; resume; settle",
    "R11: a wait drain restarts what had begun": f"{FULL}; pause mode=wait; settle; resume; settle",
    "R12: nobody is admitted while the engine starts": "connect; pause mode=wait; advance; update_weights mode=wait; settle; recover; settle",
    "R13: an abort token that comes later sweeps all": "pause; connect; settle; pause mode=abort owner=ops; settle; recover; settle",
    "R14: an abort passes every gate": "pause; connect; settle; abort client=c0; settle; recover; settle",
    "R15: blocks wait for both slots": f"{BUSY}; connect; advance turns=1; stall; pause mode=abort; advance turns=3; {STRAYS}; go_on; settle; recover; settle",
    "R16: who yields keeps its blocks until the fence": f"{FULL}; stall; advance turns=5; {STRAYS}; abort client=c2; advance; go_on; settle",
    "R17: an abort never frees": f"{BUSY}; stall; abort client=c0; advance turns=3; connect; {STRAYS}; go_on; settle",
    "R18: a copy is a fence": f'{BUSY}; sleep_tags tags={{"kv_cache":"offload"}} mode=keep; stall what=move; advance turns=10; '
    f"pause mode=abort owner=ops; advance turns=3; {STRAYS}; go_on; settle; recover; settle",
    "R20: a discard retracts every holder": f'{BUSY}; sleep_tags tags={{"kv_cache":"discard"}} mode=keep; settle; recover; settle',
    "R21: no update while a copy is in flight": f'{BUSY}; stall what=move; sleep_tags tags={{"kv_cache":"offload"}} mode=keep; advance turns=10; '
    "begin_weight_update; update_weights; advance turns=3; go_on; settle; recover; settle",
    "R22: the dead leave the batch, the others keep their turn": f"{BUSY}; connect; abort client=c1; connect; abort client=c2; advance; "
    "connect; leave client=c3; settle",
    "R23: two that want the same blocks do not starve each other": "settle; connect length=30 max_tokens=20; "
    "connect length=30 max_tokens=20; connect length=30 max_tokens=20; connect length=30 max_tokens=20; pause mode=wait; settle; resume; settle",
    "R24: who yields may still end": f"{FULL}; stall; pause owner=ops; {ALL_AWAY}; advance turns=3; go_on; settle; recover; settle",
    "R25: a failure empties both slots": f"{FULL}; fail what=step; settle; {STRAYS}",
    "R26: a wake_up during a sleep waits for it": f'{BUSY}; stall what=move; {ALL_AWAY}; advance turns=10; wake_up; wake_up tags=["weights"]; '
    f"{STRAYS}; go_on; settle; recover; settle",
    "R27: a failed restore may be tried again": f"{BUSY}; sleep mode=keep; settle; fail tag=weights; wake_up; settle; fail; wake_up; settle; recover; settle",
    "R28: another policy is refused": f'{BUSY}; sleep_tags tags={{"weights":"offload"}} mode=keep; settle; sleep_tags tags={{"weights":"discard"}}; settle; recover; settle',
    "R29: paused only when the KV is zeroed": f"{BUSY}; sleep level=2 mode=keep; settle; stall what=move; wake_up; advance turns=5; {STRAYS}; go_on; settle; recover; settle",
    "R31: what an aborted request computed is not cached under new weights": f"{BUSY}; begin_weight_update; settle; pause mode=abort owner=ops; "
    "load_weights; settle; finish_weight_update; settle; recover; connect length=9 max_tokens=20; settle",
    "R32: a rollback over broken weights is no rollback": 'settle; sleep_tags tags={"weights":"discard"}; settle; wake_up tags=["weights"]; settle; '
    "begin_weight_update; settle; abort_weight_update; settle; recover; settle",
    "R33: an update keeps the tags where they are": f"{BUSY}; begin_weight_update; settle; {ALL_AWAY}; wake_up; settle; abort_weight_update; settle",
    "R34: a shutdown waits for copies": f"{BUSY}; stall what=move; {ALL_AWAY}; advance turns=10; shutdown timeout=0.0; advance turns=3; {STRAYS}; "
    "fail what=core; go_on; settle",
    "R35: a loss is final": f"{BUSY}; pause; fail what=core; abort client=c0; advance; connect; settle; {STRAYS}",
    "R36: who leaves before the answer has left": "connect cancel_at=0; connect cancel_at=-1; advance; connect; leave client=c2; settle",
    "R38: a turn waits for the end of the one before": "settle; open_session; turn session=s0 max_tokens=20; advance turns=3; stall; "
    "leave client=c0; turn session=s0; turn session=s0; advance; close_session session=s0; go_on; settle",
}
"""Rule of the design -> a run that goes wrong in an engine without it."""

RARE: Mapping[str, str] = {
    "a deadline of a shutdown": f"{BUSY}; stall; shutdown timeout=0.5; advance; pass_time seconds=1.0; go_on; settle",
    "a caller leaves a drain": f"{BUSY}; stall; pause mode=wait; advance turns=3; hang_up call=o0; {STRAYS}; go_on; settle",
    "a fault while one yields": f"{FULL}; stall; fail what=row; {ALL_AWAY}; advance turns=3; {STRAYS}; go_on; settle; recover; settle",
    "a failure while one yields": f"{FULL}; fail what=hang; {ALL_AWAY}; advance turns=3; {STRAYS}",
    "a failure while the next batch is planned": f"{BUSY}; connect; stall; connect; advance turns=3; fail what=hang; advance turns=3",
    "a caller leaves a queue": f"{BUSY}; stall; {ALL_AWAY}; advance turns=3; update_weights; advance turns=3; {STRAYS}; hang_up call=o1; "
    "advance; go_on; settle; recover; settle",
    "a deadline in the queue": f"{BUSY}; stall; {ALL_AWAY}; advance turns=3; update_weights timeout=0.5; advance turns=3; pass_time seconds=1.0; "
    "go_on; settle; recover; settle",
    "a shutdown takes the place of a queue": f"{BUSY}; stall; {ALL_AWAY}; advance turns=3; update_weights; advance turns=3; shutdown timeout=0.0; "
    f"advance turns=3; {STRAYS}; go_on; settle",
    "a sleep while all comes back": f"settle; sleep; settle; stall what=move; wake_up; advance turns=5; {ALL_AWAY}; {STRAYS}; go_on; settle; recover; settle",
    "a failure while all comes back": f'{BUSY}; {ALL_AWAY}; settle; stall what=move; wake_up; advance turns=5; fail what="echo step"; settle',
    "a failure while all leaves": f'{BUSY}; stall what=move; {ALL_AWAY}; advance turns=10; fail what="echo step"; settle',
    "a failure under an open update": f'{BUSY}; begin_weight_update; settle; {STRAYS}; fail what="echo step"; settle',
    "a failure while it drains": f'{BUSY}; stall; pause mode=wait; begin_weight_update; advance turns=3; fail what="echo step"; advance',
    "withdrawn by their deadlines": f"{BUSY}; stall; begin_weight_update timeout=0.5; advance turns=3; pass_time seconds=1.0; go_on; settle; {BUSY}; stall; "
    f"{ALL_AWAY} timeout=0.5; advance turns=3; pass_time seconds=1.0; go_on; settle; {BUSY}; stall; reset_prefix_cache reset_running_requests=true; "
    "advance turns=3; shutdown timeout=0.5; pass_time seconds=1.0; go_on; settle",
    "kept KV under new weights": f'{BUSY}; update_weights kv="keep"; settle; begin_weight_update; settle; fail what=write; load_weights; settle; recover; settle',
    "a client leaves twice": f"{BUSY}; stall; abort client=c0; advance turns=1; leave client=c0; connect_again client=c0; connect_again client=c1; go_on; settle",
    "a request yields and is swept": f"{FULL}; stall; {ALL_AWAY}; advance turns=3; {STRAYS}; pause mode=abort owner=ops; advance; {STRAYS}; go_on; settle; recover",
    "a request yields and is aborted": f"{FULL}; stall; {ALL_AWAY}; advance turns=3; abort client=c0; advance turns=3; {STRAYS}; go_on; settle; recover; settle",
    "memory cannot be zeroed while weights come back": f"settle; sleep level=2; settle; fail to=zeroed; wake_up; advance; {STRAYS}; settle",
    "memory does not leave while the other tag is on its way": f"settle; fail to=released tag=weights; {ALL_AWAY}; advance; {STRAYS}; settle",
    "a device that repeats itself, paused": f'{BUSY}; pause; settle; fail what="echo step"; settle',
    "a device that repeats itself, asleep": f'{BUSY}; {ALL_AWAY}; settle; fail what="echo move"; {STRAYS}; fail what="echo step"; settle',
    "a device that repeats itself while all stops": f"{BUSY}; stall what=move; {ALL_AWAY}; advance turns=10; shutdown timeout=0.0; advance turns=3; "
    'fail what="echo step"; advance; settle',
    "an engine that cannot load": f"fail what=load; connect; pause; settle; {STRAYS}",
    "all stops while it loads": f"shutdown timeout=0.0; {STRAYS}; settle; {STRAYS}",
    "asked while it loads": f"stall what=move; pause; connect; advance turns=3; resume; sleep; update_weights; reset_prefix_cache; open_session; "
    f"advance turns=3; {STRAYS}; go_on; settle; recover; settle",
    "shut down while it loads": "stall what=move; connect; advance turns=3; shutdown timeout=0.0; advance turns=3; go_on; settle",
    "fails while it loads": "stall what=move; connect; advance turns=3; fail what=load; go_on; settle",
    "asked while it drains": f"{BUSY}; stall; pause mode=wait; advance turns=2; pause mode=wait owner=ops; reset_prefix_cache reset_running_requests=true; "
    f"advance turns=2; resume; resume owner=ops; advance turns=2; {STRAYS}; go_on; settle; recover; settle",
    "asked while asleep": f"{BUSY}; {ALL_AWAY}; settle; pause owner=ops; connect; sleep level=0; reset_prefix_cache reset_running_requests=true; "
    f'advance; {STRAYS}; wake_up tags=["kv_cache"]; settle; {ALL_AWAY}; sleep level=0; settle; shutdown timeout=30.0; settle',
    "asked while paused": f"{BUSY}; pause; settle; reset_prefix_cache reset_running_requests=true; settle; pause mode=abort owner=ops; settle; "
    f"pause mode=wait; settle; {STRAYS}; resume; resume owner=ops; settle",
    "shut down asleep": f"{ALL_AWAY}; settle; shutdown timeout=30.0; settle",
    "undefined weights leave": 'settle; sleep_tags tags={"weights":"discard"} mode=keep; settle; wake_up tags=["weights"]; settle; '
    'sleep_tags tags={"weights":"discard"} mode=keep; settle; recover; settle',
    "turns of a session": "settle; open_session; turn session=s0; settle; turn session=s0 max_tokens=20; advance turns=5; close_session session=s0; "
    f"close_session session=s0; {STRAYS}; advance; settle; open_session; close_session session=s1; {STRAYS}; settle",
    "a device that faults a request": f"{FULL}; fail what=row; advance turns=5; fail what=row; settle; connect; settle",
    "dies with calls in every state": f"connect; stall what=move; connect; advance turns=2; connect; {STRAYS}; go_on; settle; {FULL}; stall; abort client=c0; "
    f"connect; advance turns=1; {STRAYS}; connect; fail what=core; advance; settle; {STRAYS}",
    "a reset that waits too long": f"{BUSY}; stall; reset_prefix_cache reset_running_requests=true; advance turns=3; "
    "pass_time seconds=700.0 settles=false; advance turns=3; go_on; settle",
    "a pause that grows": f"{BUSY}; stall; pause mode=wait; advance turns=3; pause mode=abort; advance turns=3; go_on; settle; recover; settle",
    "a caller leaves a copy": f"settle; stall what=move; {ALL_AWAY}; advance turns=10; hang_up call=o0; advance turns=3; {STRAYS}; go_on; settle; recover; settle",
    "one tag after the other": 'settle; stall what=move; sleep_tags tags={"kv_cache":"offload"} mode=keep; advance turns=10; '
    'sleep_tags tags={"weights":"offload"} mode=keep; advance turns=3; go_on; settle; stall what=move; wake_up tags=["kv_cache"]; advance turns=5; '
    'sleep_tags tags={"weights":"offload"}; advance turns=3; wake_up tags=["weights"]; advance turns=3; go_on; settle; recover; settle',
    "who yields has its last token": "settle; connect length=4 max_tokens=3; connect length=4 max_tokens=4; connect length=4 max_tokens=5; "
    f"connect length=4 max_tokens=6; advance turns=8; stall; {ALL_AWAY}; advance turns=3; {STRAYS}; go_on; settle; recover; settle",
    "who yields is at fault": "settle; connect length=4 max_tokens=20; connect length=4 max_tokens=20; advance turns=8; fail what=row; stall; "
    f"advance turns=5; {ALL_AWAY}; advance turns=3; {STRAYS}; go_on; settle; recover; settle",
    "an abort on its way": f"{BUSY}; abort client=c0; advance turns=1; {STRAYS}; abort client=c1; advance turns=1; {STRAYS}; leave client=c1; settle",
    "asked after the end": f"settle; shutdown timeout=0.0; settle; {STRAYS}; connect; pause; sleep; wake_up; resume; update_weights; "
    "reset_prefix_cache; open_session; settle",
    "asked after a failure": f"{BUSY}; fail what=step; settle; {STRAYS}; connect; pause; resume; sleep; wake_up; begin_weight_update; reset_prefix_cache; settle",
}
"""What is rare about it -> a way there."""
LOSSES = tuple(
    f"{begin}connect; advance; fail what={first}; advance turns={turns}; fail what={then}; advance turns={turns}; connect; settle; {STRAYS}"
    for begin in ("", "settle; ") for first in ("core", "hang") for then in ("core", "hang") for turns in (1, 2, 3, 5)
)  # fmt: skip
"""Through the boundary of a process: cores die and connections drop, twice, while it starts and after."""
DEADLINES = tuple(
    f"{BUSY}; stall what={what}; {call}; advance turns={turns}; pass_time seconds=1.0 settles=false; advance turns=2; go_on; settle; recover; settle"
    for call in (
        "pause mode=wait timeout=0.5", "pause ttl=0.5", f"{ALL_AWAY} timeout=0.5", "sleep level=0 mode=wait timeout=0.5",
        "update_weights mode=wait timeout=0.5", "begin_weight_update lease=0.5", "shutdown timeout=0.5",
    )
    for what in ("step", "move") for turns in (1, 3, 5, 8, 13)
)  # fmt: skip
"""What has a deadline meets it at every point of its way, with a step or a copy that does not end."""
PROGRAMS: Mapping[str, str] = {**RUNS, **RARE}

CONFIGS: tuple[Mapping[str, Any], ...] = (
    {}, {"num_kv_blocks": 17, "max_num_batched_tokens": 5}, {"load_format": "empty"}, {"num_kv_blocks": 17, "overlap": False},
)  # fmt: skip
"""Each program is played under all of these: ample, tight, without weights, one step at a time."""


def corpus(device: str) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Each program with each configuration, and the device it is played on."""
    for text in PROGRAMS.values():
        for config in CONFIGS:
            yield text, config, device
    for text in DEADLINES:
        yield text, CONFIGS[0], device
    for text in LOSSES:
        yield text, {"max_restarts": 2, "reorders": False}, "boundary"


def parse(text: str, nouns: Nouns | None = None) -> list[Action]:
    """The actions of a program.

    Raises:
        ValueError: a word is no verb, or a verb has no such value.
    """
    nouns = nouns or Nouns()
    actions = []
    for words in (part.split(maxsplit=1) for part in text.split(";")):
        verb = words[0]
        if verb not in VERBS:
            raise ValueError(f"{verb!r} is no verb")
        given = {name: options[0] for name, options in VERBS[verb].items()}
        given |= _given(words[1] if len(words) > 1 else "", VERBS[verb])
        if verb in MAKES:
            given["name"] = nouns.new(MAKES[verb])
        if verb in CALLS and verb not in ("weights_checksum", "shutdown"):
            given["operation_id"] = None
        actions.append(Action(verb, given))
    return actions


def _given(text: str, values: Values) -> dict[str, object]:
    """`name=value` again and again; a value is JSON, or a word."""
    found: dict[str, object] = {}
    rest = text
    while rest:
        name, _, rest = rest.partition("=")
        if name not in {*values, "client", "session", "call"}:
            raise ValueError(f"no value is called {name!r}")
        try:
            value, length = json.JSONDecoder().raw_decode(rest)
        except json.JSONDecodeError:
            value, length = rest.split(maxsplit=1)[0], len(rest.split(maxsplit=1)[0])
        found[name], rest = value, rest[length:].lstrip()
    return found
