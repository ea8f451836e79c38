"""Plays actions against a real engine inside the deterministic loop: one method for each verb. Then turns the world fair and takes stock.

While it plays, anything may be called at any time. An action that waits for nothing begins and is left on its own; only `advance`,
`settle` and `pass_time` let the world move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.inbox import AwaitReady
from quiesce.engine.outputs import AbortResult, Status, Transition
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.session import Session
from quiesce.stateful.fuzz.alphabet import MOVING, Action
from quiesce.stateful.fuzz.chronicle import Chronicle
from quiesce.stateful.fuzz.clients import Client
from quiesce.stateful.fuzz.mistakes import MISTAKES
from quiesce.stateful.fuzz.oracles import Oracles
from quiesce.stateful.fuzz.rig import Rig
from quiesce.stateful.fuzz.settled import check_settled, watch_zombies
from quiesce.stateful.fuzz.strays import Strays, chosen
from quiesce.stateful.loop import DeterministicLoop

GATED = ("paused", "partially_awake", "sleeping")
RESERVED = ("sleep", "update", "clear", "shutdown")
ANSWERED_IN: Mapping[str, tuple[str, ...]] = {
    "pause": GATED, "sleep": GATED, "sleep_tags": ("partially_awake", "sleeping"),
    "begin_weight_update": ("paused", "partially_awake"), "shutdown": ("stopped",),
}  # fmt: skip
"""Control calls -> the states that their answers may name."""
ALL_DEADLINES_S = 10.0
"""By then every time to live, every lease and every deadline that an action carries is over."""
FAILURES = (OSError, RuntimeError, errors.EngineError)
"""What an engine can have failed of before it served: the faults of the alphabet, as they are."""
PATIENCE = 30
"""Rounds in which a fair world must come to run again."""


class Player:
    """One run's cast: clients, sessions, control calls, by the names that actions use."""

    def __init__(
        self, loop: DeterministicLoop, engine: AsyncEngine, rig: Rig, oracles: Oracles, chronicle: Chronicle, strays: Strays
    ) -> None:  # fmt: skip
        self.loop, self.engine, self.rig, self.oracles, self.chronicle, self.strays = (
            loop,
            engine,
            rig,
            oracles,
            chronicle,
            strays,
        )
        self.clients: dict[str, Client] = {}
        self.sessions: dict[str, Session] = {}
        self.calls: dict[str, asyncio.Task[None]] = {}
        self.aborts: list[asyncio.Task[None]] = []
        self.others: list[asyncio.Task[None]] = []
        self.closed: set[str] = set()
        """Sessions that somebody closed."""
        oracles.is_wanted = self._is_wanted
        watch_zombies(self.clients, rig, oracles)
        self.shut_down = False
        self.aborts_all = False
        self.aborted: set[str] = set()
        """Ids that somebody wanted to be aborted."""
        self.num_refused_prompts = 0
        """Mistakes that count as refused requests."""

    def begin(self) -> None:
        """Starts the engine; it loads while the first actions are played."""
        self.engine._start()
        self.others.append(asyncio.create_task(self._start()))

    async def _start(self) -> None:
        with suppress(*FAILURES):
            await self.engine.start()

    async def play(self, action: Action) -> None:
        given = dict(action.given)
        self.chronicle.played(action)
        if action.verb in MOVING:
            await getattr(self, f"do_{action.verb}")(**given)
        else:
            getattr(self, f"do_{action.verb}")(**given)

    # ---- the world moves ------------------------------------------------------------------------------------------------------

    async def do_advance(self, turns: int) -> None:
        for _ in range(turns):
            turn: asyncio.Future[None] = self.loop.create_future()
            self.loop.offer("tick", lambda turn=turn: None if turn.done() else turn.set_result(None))  # type: ignore[misc]
            await turn

    async def do_settle(self) -> None:
        await self.loop.wait_settled()
        check_settled(self.aborts, self.loop.time(), self.rig, self.oracles)

    async def do_pass_time(self, seconds: float, settles: bool) -> None:
        self.loop.pass_time(seconds)
        await (self.do_settle() if settles else self.do_advance(1))

    # ---- clients --------------------------------------------------------------------------------------------------------------

    def do_connect(
        self, name: str, length: int, first: int, max_tokens: int, temperature: float, stop_at: int | None, cancel_at: int | None,
        stop_after: int | None, paced: bool, n: int = 1, priority: int = 0, request_id: str = "", session: str | None = None,
    ) -> None:  # fmt: skip
        prompt = self.rig.prompt(length, first)
        stops = [] if stop_at is None else self.rig.stop_ids(prompt, stop_at)
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, n=n, ignore_eos=True, stop_token_ids=stops)
        client = Client(name, request_id or name, prompt, params, session, stop_after, paced, priority)
        self.clients[name] = client
        if cancel_at is not None:
            self.loop.cancel_at(name, cancel_at)
        client.task = asyncio.create_task(self._listen(client), name=name)

    def do_connect_again(self, client: str, **given: Any) -> None:
        """With an id that was used before, and perhaps still is."""
        if client in self.clients:
            self.do_connect(**given, request_id=self.clients[client].request_id)

    def do_turn(self, session: str, **given: Any) -> None:
        if session in self.sessions:
            self.do_connect(**given, session=self.sessions[session].id)

    async def _listen(self, client: Client) -> None:
        self.chronicle.asks(client.name, f"generate {client.request_id}")
        client.duplicate = client.session is None and client.request_id in self.engine.request_ids()
        outputs = self.engine.generate(
            client.prompt, client.params, request_id=client.request_id, session_id=client.session, priority=client.priority
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    client.outputs.append(output)
                    self.chronicle.told(client.name, output)
                    if client.stop_after is not None and len(client.outputs) >= client.stop_after:
                        self._leaves(client, not output.finished)
                        break
                    if client.paced and not output.finished:
                        await client.may_read()
        except errors.EngineError as refusal:
            client.refusal = refusal
            self.chronicle.answered(client.name, type(refusal).__name__)
        except asyncio.CancelledError:
            self._leaves(client, not client.finished)
            self.chronicle.asks(client.name, "leaves")
        wrong = client.duplicate and not isinstance(client.refusal, errors.DuplicateRequest) and not client.left
        self.oracles.expect("refusal", not wrong, f"{client.name} used an id that was in use, and met {client.refusal!r}")

    def _leaves(self, client: Client, early: bool) -> None:
        client.left, client.left_in_pass = early, self.engine._core.pass_number

    def do_read(self, client: str, outputs: int) -> None:
        if client in self.clients:
            self.clients[client].let_read(outputs)

    def do_leave(self, client: str) -> None:
        task = self.clients[client].task if client in self.clients else None
        if task is not None:
            task.cancel()

    def _is_wanted(self, request_id: str) -> bool:
        """Whether somebody named it, its client leaves, or its session is closed."""
        named = self.aborts_all or request_id in self.aborted
        return named or any(
            client.left or client.session in self.closed or (client.task is not None and client.task.cancelling() > 0)
            for client in self.clients.values()
            if client.request_id == request_id
        )

    def do_abort(self, client: str, also: str | None) -> None:
        if client in self.clients:
            self._abort([self.clients[client].request_id, *([also] if also else [])])

    def do_abort_unknown(self, name: str) -> None:
        self._abort([name])

    def do_abort_all(self) -> None:
        self._abort(None)

    def _abort(self, names: list[str] | None) -> None:
        self.aborted |= set(names or ())
        self.aborts_all |= names is None
        self.aborts.append(asyncio.create_task(self._aborted(names)))

    async def _aborted(self, names: list[str] | None) -> None:
        front = self.engine._front
        meant = self.engine.request_ids() if names is None else [name for name in names if name in front.by_id]
        streams = {name: front.by_id[name] for name in meant}
        self.chronicle.asks("operator", f"abort {', '.join(names) if names is not None else 'all'}")
        try:
            result: AbortResult = await (self.engine.abort_all() if names is None else self.engine.abort(names))
        except errors.EngineDead:
            return
        self.chronicle.answered("operator", f"aborted {list(result.aborted)}, not found {list(result.not_found)}")
        asked = set(streams) if names is None else set(names)
        named = {*result.aborted, *result.not_found}
        self.oracles.expect("answer", named == asked, f"abort of {sorted(asked)} speaks of {sorted(named)}")
        over = {name for name, stream in streams.items() if stream.terminal is not None or stream.refusal is not None}
        for name in result.aborted:
            self.oracles.expect("answer", name in over, f"{name} was said to be aborted, and has no terminal")
        for name in result.not_found:
            self.oracles.expect("answer", name in over or name not in streams, f"{name} was said to be not found, and is live")

    # ---- sessions -------------------------------------------------------------------------------------------------------------

    def do_open_session(self, name: str) -> None:
        with suppress(errors.QueueFull, errors.Unavailable):
            opened = self.engine.open_session()
            try:
                opened.send(None)
            except StopIteration as done:
                self.sessions[name] = done.value
            else:
                opened.close()
                self.oracles.found("answer", "open_session waits")

    def do_close_session(self, session: str) -> None:
        if session in self.sessions:
            self.closed.add(self.sessions[session].id)
            self.others.append(asyncio.create_task(self._close(self.sessions[session].id)))

    async def _close(self, session: str) -> None:
        self.chronicle.asks("operator", f"close {session}")
        await self.engine.close_session(session)

    # ---- control calls --------------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """`do_<control call>`: all are made alike."""
        if not name.startswith("do_"):
            raise AttributeError(name)
        verb = name.removeprefix("do_")
        return lambda **given: self._call(verb, **given)

    def _call(self, verb: str, name: str, **given: Any) -> None:
        self.calls[name] = asyncio.create_task(self._ask(verb, given), name=name)

    async def _ask(self, verb: str, given: dict[str, Any]) -> None:
        shown = ", ".join(f"{field}={value!r}" for field, value in given.items() if value is not None)
        self.chronicle.asks("operator", f"{verb}({shown})")
        self.shut_down |= verb == "shutdown"
        if "weights" in given:
            given["source" if verb == "update_weights" else "weights"] = self.rig.weights(given.pop("weights"))
        try:
            answer = await getattr(self.engine, "sleep" if verb == "sleep_tags" else verb)(**given)
        except errors.EngineError as error:
            self.chronicle.answered("operator", f"{verb}: {type(error).__name__}")
            return
        except asyncio.CancelledError:
            return  # its caller has left
        self.chronicle.answered("operator", f"{verb}: {answer.state if isinstance(answer, Transition) else answer}")
        if isinstance(answer, Transition) and given.get("operation_id") is None:
            self._check_answer(verb, answer)

    def _check_answer(self, verb: str, answer: Transition) -> None:
        expected = ANSWERED_IN.get(verb)
        if verb == "shutdown" and self.rig.core_is_dead:
            expected = ("failed", "stopped")
        elif expected is not None and self.shut_down:
            expected = (*expected, "stopping")  # what acted when the shutdown came ends with its copies
        self.oracles.expect("answer", expected is None or answer.state in expected, f"{verb} answers in {answer.state}")
        both = set(answer.aborted) & set(answer.kept)
        ids = {client.request_id: client for client in self.clients.values()}
        once = len(ids) == len(self.clients)
        self.oracles.expect("answer", not both or not once, f"{verb}: both aborted and kept: {both}")
        for name in answer.aborted if once else ():
            last = ids[name].last
            ended = {child.finish_reason for child in last.outputs} if last else {None}
            self.oracles.expect("answer", bool(ended & {None, "abort"}), f"{verb} says it aborted {name}, which ended {ended}")
        self.oracles.expect("answer", answer.freed_bytes >= 0, f"{verb} freed {answer.freed_bytes} bytes")

    def do_recover(self) -> None:
        self.others.append(asyncio.create_task(self._recover()))

    async def _recover(self) -> None:
        with suppress(errors.EngineError):
            await self._let_go(self.engine.status())

    def do_hang_up(self, call: str) -> None:
        if call in self.calls:
            self.calls[call].cancel()

    def do_mistake(self, which: int) -> None:
        """A call that names something that cannot be: refused at once, and nothing has changed."""
        text, make = MISTAKES[which % len(MISTAKES)]
        self.chronicle.asks("operator", text)
        self.num_refused_prompts += text.startswith("generate")
        before = self.oracles.facts()
        call: Coroutine[Any, Any, object] = make(self.engine)
        try:
            call.send(None)
        except errors.InvalidRequest:
            pass
        except (StopIteration, Exception) as error:  # noqa: BLE001  whatever it is instead
            self.oracles.found("refusal", f"{text} met {error!r}")
        else:
            call.close()
            self.oracles.found("refusal", f"{text} was not refused at once")
        self.oracles.expect("refusal", self.oracles.facts() == before, f"{text} has changed something")

    def do_stray(self, which: int, count: int) -> None:
        before, thrown = self.oracles.facts(), []
        for gate, record, event, cell in chosen(self.strays.options(), which, count):
            thrown.append(" ".join(cell))
            wrong = self.strays.throw(gate, record, event)
            self.oracles.expect("refusal", not wrong, wrong)
        if self.oracles.facts() != before:
            self.oracles.found("refusal", f"strays have changed something: one of {', '.join(thrown)}")

    # ---- faults ---------------------------------------------------------------------------------------------------------------

    def do_fail(self, what: str, tag: str, to: str, after: int) -> None:
        self.chronicle.note(f"fault: {what} {tag} {to}" if what == "move" else f"fault: {what}")
        self.rig.fail(what, tag, to, after)

    def do_stall(self, what: str = "step") -> None:
        self.rig.stall(what)

    def do_go_on(self) -> None:
        self.rig.go_on()

    # ---- the end --------------------------------------------------------------------------------------------------------------

    async def turn_fair(self) -> None:
        """No more faults, and every choice the ordinary one; whoever holds the engine lets go, in the order in which it can be."""
        self.chronicle.note("the world turns fair")
        self.loop.turn_fair()
        self.rig.heal()
        for client in self.clients.values():
            client.read_on()
        with suppress(*FAILURES):
            await self.engine._front.ask(AwaitReady)
        for seconds in (0.0, ALL_DEADLINES_S):
            self.loop.pass_time(seconds)
            await self.loop.wait_settled()
            check_settled(self.aborts, self.loop.time(), self.rig, self.oracles)
        self.rig.go_on()  # what hung past the watchdog comes back, to nobody
        for _ in range(PATIENCE):
            await self.loop.wait_settled()
            status = self.engine.status()
            if status.engine in ("stopped", "failed", "running"):
                break
            with suppress(errors.TransitionConflict, errors.DeadlineExceeded, errors.Unavailable):
                await self._let_go(status)
        else:
            self.oracles.found("hang", f"nobody holds the engine any more and it does not run: {self.engine.status()}")
        for session in self.sessions.values():
            self.closed.add(session.id)
            await self.engine.close_session(session.id)
        tasks = [client.task for client in self.clients.values() if client.task] + [
            *self.calls.values(),
            *self.aborts,
            *self.others,
        ]
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self.clients.values():
            client.left |= client.task is not None and client.task.cancelled()  # before its first step
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            self.oracles.expect("refusal", error is None, f"{task.get_name()} met an error that is none of ours: {error!r}")
        await self.loop.wait_settled()

    async def _let_go(self, status: Status) -> None:
        for owner in status.pause_owners:
            if owner not in RESERVED:
                await self.engine.resume(owner)
        with suppress(errors.TransitionConflict):
            await self.engine.abort_weight_update()
        await self.engine.wake_up()
        if self.engine.status().weights[1] != "stable":
            await self.engine.update_weights(self.rig.weights("full"))
