"""Five hundred streaming clients at once, twice over: those who stay are told what they would be told alone, those who vanish leave nothing."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.server.served import PATIENCE_S, Served
from tests.engine.server.storm import KINDS, MAX_TOKENS, MOMENTS, Storm, asks, drawn

NUM_CLIENTS = 500


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("--enable-admin", "--dtype", "float32", "--batch-invariant", "--max-queue", "2000") as served:
        yield served


@pytest.fixture(scope="module")
def truth(server: Served) -> list[list[int]]:
    """What each kind of call is answered when nobody else calls."""
    return [
        server.post("/v1/completions", asks(kind, streams=False)).json()["choices"][0]["token_ids"] for kind in range(KINDS)
    ]


def settled(server: Served) -> dict[str, Any]:
    """The status once nobody is in the engine and no connection but ours is open."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := server.lifecycle())["requests"] or found["streams"] or found["steps_in_flight"]:
        assert time.monotonic() < deadline_s, found
    return found


def assert_holds(server: Served, expected: dict[str, int]) -> None:
    """The process comes to hold this and no more: tasks, generators, streams, threads, files."""
    deadline_s = time.monotonic() + 10
    while (found := server.held()) != expected:
        assert time.monotonic() < deadline_s, (found, expected)


def counted(server: Served) -> dict[str, float]:
    """The metrics that only grow, by name and label."""
    lines = re.findall(r"^(quiesce:\S+) (\S+)$", server.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_leaves_nothing_behind_and_who_stays_is_told_the_truth(
    server: Served, truth: list[list[int]], seed: int
) -> None:
    before, held, counts = settled(server), server.held(), counted(server)
    clients = drawn(NUM_CLIENTS, seed)
    assert {client.leaves for client in clients} == {None, *MOMENTS}
    asyncio.run(Storm(server.url, clients).run())
    after = settled(server)
    for client in clients:
        if client.leaves is None:
            assert (client.status, client.reason, client.tokens) == (200, "length", truth[client.kind])
        assert client.tokens == truth[client.kind][: len(client.tokens)]
    assert (after["engine"], after["pause_owners"], after["blocks"]["held"], after["blocks"]["fenced"]) == ("running", {}, 0, 0)
    ended = {reason: count - before["finished"][reason] for reason, count in after["finished"].items()}
    assert after["accepted"] - before["accepted"] == sum(ended.values())
    stayed = sum(client.leaves is None for client in clients)
    assert (ended["error"], ended["stop"]) == (0, 0)
    assert ended["length"] >= stayed
    assert ended["abort"] >= NUM_CLIENTS // 3 // 2
    told = counted(server)
    assert told["quiesce:accepted_total"] - counts["quiesce:accepted_total"] == sum(ended.values())
    generated = told["quiesce:generation_tokens_total"] - counts["quiesce:generation_tokens_total"]
    assert stayed * MAX_TOKENS <= generated <= NUM_CLIENTS * MAX_TOKENS
    assert told["quiesce:streams"] == 0
    assert_holds(server, held)
