"""A front end on a stage: its own code and real cores, with a wire between them whose every letter waits until it is to arrive.

Stories of the worlds of link and session are driven here: clients call, leave and close; letters arrive one at a time; cores are lost.
What the front end does by itself it does in the instant in which it can. Afterwards the engine is held in mode keep, whatever is under
way arrives, and an outsider looks: who is owed something, and for whom is work done that nobody wants any more?
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quiesce.engine import errors
from quiesce.engine.answers import Answers
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.core import Core
from quiesce.engine.inbox import NOBODY, Control, Event
from quiesce.engine.model import Model
from quiesce.engine.outputs import Status
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.stream import FrontEnd
from quiesce.proofs.edits import Edit, edited
from quiesce.proofs.path import Call
from quiesce.spec.language import Machine
from quiesce.spec.vocabulary import LinkState, Mode, OperationKind
from quiesce.stateful.driver import ledger_checkpoint, ledger_config
from quiesce.stateful.ledger_device import LedgerDevice
from quiesce.stateful.loop import DeterministicLoop
from quiesce.statemachine.gate import Gate, IllegalTransition
from quiesce.statemachine.machine import LifecycleMachine, sealed_machines
from quiesce.statemachine.monitor import ConformanceError

FOLLOWED = ("stream", "session", "link")
"""Tables that a front end's gate goes by."""
MODES = {"hold_back": Mode.keep, "refuse": Mode.wait, "end_all": Mode.abort}
"""What the model's admission does -> how the engine is held then."""
ITS_OWN = {
    "link": ("kill", "restart", "give_up"), "stream": ("fail",), "session": ("turn_over", "closed"), "request": ("sweep", "aborted", "reap"),
}  # fmt: skip
"""Events that nobody causes: they have happened when the story comes to them."""
PROMPT, MAX_TOKENS, MOST_ROUNDS = [5, 6, 7], 50, 100


class Wire:
    """`Link` and `Supervisor` of cores that live in this process. Nothing arrives by itself."""

    def __init__(self, first: Core, another: Callable[[], Core]) -> None:
        self.cores, self._another = [first], another
        self.to_core: deque[Event] = deque()
        self.to_front: deque[Answers] = deque()
        self.most_at_once = 1
        self._deliver: Callable[[Answers], None]
        self._status = first.status

    def start(self, deliver: Callable[[Answers], None], ended: Callable[[BaseException | None], None]) -> None:
        self._deliver = deliver
        self._begin()

    def _begin(self) -> None:
        self.cores[-1].deliver = self.to_front.append
        self.cores[-1].device.load()

    def post(self, event: Event) -> None:
        self.to_core.append(event)

    def status(self) -> Status:
        return self._status

    def join(self) -> None:
        """There is no thread to wait for."""

    @property
    def core_pid(self) -> int | None:
        return NOBODY

    @property
    def address(self) -> str | None:
        return None

    def drop_mailboxes(self) -> None:
        self.to_core.clear()
        self.to_front.clear()

    def kill_core(self) -> None:
        self.cores.clear()

    def start_core(self) -> None:
        self.cores.append(self._another())
        self.most_at_once = max(self.most_at_once, len(self.cores))
        self._begin()

    def leave(self, is_stopped: bool) -> None:
        """There is no process to leave."""

    def pass_of_core(self, event: Event | None = None) -> None:
        """The core takes one letter, if there is one, and makes a pass."""
        for core in self.cores:
            if event is not None:
                core.inbox.post(event)
            core.step()
            self._status = core.status

    def deliver_to_core(self) -> None:
        self.pass_of_core(self.to_core.popleft())

    def deliver_to_front(self) -> None:
        self._deliver(self.to_front.popleft())


@dataclass(slots=True)
class Client:
    """Who made a call, and whether it still listens."""

    task: asyncio.Task[None]
    key: int = 0
    has_left: bool = False


@dataclass
class FrontStage:
    """One front end; `edits`: what is taken out of the tables that it goes by."""

    loop: DeterministicLoop
    folder: Path
    edits: Sequence[Edit] = ()
    clients: list[Client] = field(default_factory=list)
    calls: list[asyncio.Task[Any]] = field(default_factory=list)
    session: str = ""
    is_closing: bool = False

    def __post_init__(self) -> None:
        config = ledger_config(self.folder)
        self.engine = AsyncEngine(config, make_device=self._device, make_link=self._wire)
        core = self.engine._core
        self.front = FrontEnd(self.wire, core.trace, core.clock, core.started_s, config, self.wire)
        self.front.connection.restarts_left = 1
        self.engine._front = self.front
        tables = edited(self.edits)
        self._follow({name: tables[name] for name in FOLLOWED})

    def _device(self, config: EngineConfig, model: Model) -> LedgerDevice:
        return LedgerDevice(model.num_blocks, config.block_size, model.info.vocab_size)

    def _core(self) -> Core:
        engine = self.engine
        model, device = engine.model, self._device(engine.config, engine.model)
        return Core(engine.config, model.info, device, max_model_len=model.max_model_len, clock=self.loop.time)

    def _wire(self, core: Core, call_in_loop: Callable[..., object]) -> Wire:
        core.clock = self.loop.time
        self.wire = Wire(core, self._core)
        return self.wire

    def _follow(self, tables: Mapping[str, Machine]) -> None:
        gate = self.front.gate
        gate.machines = {**sealed_machines(), **{name: LifecycleMachine(table).seal() for name, table in tables.items()}}
        gate._cells = Gate(gate.machines)._cells

    # ---- causes -------------------------------------------------------------------------------------------------------------

    async def cause(self, name: str) -> None:
        """Makes an action of the model happen, and whatever follows of itself in the front end."""
        call = Call.parse(name)
        if call.event not in ITS_OWN.get(call.machine, ()):
            await getattr(self, f"_do_{call.machine}_{call.event}")()
        await self.loop.wait_idle()

    async def _do_link_connect(self) -> None:
        if self.front.world.link.state == LinkState.connecting:
            self.engine._start()
        else:
            self.front.connect()
        device = self.wire.cores[-1].device
        assert isinstance(device, LedgerDevice)
        device.complete()
        self.wire.pass_of_core()

    async def _do_link_use_up(self) -> None:
        self.front.connection.restarts_left = 0

    async def _do_link_crash(self) -> None:
        if self.front.connection.is_up:  # else the front end has killed it already
            self.wire.cores.clear()

    async def _do_link_detect(self) -> None:
        self.front.connection.lose(RuntimeError("it is dead"), is_dead=True)

    async def _do_link_lose(self) -> None:
        self.front.connection.lose(TimeoutError("no sign of life"))

    async def _do_stream_call(self) -> None:
        await self._call(None)

    async def _do_session_open(self) -> None:
        self.session = (await self.engine.open_session()).id

    async def _do_session_turn(self) -> None:
        await self._call(self.session)

    async def _do_session_close(self) -> None:
        self.is_closing = await self.engine.close_session(self.session)

    async def _call(self, session: str | None) -> None:
        known = set(self.front.by_key)
        self.clients.append(Client(asyncio.create_task(self._listen(session))))
        await self.loop.wait_idle()
        self.clients[-1].key = max(set(self.front.by_key) - known, default=0)

    async def _listen(self, session: str | None) -> None:
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True)
        async with aclosing(self.engine.generate(PROMPT, params, session_id=session)) as outputs:
            async for _ in outputs:
                pass

    async def _do_stream_gone(self) -> None:
        self.clients[-1].has_left = True
        self.clients[-1].task.cancel()

    async def _do_stream_ack(self) -> None:
        self.wire.deliver_to_front()

    async def _do_stream_nak(self) -> None:
        self.wire.deliver_to_front()

    async def _do_to_core_deliver(self) -> None:
        self.wire.deliver_to_core()

    async def _do_call_ask(self) -> None:
        self.calls.append(asyncio.create_task(self.engine.resume()))

    async def _do_admission_hold_back(self) -> None:
        self._hold("hold_back")

    async def _do_admission_refuse(self) -> None:
        self._hold("refuse")

    async def _do_admission_end_all(self) -> None:
        self._hold("end_all")

    def _hold(self, name: str) -> None:
        """The engine moves at will: somebody else pauses it."""
        for owner in MODES:
            self.wire.pass_of_core(Control(NOBODY, OperationKind.resume, owner=owner))
        self.wire.pass_of_core(Control(NOBODY, OperationKind.pause, owner=name, mode=MODES[name]))

    # ---- what an outsider sees ----------------------------------------------------------------------------------------------

    async def come_to_rest(self) -> None:
        """The engine is held in mode keep, which freezes what runs and lets whatever must end end; all that is under way arrives."""
        if self.front.world.link.state == LinkState.restarting:
            await self._do_link_connect()
        self._hold("hold_back")
        for _ in range(MOST_ROUNDS):
            self._let_device_work()
            self.wire.pass_of_core()
            if not self.wire.to_core and not self.wire.to_front:
                break
            while self.wire.to_core and self.wire.cores:
                self.wire.deliver_to_core()
            while self.wire.to_front:
                self.wire.deliver_to_front()
                await self.loop.wait_idle()

    def _let_device_work(self) -> None:
        for core in self.wire.cores:
            device = core.device
            assert isinstance(device, LedgerDevice)
            while device.launched:
                device.complete()

    async def signs(self) -> list[str]:
        """What is wrong, the plainest first."""
        found = [f"{self.wire.most_at_once} cores at once"] if self.wire.most_at_once > 1 else []
        for call in self.calls:
            if not call.done():
                found.append("a control call is never answered")
        wanted = {client.key for client in self.clients if not client.has_left}
        for core in self.wire.cores:
            unwanted = [request for request in core.requests.values() if request.stream not in wanted & set(self.front.by_key)]
            found += [f"{request.state} for nobody" for request in unwanted]
        left = [client.key for client in self.clients if client.has_left and client.key in self.front.by_key]
        found += [f"a stream of a client who has left stays {self.front.by_key[key].state}" for key in left]
        session = self.front.world.sessions.get(self.session)
        if session is not None and self.is_closing:
            found.append("a session that was told to close never does")
        elif session is not None and self.clients[-1].has_left:
            found += await self._next_turn()
        return found

    async def _next_turn(self) -> list[str]:
        """The turn's client has left: the next one is never refused."""
        await self._call(self.session)
        task = self.clients[-1].task
        error = task.exception() if task.done() and not task.cancelled() else None
        return [f"the next turn is refused: {error}"] if error is not None else []

    async def finish(self) -> list[str]:
        """The engine is shut down; what is left."""
        stopping = asyncio.create_task(self.engine.shutdown(0))
        tasks = [stopping, *(client.task for client in self.clients), *self.calls]
        try:
            for _ in range(MOST_ROUNDS):
                await self.loop.wait_idle()
                self._let_device_work()
                if self.wire.to_core and self.wire.cores:
                    self.wire.deliver_to_core()
                else:
                    self.wire.pass_of_core()
                while self.wire.to_front:
                    self.wire.deliver_to_front()
                if all(core.finished_for_good for core in self.wire.cores):
                    break
            self.front.core_ended(None)
            self.engine._gone()
            await self.loop.wait_idle()
            left = ["somebody waits for an engine that has stopped"] if not all(task.done() for task in tasks) else []
            return left + ["streams of an engine that has stopped are left"] * bool(self.front.by_key)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def signs(edits: Sequence[Edit], story: Sequence[str]) -> list[str]:
    """What an outsider sees of a front end that goes by edited tables, after this story; empty if nothing is wrong."""
    loop = DeterministicLoop()

    async def main(folder: Path) -> list[str]:
        stage = FrontStage(loop, ledger_checkpoint(folder), edits)
        found: list[str] = []
        try:
            for name in story:
                await stage.cause(name)
            await stage.come_to_rest()
            found = await stage.signs()
        except (IllegalTransition, ConformanceError) as defect:
            found.append(f"the front end breaks: {type(defect).__name__}: {defect}")
        with suppress(IllegalTransition, ConformanceError, errors.EngineError):
            found += await stage.finish()
        return found

    with TemporaryDirectory() as folder:
        return loop.run(main(Path(folder)))
