"""A server in a storm that is told to end: whoever was accepted and stays is answered whole, whoever comes too late is told so."""

from __future__ import annotations

import asyncio
import signal
import socket

from quiesce.engine.server.command import listening
from quiesce.stateful.http_call import Call
from tests.engine.server.served import PATIENCE_S, Served
from tests.engine.server.storm import KINDS, MAX_TOKENS, Client, asks, drawn

NUM_CLIENTS = 240


async def told(url: str, client: Client) -> None:
    """One client of the storm."""
    call = Call(url, "/v1/completions", asks(client.kind))
    try:
        await call.send()
        client.status = await call.begin()
        if client.status != 200:
            return
        async for event in call.events():
            choice = event["choices"][0]
            client.tokens += choice["token_ids"]
            client.reason = choice["finish_reason"]
            if client.leaves is not None and len(client.tokens) >= client.after:
                return
    except ConnectionRefusedError:
        client.status = 503  # the socket is closed by now
    finally:
        call.drop()


def test_who_was_accepted_before_sigterm_is_answered_whole_and_the_server_ends_with_0() -> None:
    flags = ("--dtype", "float32", "--batch-invariant", "--shutdown-timeout", "100", "--max-queue", "2000")
    with Served(*flags) as server:
        truth = [
            server.post("/v1/completions", asks(kind, streams=False)).json()["choices"][0]["token_ids"] for kind in range(KINDS)
        ]
        clients = drawn(NUM_CLIENTS, 3)

        async def scene() -> None:
            early = [asyncio.create_task(told(server.url, client)) for client in clients[: NUM_CLIENTS // 2]]
            while sum(len(client.tokens) for client in clients) < NUM_CLIENTS:
                await asyncio.wait(early, timeout=0.01)
            server.process.send_signal(signal.SIGTERM)
            late = [asyncio.create_task(told(server.url, client)) for client in clients[NUM_CLIENTS // 2 :]]
            await asyncio.gather(*early, *late)

        asyncio.run(scene())
        assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in "".join(server.errors)
    for client in clients:
        assert client.tokens == truth[client.kind][: len(client.tokens)]
        if client.status == 200 and client.leaves is None:
            assert (client.reason, len(client.tokens)) in (("length", MAX_TOKENS), ("abort", 0)), (
                "what had not begun ends at once"
            )
        else:
            assert client.status in (200, 503)
    assert {client.status for client in clients[NUM_CLIENTS // 2 :]} >= {503}
    assert sum(client.reason == "length" for client in clients) >= 20


def test_the_socket_sends_what_is_written_at_once() -> None:
    """Found: asyncio left the kernel to wait for ACKs, 40 ms for each small piece, because the socket did not say that it was TCP."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            await writer.wait_closed()

        where = listening("127.0.0.1", 0)
        async with await asyncio.start_server(serve, sock=where):
            _, writer = await asyncio.open_connection(*where.getsockname())
            is_set = await found
            writer.close()
            await writer.wait_closed()
        return is_set

    assert asyncio.run(accepted()) == 1
