"""The fuzzer's programs over real HTTP: clients and operators of a seed against `quiesce serve`, in real time and through real sockets.

What happens in which order is the machine's; what must hold whatever happens is held here: every call is answered with a status that its
route may give, every stream ends once and has told a prefix of what its request alone is told, and afterwards the server runs, holds
what it held before, and its books balance.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Final

from quiesce.stateful.fuzz.alphabet import Action, drawn_actions
from quiesce.stateful.http_call import Call, asked
from quiesce.stateful.server_process import SMALL, ServerProcess

FLAGS: Final = (
    "--enable-admin", "--dtype", "float32", "--batch-invariant", "--max-num-seqs", "4", "--block-size", "4", "--num-kv-blocks", "40",
    "--max-num-batched-tokens", "16", "--max-model-len", "128", "--max-queue", "16", "--max-sessions", "3", "--control-timeout-s", "2",
)  # fmt: skip
"""A server that is short of everything."""
KILLED: Final = ("--backend", "process", "--max-restarts", "1000000")
MOST_S: Final = 5.0
"""Within which everybody is answered after a kill, on the slowest machine."""
ALLOWED: Final = (200, 400, 404, 409, 429, 503, 504)
MOST_TOKENS: Final = 24
MOMENT_S: Final = 0.005
"""How long a turn waits for something to happen."""
PATIENCE_S: Final = 60.0
OPERATORS: Final[Mapping[str, str]] = {
    "pause": "/pause", "resume": "/resume", "sleep": "/sleep", "sleep_tags": "/sleep", "wake_up": "/wake_up",
    "update_weights": "/update_weights_from_disk", "begin_weight_update": "/begin_weight_update", "finish_weight_update": "/end_weight_update",
    "abort_weight_update": "/abort_weight_update", "weights_checksum": "/weights_checker", "reset_prefix_cache": "/reset_prefix_cache",
    "abort_all": "/abort_requests",
}  # fmt: skip
"""Verbs of the alphabet that are a control route each. What only a rig can do, such as a fault, is left out."""


@dataclass(slots=True)
class Client:
    """One generating call and what it was told."""

    asks: dict[str, Any]
    call: Call
    task: asyncio.Task[None] | None = None
    left: bool = False
    status: int = 0
    tokens: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    error: str = ""

    @property
    def is_in_session(self) -> bool:
        return "session_id" in self.asks


class Play:
    """One program against one server. `problems` says what was wrong.

    Args:
        server: `quiesce serve` with `FLAGS`.
        truths: what requests alone are told, by what they ask; kept from program to program.
        kills: the core is a process that is killed now and then, and started again.
    """

    def __init__(self, server: ServerProcess, seed: int, truths: dict[str, list[list[int]]], kills: bool = False) -> None:
        self.server, self.url, self.seed, self._truths, self.kills = server, server.url, seed, truths, kills
        self.num_kills = 0
        self.slowest_s = 0.0
        """From a kill to the answer of the last who was waiting."""
        self.problems: list[str] = []
        self.clients: dict[str, Client] = {}
        self.sessions: dict[str, str] = {}
        self.others: dict[str, asyncio.Task[None]] = {}
        self.num_actions = 0
        self._progress = asyncio.Event()

    async def run(self) -> None:
        """Plays the program, turns the world fair, and takes stock."""
        rng = random.Random(self.seed)
        actions = drawn_actions(rng)
        for _ in range(rng.choice((1, 1, 2)) if self.kills else 0):
            actions.insert(rng.randint(0, len(actions)), Action("kill", {"waits": rng.random() < 0.8}))
        for action in actions:
            self.num_actions += 1
            await self.play(action)
        await self._turn_fair()

    async def play(self, action: Action) -> None:
        """One action: begun, and left on its own."""
        given = {name: value for name, value in action.given.items() if value is not None}
        if action.verb in OPERATORS:
            self._operate(OPERATORS[action.verb], action.verb, given)
        elif (do := getattr(self, f"do_{action.verb}", None)) is not None:
            await do(**given)

    # ---- time -----------------------------------------------------------------------------------------------------------------

    async def do_advance(self, turns: int) -> None:
        for _ in range(turns):
            self._progress.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._progress.wait(), MOMENT_S)

    async def do_settle(self) -> None:
        await self.do_advance(5)

    # ---- clients --------------------------------------------------------------------------------------------------------------

    async def do_connect(
        self, name: str, length: int, first: int, max_tokens: int, temperature: float = 0.0, n: int = 1, priority: int = 0,
        request_id: str = "", session: str | None = None, **ignored: Any,
    ) -> None:  # fmt: skip
        asks: dict[str, Any] = {
            "prompt": [3 + (7 * first + 11 * place) % 400 for place in range(length)], "max_tokens": min(max_tokens, MOST_TOKENS), "temperature": temperature,
            "n": n, "seed": first, "ignore_eos": True, "return_token_ids": True, "stream": first != 2, "priority": priority,
            "request_id": f"{self.seed}-{request_id or name}",
        }  # fmt: skip
        if session is not None:
            asks |= {"session_id": session, "n": 1}
        client = Client(asks, Call(self.url, "/v1/completions", asks))
        self.clients[name] = client
        client.task = asyncio.create_task(self._listen(client))

    async def do_connect_again(self, client: str, **given: Any) -> None:
        if client in self.clients:
            await self.do_connect(**given, request_id=client)

    async def do_turn(self, session: str, **given: Any) -> None:
        if session in self.sessions:
            await self.do_connect(**given, session=self.sessions[session])

    async def _listen(self, client: Client) -> None:
        try:
            await client.call.send()
            client.status = await client.call.begin()
            if client.status == 200 and client.asks["stream"]:
                async for event in client.call.events():
                    self._told(client, event)
            else:
                body = await client.call.body()
                for choice in body.get("choices", ()):
                    self._tell(client, choice)
        except (OSError, asyncio.IncompleteReadError) as error:
            client.error = f"the connection broke: {error!r}"
        finally:
            client.call.drop()
            self._progress.set()

    def _told(self, client: Client, event: dict[str, Any]) -> None:
        self._progress.set()
        if "error" in event:
            client.error = event["error"]["message"]
        for choice in event.get("choices", ()):
            self._tell(client, choice)

    def _tell(self, client: Client, choice: dict[str, Any]) -> None:
        index = choice["index"]
        if index in client.reasons:
            self.problems.append(f"{client.asks['request_id']}: something follows the end of {index}")
        client.tokens.setdefault(index, []).extend(choice["token_ids"])
        if choice["finish_reason"] is not None:
            client.reasons[index] = choice["finish_reason"]

    async def do_leave(self, client: str) -> None:
        found = self.clients.get(client)
        if found is not None and found.task is not None and not found.task.done():
            found.left = True
            found.task.cancel()

    async def do_abort(self, client: str, **ignored: Any) -> None:
        if client in self.clients:
            self._operate("/abort_request", "abort", {"rid": self.clients[client].asks["request_id"]})

    async def do_open_session(self, name: str) -> None:
        status, answer = await asked(self.url, "/open_session", {})
        self._judge("open_session", status, answer)
        if status == 200:
            self.sessions[name] = answer

    async def do_close_session(self, session: str) -> None:
        if session in self.sessions:
            self._operate("/close_session", "close", {"session_id": self.sessions[session]})

    # ---- kills ----------------------------------------------------------------------------------------------------------------

    async def do_kill(self, waits: bool) -> None:
        """SIGKILL of the core. Whoever waits is answered; `waits`: the program goes on when the next core serves."""
        core = self.server.core_pid
        if core is None:
            return
        self.num_kills += 1
        began_s = time.monotonic()
        owed = [client.task for client in self.clients.values() if client.task is not None] + list(self.others.values())
        os.kill(core, signal.SIGKILL)
        if owed:
            await asyncio.wait(owed, timeout=PATIENCE_S)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        while waits and (await asked(self.url, "/ready"))[0] != 200:
            await self.do_advance(1)

    # ---- operators ------------------------------------------------------------------------------------------------------------

    def _operate(self, path: str, verb: str, given: Mapping[str, Any]) -> None:
        name = given.get("name", f"{verb} {len(self.others)}")
        body = {key: value for key, value in given.items() if key not in ("name", "weights")}
        if "operation_id" in body:
            body["operation_id"] = f"{self.seed}-{body['operation_id']}"
        if verb == "update_weights":
            body["model_path"] = SMALL if given["weights"] in ("full", "pairs") else "/nowhere"
        self.others[name] = asyncio.create_task(self._ask(path, body))

    async def _ask(self, path: str, body: Mapping[str, Any]) -> None:
        status, answer = await asked(self.url, path, dict(body))
        self._judge(path, status, answer)
        self._progress.set()

    def _judge(self, what: str, status: int, answer: Any) -> None:
        if status not in ALLOWED:
            self.problems.append(f"{what} was answered {status}: {answer}")
        elif status != 200 and not answer["error"]["message"]:
            self.problems.append(f"{what} was refused with {status} and without a word")

    async def do_hang_up(self, call: str) -> None:
        if call in self.others:
            self.others[call].cancel()

    async def do_recover(self) -> None:
        status = (await asked(self.url, "/lifecycle"))[1]
        for owner in status["pause_owners"]:
            await asked(self.url, "/resume", {"owner": owner})
        if status["weights"][1] == "updating":
            await asked(self.url, "/abort_weight_update", {})
        await asked(self.url, "/wake_up", {})
        if (await asked(self.url, "/lifecycle"))[1]["weights"][1] == "undefined":
            await asked(self.url, "/update_weights_from_disk", {"model_path": SMALL})

    # ---- the end --------------------------------------------------------------------------------------------------------------

    async def _turn_fair(self) -> None:
        tasks = [client.task for client in self.clients.values() if client.task is not None] + list(self.others.values())
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (await asked(self.url, "/lifecycle"))[1]["engine"] != "running" or not all(task.done() for task in tasks):
                    await self.do_recover()
                    await self.do_advance(5)
                for session in self.sessions.values():
                    await asked(self.url, "/close_session", {"session_id": session})
                ended = await asyncio.gather(*self.others.values(), return_exceptions=True)
                while (
                    (status := (await asked(self.url, "/lifecycle"))[1])["requests"] or status["streams"] or status["sessions"]
                ):
                    await self.do_advance(1)
        except TimeoutError:
            self.problems.append(f"somebody waits for ever: {(await asked(self.url, '/lifecycle'))[1]}")
            return
        self.problems += [repr(error) for error in ended if isinstance(error, Exception)]
        self._check_status(status)
        for client in self.clients.values():
            await self._check(client)

    def _check_status(self, status: Mapping[str, Any]) -> None:
        blocks = status["blocks"]
        if blocks["held"] or blocks["fenced"] or blocks["total"] != blocks["free"] + blocks["cached"]:
            self.problems.append(f"blocks are left: {blocks}")
        if status["accepted"] != sum(status["finished"].values()):
            self.problems.append(f"accepted {status['accepted']}, and ended {status['finished']}")
        if status["finished"].get("error") and not self.num_kills:
            self.problems.append(f"requests ended in errors: {status['finished']}")

    async def _check(self, client: Client) -> None:
        """It was told a prefix of the truth, and ended as it may."""
        name = client.asks["request_id"]
        if client.left:
            await self._check_tokens(client)
            return
        if client.error and not self.num_kills:
            self.problems.append(f"{name}: {client.error}")
        if client.status not in ALLOWED:
            self.problems.append(f"{name} was answered {client.status}")
        if client.status == 200 and len(client.reasons) != client.asks["n"]:
            self.problems.append(f"{name}: of {client.asks['n']} answers {len(client.reasons)} ended")
        if not set(client.reasons.values()) <= {"length", "abort", *(("error",) if self.num_kills else ())}:
            self.problems.append(f"{name} ended {client.reasons}")
        await self._check_tokens(client)

    async def _check_tokens(self, client: Client) -> None:
        if client.is_in_session or not any(client.tokens.values()):
            return
        true = await self._alone(client.asks)
        for index, told in client.tokens.items():
            whole = client.reasons.get(index) != "length" or len(told) == client.asks["max_tokens"]
            if not whole or told != true[index][: len(told)]:
                self.problems.append(f"{client.asks['request_id']}: told {told}, true is {true[index]}")

    async def _alone(self, asks: Mapping[str, Any]) -> list[list[int]]:
        """The tokens of each answer to a request when nobody else asks, as many as anybody may want."""
        alone = {**asks, "stream": False, "request_id": None, "priority": 0, "max_tokens": MOST_TOKENS}
        key = json.dumps(alone, sort_keys=True)
        if key not in self._truths:
            _, answer = await asked(self.url, "/v1/completions", alone)
            self._truths[key] = [choice["token_ids"] for choice in answer["choices"]]
        return self._truths[key]


def hunt(seeds: Iterable[int], kills: bool = False, progress: IO[str] | None = None) -> dict[str, list[str]]:
    """Plays the programs of these seeds on one server; what was wrong, by program. What the server holds is judged after all of them.

    Args:
        kills: the core is a process of its own, killed once or twice in each program.
        progress: where a line for each program goes.
    """
    found: dict[str, list[str]] = {}
    with ServerProcess(*FLAGS, *(KILLED if kills else ())) as server:
        held, num_actions = server.held(), 0
        truths: dict[str, list[list[int]]] = {}
        for seed in seeds:
            play = Play(server, seed, truths, kills)
            asyncio.run(play.run())
            num_actions += play.num_actions
            if play.problems:
                found[f"seed {seed}"] = play.problems
            if progress is not None:
                told = f"; {play.num_kills} kills, the last answer after {play.slowest_s:.2f} s" if play.num_kills else ""
                line = f"seed {seed}: {num_actions} operations over HTTP, {len(found)} programs went wrong{told}"
                print(line, file=progress, flush=True)
            if play.slowest_s > MOST_S:
                found.setdefault(f"seed {seed}", []).append(f"somebody waited {play.slowest_s:.1f} s for a core that was dead")
        left = {name: count - held[name] for name, count in server.held().items() if count > held[name]}
        if left:
            found["the server"] = [f"holds more than before: {left}"]
    if any("Traceback" in line for line in server.errors):
        found.setdefault("the server", []).append("".join(server.errors)[-2000:])
    return found


def until(seconds: float, first: int) -> Iterator[int]:
    """Seeds from `first` on, for so long."""
    end_s, seed = time.monotonic() + seconds, first
    while time.monotonic() < end_s:
        yield seed
        seed += 1
