"""What the explorer of control calls plays: programs, schedules and configurations, each a function of a seed."""

from __future__ import annotations

import random
from typing import Any

from quiesce.stateful.choices import FIFO, POS, RandomWalk, Strategy
from quiesce.stateful.loop import DeterministicLoop

Action = tuple[int, str, dict[str, Any]]
"""Ticks to wait, what to do, with what."""
Program = tuple[tuple[Action, ...], ...]
"""Actors, each a list of actions."""


VERBS = [
    "pause", "resume", "sleep", "wake_up", "update_weights", "begin_weight_update", "load_weights", "finish_weight_update",
    "abort_weight_update", "weights_checksum", "reset_prefix_cache",
]  # fmt: skip


def drawn_program(seed: int) -> Program:
    """Actors for a seed."""
    rng = random.Random(seed)
    clients = [
        tuple((rng.choice((0, 1, 3, 8, 20)), "generate", _drawn_request(rng)) for _ in range(rng.randint(1, 3)))
        for _ in range(rng.randint(1, 4))
    ]
    favoured = rng.choice((VERBS, rng.sample(VERBS, 3), rng.sample(VERBS, 5)))  # a program of few words says them often
    operators = [tuple(_drawn_call(rng, favoured) for _ in range(rng.randint(1, 8))) for _ in range(rng.randint(1, 4))]
    others: list[tuple[Action, ...]] = []
    if rng.random() < 0.5:
        others.append(tuple((rng.randint(0, 15), "abort", {"which": rng.randint(0, 9)}) for _ in range(rng.randint(1, 4))))
    if rng.random() < 0.3:
        others.append(tuple(_drawn_fault(rng) for _ in range(rng.randint(1, 2))))
    return (*clients, *operators, *others)


def _drawn_request(rng: random.Random) -> dict[str, Any]:
    return {
        "stop_after": rng.choice((None, None, None, 1, 3)),
        "length": rng.choice((1, 4, 9, 20)),
        "first": rng.choice((0, 7)),
        "max_tokens": rng.choice((1, 4, 12, 30)),
        "temperature": rng.choice((0.0, 0.0, 1.0)),
        "n": rng.choice((1, 1, 1, 2)),
    }


def _drawn_fault(rng: random.Random) -> Action:
    kind = rng.choice(("write", "fetch", "move", "move", "move", "step", "row"))
    tag, to = rng.choice(
        [
            ("weights", "released"),
            ("weights", "restored"),
            ("kv_cache", "restored"),
            ("kv_cache", "released"),
            ("kv_cache", "zeroed"),
        ]
    )
    return (rng.randint(0, 12), "fault", {"kind": kind, "tag": tag, "to": to})


def _drawn_call(rng: random.Random, favoured: list[str]) -> Action:
    mode = rng.choice(("keep", "keep", "wait", "abort"))
    timeout = rng.choice((None, None, 0.0, 0.5, 3.0))
    owner = rng.choice(("user", "user", "ops"))
    weights = rng.choice(("full", "full", "pairs", "partial", "misshapen", "unknown", "raises"))
    tags: Any = rng.choice((None, ["weights"], ["kv_cache"], ["weights", "kv_cache"]))
    policies = {tag: rng.choice(("offload", "discard")) for tag in (tags or ("weights", "kv_cache"))}
    kv = rng.choice(("recompute", "recompute", "keep"))
    calls: list[tuple[str, dict[str, Any]]] = (
        [
            ("pause", {"mode": mode, "owner": owner, "clear_cache": rng.random() < 0.2, "timeout": timeout, "ttl": rng.choice((None, None, 2.0))}),
            ("resume", {"owner": owner}),
            ("resume", {"owner": owner}),
            ("sleep", {"level": rng.choice((None, 0, 1, 2)), "mode": rng.choice((mode, None)), "timeout": timeout}),
            ("sleep", {"tags": policies, "mode": rng.choice((mode, None)), "timeout": timeout}),
            ("wake_up", {"tags": tags, "timeout": timeout}),
            ("wake_up", {"tags": None}),
            ("update_weights", {"weights": weights, "mode": mode, "kv": kv, "timeout": timeout}),
            ("begin_weight_update", {"mode": mode, "kv": kv, "timeout": timeout, "lease": rng.choice((None, 1.0))}),
            ("load_weights", {"weights": weights}),
            ("finish_weight_update", {}),
            ("abort_weight_update", {}),
            ("weights_checksum", {}),
            ("reset_prefix_cache", {"reset_running_requests": rng.random() < 0.6}),
        ]
    )  # fmt: skip
    verb, given = rng.choice([call for call in calls if call[0] in favoured])
    if rng.random() < 0.01:
        verb, given = "shutdown", {"timeout": rng.choice((0.0, 0.5, 30.0))}
    if verb not in ("weights_checksum", "shutdown") and rng.random() < 0.15:
        given["operation_id"] = rng.choice(("a", "b", "c"))
    if verb != "shutdown" and rng.random() < 0.15:
        given["cancel_after"] = rng.choice((0, 1, 4))
    return (rng.choice((0, 0, 1, 2, 5, 12)), "call", {"verb": verb, **given})


def drawn_loop(seed: int) -> DeterministicLoop:
    """A schedule for a seed: ordinary, hostile, or without patience for deadlines."""
    strategies: tuple[Strategy, ...] = (FIFO(), POS(seed), RandomWalk(seed))
    strategy = strategies[seed % 3]
    return DeterministicLoop(strategy, adversarial=seed % 2 == 0, timely=seed % 4 != 0)


def drawn_config(seed: int) -> dict[str, Any]:
    rng = random.Random(seed ^ 0x5EED)
    return {
        "num_kv_blocks": rng.choice((24, 24, 17)),
        "overlap": rng.random() < 0.7,
        "max_num_seqs": rng.choice((4, 2)),
        "load_format": rng.choice(("dummy", "dummy", "dummy", "dummy", "empty")),
        "step_timeout_s": 1e9,
        "control_timeout_s": 60.0,
    }
