"""The alphabet of the fuzzer: what clients, operators, faults and time may do, and the values that each may carry.

A *verb* is what is done, a *noun* who is meant: clients, sessions and control calls have names, given by whoever draws the actions, so
that an action still means the same when others are taken away. A value that stands first is the ordinary one, to which failures shrink.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quiesce.stateful.choices import FIFO, POS, DelayBounded, RandomWalk, Strategy

T = TypeVar("T")
Choose = Callable[[Sequence[Any]], Any]
"""Picks one of several: a random number generator, or Hypothesis."""
Values = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Action:
    """One thing done. `given` is fit for JSON."""

    verb: str
    given: Mapping[str, Any] = field(default_factory=dict)


MODES = ("keep", "keep", "abort", "wait")
TIMEOUTS = (None, None, None, 0.0, 0.5, 3.0)
IDS = (None, None, None, None, None, "a", "b")
OWNERS = ("user", "user", "ops")
PROMPT: Values = {
    "length": (5, 1, 4, 9, 17, 30),
    "first": (0, 0, 1, 2, 3),
    "max_tokens": (5, 1, 2, 8, 20, 70),
    "temperature": (0.0, 0.0, 1.0),
    "stop_at": (None, None, None, 1, 3),
    "stop_after": (None, None, None, None, None, 1, 2, 5),
    "paced": (False, False, False, True),
    "cancel_at": (*(None,) * 12, -1, 0, 1, 2, 3),
}
"""How one client asks and listens: it hangs up after so many outputs, reads only when told to, or is cancelled at an await."""

VERBS: Mapping[str, Values] = {
    "connect": {**PROMPT, "n": (1, 1, 2), "priority": (0, 0, 0, -1, 1)},
    "connect_again": {**PROMPT},
    "turn": {**PROMPT, "length": (5, 1, 9, 17, 50)},
    "read": {"outputs": (1, 2, 5)},
    "leave": {},
    "abort": {"also": (None, None, "nobody")},
    "abort_unknown": {"name": ("nobody", "c", "1")},
    "abort_all": {},
    "open_session": {},
    "close_session": {},
    "pause": {"mode": MODES, "owner": OWNERS, "clear_cache": (False, False, False, True), "timeout": TIMEOUTS, "ttl": (None, None, None, 2.0)},
    "resume": {"owner": OWNERS},
    "sleep": {"level": (None, 1, 2, 0), "mode": (None, None, "keep", "abort", "wait"), "timeout": TIMEOUTS},
    "sleep_tags": {
        "tags": (
            {"weights": "offload", "kv_cache": "offload"}, {"kv_cache": "discard"}, {"kv_cache": "offload"}, {"weights": "offload"},
            {"weights": "discard"}, {"weights": "discard", "kv_cache": "offload"},
        ),
        "mode": (None, None, "keep", "abort", "wait"), "timeout": TIMEOUTS,
    },
    "wake_up": {"tags": (None, None, ["weights"], ["kv_cache"], ["kv_cache", "weights"]), "timeout": TIMEOUTS},
    "update_weights": {
        "weights": ("full", "full", "pairs", "partial", "misshapen", "unknown", "raises"),
        "mode": MODES, "kv": ("recompute", "recompute", "keep"), "timeout": TIMEOUTS,
    },
    "begin_weight_update": {"mode": MODES, "kv": ("recompute", "keep"), "timeout": TIMEOUTS, "lease": (None, None, 1.0)},
    "load_weights": {"weights": ("full", "full", "partial", "misshapen", "raises")},
    "finish_weight_update": {},
    "abort_weight_update": {},
    "weights_checksum": {},
    "reset_prefix_cache": {"reset_running_requests": (False, True, True)},
    "shutdown": {"timeout": (30.0, 0.0, 0.5)},
    "recover": {},
    "hang_up": {},
    "mistake": {"which": tuple(range(16))},
    "fail": {
        "what": ("move", "move", "move", "row", "write", "fetch", "step", "core", "core", "hang", "load", "echo step", "echo move"),
        "tag": ("kv_cache", "weights"), "to": ("restored", "released", "zeroed"), "after": (0, 1, 3),
    },
    "stray": {"which": tuple(range(0, 260, 13)), "count": (13, 1, 50)},
    "stall": {"what": ("step", "move")},
    "go_on": {},
    "advance": {"turns": (1, 1, 2, 3, 5, 10)},
    "settle": {},
    "pass_time": {"seconds": (5.0, 0.1, 1.0, 700.0), "settles": (True, False)},
}  # fmt: skip
"""Verb -> what it carries -> values. `hang_up`: a caller of a control call leaves; `recover`: an operator lets go of all there is;
`stray`: messages that come twice, late or to nobody (`strays.py`)."""

CALLS = (
    "pause", "resume", "sleep", "sleep_tags", "wake_up", "update_weights", "begin_weight_update", "load_weights",
    "finish_weight_update", "abort_weight_update", "weights_checksum", "reset_prefix_cache", "shutdown",
)  # fmt: skip
"""Verbs that are control calls; all but `weights_checksum` and `shutdown` take an operation id."""
MOVING = ("advance", "settle", "pass_time")
"""Verbs that let the world move; all others begin and wait for nothing."""
RARE = {
    "fail": 0.25,
    "shutdown": 0.15,
    "mistake": 0.4,
    "abort_all": 0.3,
    "abort_unknown": 0.3,
    "hang_up": 0.5,
    "stall": 0.4,
    "stray": 0.3,
    "settle": 0.5,
}
OFTEN = {"connect": 3.0, "advance": 5.0, "settle": 1.5, "recover": 1.5, "turn": 2.0, "open_session": 1.5}
THEMES: tuple[tuple[str, ...], ...] = (
    (), (), ("open_session", "turn", "close_session", "leave"), ("sleep", "sleep_tags", "wake_up", "recover"), ("pause", "resume", "pass_time"),
    ("update_weights", "begin_weight_update", "load_weights", "finish_weight_update", "recover"), ("abort", "leave", "connect_again"),
    ("reset_prefix_cache", "connect", "settle"),
)  # fmt: skip
"""What a program may be about: these it says five times as often."""
SCENES: tuple[tuple[str, ...], ...] = (
    ("connect", "leave", "advance"),
    ("connect", "advance", "abort", "connect_again", "advance"),
    ("connect", "settle", "sleep_tags", "settle", "recover", "settle", "connect", "settle"),
    ("connect", "advance", "sleep_tags", "settle", "wake_up", "wake_up", "settle"),
    ("pause", "sleep", "settle", "wake_up", "settle", "resume"),
    ("connect", "advance", "pause", "sleep_tags", "resume", "settle", "recover", "settle"),
    ("connect", "settle", "update_weights", "settle", "connect", "settle"),
    (
        "connect",
        "advance",
        "begin_weight_update",
        "settle",
        "load_weights",
        "settle",
        "finish_weight_update",
        "connect",
        "settle",
    ),
    ("open_session", "turn", "settle", "turn", "advance", "close_session"),
    ("open_session", "open_session", "turn", "advance", "turn", "advance", "close_session"),
    ("fail", "sleep_tags", "settle", "recover", "settle", "recover"),
    ("connect", "connect", "advance", "pause", "abort", "settle"),
    ("pause", "settle", "pass_time"),
    ("connect", "connect", "advance", "fail", "pause", "settle"),
    ("connect", "settle", "pause", "settle", "reset_prefix_cache", "settle", "recover", "connect"),
)
"""The orders that most often go wrong in the engines of the field; programs have some of them among their words."""
NEEDS = {
    "leave": "client",
    "abort": "client",
    "connect_again": "client",
    "read": "client",
    "turn": "session",
    "close_session": "session",
    "hang_up": "call",
}
"""Verbs that need a noun."""
MAKES = {"connect": "client", "connect_again": "client", "turn": "client", "open_session": "session"} | dict.fromkeys(
    CALLS, "call"
)
LETTERS = {"client": "c", "session": "s", "call": "o"}

CONFIG: Values = {
    "num_kv_blocks": (24, 24, 17),
    "max_num_seqs": (4, 4, 2),
    "max_num_batched_tokens": (16, 16, 5),
    "overlap": (True, True, False),
    "load_format": ("dummy", "dummy", "dummy", "dummy", "dummy", "empty"),
    "enable_prefix_caching": (True, True, True, False),
    "max_queue": (1024, 1024, 1024, 3),
    "max_sessions": (3, 3, 1),
    "session_idle_timeout_s": (600.0, 2.0),
}
SCHEDULE: Values = {"adversarial": (False, True), "timely": (True, False)}


class Nouns:
    """Names that actions may use, and the next new ones."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {kind: [] for kind in LETTERS}

    def new(self, kind: str) -> str:
        names = self.known[kind]
        names.append(f"{LETTERS[kind]}{len(names)}")
        return names[-1]


def drawn_values(values: Values, choose: Choose) -> dict[str, Any]:
    return {name: choose(options) for name, options in values.items()}


def drawn_action(verb: str, choose: Choose, nouns: Nouns) -> Action | None:
    """An action of this verb; None where there is nobody yet whom it could mean."""
    given = drawn_values(VERBS[verb], choose)
    if verb in NEEDS:
        known = nouns.known[NEEDS[verb]]
        if not known:
            return None
        given[NEEDS[verb]] = choose(known[-4:])
    if verb in MAKES:
        given["name"] = nouns.new(MAKES[verb])
    if verb in CALLS and verb not in ("weights_checksum", "shutdown"):
        given["operation_id"] = choose(IDS)
    return Action(verb, given)


def drawn_actions(rng: random.Random) -> list[Action]:
    """A program. Some say few words often: two calls meet more often in such a one (swarm testing)."""
    verbs = list(VERBS)
    favoured = rng.choice((1.0, 0.7, 0.5, 0.35))
    theme = rng.choice(THEMES)
    weights = [
        OFTEN.get(verb, 1.0) * RARE.get(verb, 1.0) * (5.0 if verb in theme else float(verb in OFTEN or rng.random() < favoured))
        for verb in verbs
    ]
    words = rng.choices(verbs, weights, k=rng.choice((3, 8, 24, 64, 128)))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        place = rng.randint(0, len(words))
        words[place:place] = rng.choice(SCENES)
    nouns, actions = Nouns(), []
    for verb in words:
        action = drawn_action(verb, rng.choice, nouns)
        if action is not None:
            actions.append(action)
    return actions


STRATEGIES: tuple[Callable[[int], Strategy], ...] = (lambda seed: FIFO(), POS, RandomWalk, DelayBounded)
"""The portfolio. A strategy is made for a seed; choices that Hypothesis draws are a fifth one."""
