"""Takes stock at the end of a run: every request answered once and truly, the books balanced, nothing left over."""

from __future__ import annotations

from quiesce.engine import errors
from quiesce.stateful.driver import assert_nothing_left
from quiesce.stateful.fuzz.oracles import Oracles
from quiesce.stateful.fuzz.player import Player
from quiesce.stateful.fuzz.rig import Rig


def check_clients(player: Player, rig: Rig, oracles: Oracles) -> None:
    """Every client has its one terminal, or its refusal, or has left; its history is legal."""
    failed = rig.engine._core.failure is not None or rig.core_is_dead
    allowed = ("abort", "error") if failed or rig.faulty else ("abort",)
    for client in player.clients.values():
        answered = client.finished or client.left or client.refusal is not None
        oracles.expect("hang", answered, f"{client.name} has no answer")
        refused = client.refusal is None or not client.outputs
        oracles.expect("history", refused, f"{client.name} was refused after it was accepted: {client.refusal!r}")
        try:
            client.check_history()
            client.check_end(rig.engine.model.max_model_len, allowed)
        except AssertionError as wrong:
            oracles.found("history", str(wrong))


def check_tokens(player: Player, rig: Rig, oracles: Oracles) -> None:
    """Tokens are those of the undisturbed request. Called when the loop is over: the truth may need one of its own."""
    for client in player.clients.values():
        try:
            for child in client.last.outputs if client.last else ():
                rig.truth(client, child)
        except (AssertionError, KeyError) as wrong:
            oracles.found("tokens", str(wrong))


def check_balance(player: Player, rig: Rig, oracles: Oracles) -> None:
    """The status counts what the clients saw."""
    status, clients = rig.engine.status(), player.clients.values()
    if rig.core_is_dead:
        return
    oracles.expect("balance", status.balanced, f"out of balance: {status}")
    answered = [client for client in clients if client.finished]
    least = sum(client.params.n for client in answered)
    most = sum(client.params.n for client in clients if client.refusal is None)
    oracles.expect("balance", least <= status.accepted <= most, f"accepted {status.accepted}, clients saw {least} to {most}")
    for reason in ("length", "stop", "abort", "error"):
        seen = sum(
            child.finish_reason == reason for client in answered for child in (client.last.outputs if client.last else ())
        )
        counted = status.finished[reason]
        oracles.expect("balance", seen <= counted, f"{counted} ended {reason}; clients saw {seen}")
    refused = sum(isinstance(client.refusal, errors.EngineError) for client in clients)
    gone = sum(client.left and not client.outputs for client in clients)
    right = refused <= status.rejected - player.num_refused_prompts <= refused + gone
    oracles.expect(
        "balance", right or status.engine in ("failed", "stopped"), f"{status.rejected} rejected; clients saw {refused}"
    )


def check_engine(player: Player, rig: Rig, oracles: Oracles) -> None:
    """It runs, unless somebody shut it down or a fault was fatal."""
    engine = rig.engine
    status, failure = engine.status(), engine._core.failure
    if rig.core_is_dead:
        oracles.expect(
            "answer", status.engine in ("failed", "stopped"), f"the core is dead and the status says {status.engine}"
        )
        return
    if failure is not None:
        expected = type(failure).__name__ in rig.fatal
        oracles.expect("failed", expected, f"{type(failure).__name__}: {failure}")
        return
    right = status.engine == "running" or (status.engine == "stopped" and player.shut_down)
    oracles.expect("hang", right, f"the engine is {status.engine} in a fair world")
    if status.engine == "running":
        oracles.expect("answer", status.admission == "accept", f"running, and admission is {status.admission}")
        oracles.expect("left", not status.steps_in_flight and status.operation is None, f"work is left: {status}")


def check_nothing_left(player: Player, rig: Rig, oracles: Oracles) -> None:
    """Blocks, requests, streams, sessions, operations, calls and timers: all home."""
    engine = rig.engine
    core, front, status = engine._core, engine._front, engine.status()
    left = {
        "streams": front.by_id,
        "calls": front.calls,
        "sessions": front.world.sessions,
        "carried": front.sessions._by_stream,
    }
    if not rig.core_is_dead:
        left |= {"operations": core.operations.by_key, "records": core.world.operations, "requests": core.world.requests}
        left |= {"ttl": dict(core.operations.ttl_s), "deadlines": core.operations.next_deadline_s()}
        try:
            if core.failure is None:
                assert_nothing_left(engine)
            else:
                core.pool.audit()
        except AssertionError as wrong:
            oracles.found("left", str(wrong))
        held = status.blocks.held + status.blocks.fenced
        oracles.expect("left", not held, f"blocks are left: {status.blocks}")
    for what, found in left.items():
        oracles.expect("left", not found, f"{what} left: {found}")
    if player.clients and not rig.core_is_dead:
        oracles.expect("left", status.live == 0, f"live requests left: {dict(status.requests)}")
