"""An engine on a stage: the real `AsyncEngine` over the real CPU device, of which every action of the model can be caused, one at a time.

What clients and operators do are calls of the engine; a timer's event is a deadline that passes on a clock of the stage; the device's
and the environment's events are its work let go, with the end that the story gives it. Nothing here waits for time to pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.model import Model
from quiesce.engine.outputs import RequestOutput
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tiny import checkpoint_folder
from quiesce.engine.weight_source import open_source
from quiesce.proofs.path import Call
from quiesce.spec.language import Machine
from quiesce.spec.vocabulary import OperationKind, OperationState
from quiesce.stateful.driver import assert_nothing_left
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.steering import NOTHING, Choice, Steering, SteppedLink
from quiesce.stateful.story_device import STOP, DeviceLost, Outcome, StoryDevice
from quiesce.statemachine.gate import Gate
from quiesce.statemachine.machine import LifecycleMachine, sealed_machines
from quiesce.statemachine.trace import Trace

SOON_S, NEVER_S = 10.0, 1e8
"""Deadlines of calls that the story withdraws, and of those it does not."""
CLEAR_S = 1e6
"""The deadline of a cache reset, which takes none of its own: `control_timeout_s`."""
PROMPT = (5, 6, 7)
MAX_TOKENS = 200
WITHDRAWS: Mapping[str, OperationKind] = {
    "withdraw_sleep": OperationKind.sleep,
    "withdraw_update": OperationKind.begin_weight_update,
    "withdraw_clear": OperationKind.reset_prefix_cache,
}


class CannotCause(Exception):
    """An engine has no way to do this, or not here; says why."""


@dataclass(slots=True)
class Client:
    """Who asked for a request, and what it was told."""

    name: str
    outputs: list[RequestOutput] = field(default_factory=list)
    refusal: Exception | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing to do on the stage, and what of the story's future it must know."""

    call: Call
    with_it: Sequence[Call] = ()
    """What happens in the same instant: who ends and who fails in a step that lands, the other requests that a step names."""
    is_withdrawn: bool = False
    """Its deadline is to pass before it acts."""
    keeps_kv: bool = False
    """Of an update: it will be committed keeping the KV."""
    is_in_vain: bool = False
    """It is refused: should it be kept waiting instead, its deadline has passed."""


def stage_config(capacity: int, is_empty: bool) -> EngineConfig:
    """A small engine over the shipped checkpoint `small`: one row for each request that may hold blocks."""
    return EngineConfig(
        model=str(checkpoint_folder("small")), load_format="empty" if is_empty else "auto", dtype="float32", num_threads=1,
        max_model_len=256, block_size=1, num_kv_blocks=1024, max_num_seqs=capacity, max_num_batched_tokens=64,
        poison_freed_blocks=True, step_timeout_s=1e9, control_timeout_s=CLEAR_S,
    )  # fmt: skip


class Stage:
    """One engine.

    Args:
        machines: tables that its gate follows in place of the project's own, by name.
    """

    def __init__(
        self, loop: DeterministicLoop, capacity: int, is_empty: bool = False, machines: Mapping[str, Machine] | None = None
    ) -> None:
        self.loop, self.is_empty = loop, is_empty
        devices: list[StoryDevice] = []
        links: list[SteppedLink] = []

        def make_device(config: EngineConfig, model: Model) -> StoryDevice:
            devices.append(StoryDevice(config, model))
            return devices[-1]

        def make_link(core: Any, call_in_loop: Callable[..., object]) -> SteppedLink:
            links.append(SteppedLink(core, call_in_loop))
            return links[-1]

        self.engine = AsyncEngine(stage_config(capacity, is_empty), make_device=make_device, make_link=make_link)
        self.core, self.device, self.link = self.engine._core, devices[0], links[0]
        if machines:
            self.follow_tables(machines)
        self.steering = Steering(self.core)
        self.clients: list[Client] = []
        self.slots: dict[str, int] = {}
        """Instance of `request` -> key of its last record."""
        self.calls: dict[asyncio.Task[Any], Call] = {}

    def follow_tables(self, machines: Mapping[str, Machine]) -> None:
        """The engine's gate goes by these tables in place of its own."""
        sealed = {**sealed_machines(), **{name: LifecycleMachine(table).seal() for name, table in machines.items()}}
        self.core.gate.machines = sealed
        self.core.gate._cells = Gate(sealed)._cells

    # ---- passes -------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.engine._start()
        await self.loop.wait_idle()

    async def make_pass(self, choice: Choice = NOTHING) -> None:
        """One pass of the core; the front end has taken its answers when it returns."""
        self.steering.choice = choice
        self.link.step()
        self.steering.choice = NOTHING
        await self.loop.wait_idle()

    def news(self) -> list[dict[str, Any]]:
        """What the trace has that was not asked for yet, the core's."""
        entries: Trace = self.core.trace
        found = [entry for entry in entries.entries if "machine" in entry and entry["pass"] is not None]
        entries.entries.clear()
        return found

    # ---- causes -------------------------------------------------------------------------------------------------------------

    async def cause(self, cause: Cause) -> None:
        """Makes it happen; what becomes of it is in `news`.

        Raises:
            CannotCause: no engine does this, or not here.
        """
        call = cause.call
        do = getattr(self, f"_do_{call.machine}_{call.event}", None)
        if do is None:
            raise CannotCause(f"{call} is the core's own to do")
        await do(cause)

    async def _ask(self, call: Call, asked: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(asked, name=str(call))
        self.calls[task] = call
        await self.loop.wait_idle()
        await self.make_pass()

    def answer(self, task: asyncio.Task[Any]) -> Exception | None:
        """The error that a call was answered with, if it was."""
        error = task.exception() if task.done() and not task.cancelled() else None
        return error if isinstance(error, Exception) else None

    @property
    def last_call(self) -> asyncio.Task[Any]:
        return list(self.calls)[-1]

    async def ask_in_vain(self, call: Call) -> asyncio.Task[Any] | None:
        """Makes a call that is refused here, with a deadline that has passed should it be kept waiting; None: there is no such call."""
        do = getattr(self, f"_do_{call.machine}_{call.event}", None)
        asked = self.core.world.requests.get(self.slots.get(call.instance, -1))
        if do is None or (call.event == "submit" and asked is not None and asked.state == "draining"):
            return None  # with its terminal an id is free again: the next request of that name is another record
        await do(Cause(call, is_in_vain=True))
        await self.withdraw_last()
        return self.last_call

    async def withdraw_last(self) -> bool:
        """Lets the deadline of the last call pass, if it is an operation that is kept waiting. Whether it was."""
        waiting = [op for op in self.core.operations.by_key.values() if op.state == OperationState.queued]
        if not self.calls or self.last_call.done() or not waiting:
            return False
        waiting[-1].deadline_s = self.link.now_s  # some calls take none
        await self.make_pass()
        return self.last_call.done()

    # ---- clients

    async def _do_request_submit(self, cause: Cause) -> None:
        slot = cause.call.instance
        asked = self.core.requests.get(self.slots.get(slot, -1)) if cause.is_in_vain else None
        client = Client(f"r{slot}.{len(self.clients)}" if asked is None else asked.request_id)
        self.clients.append(client)
        known = set(self.core.requests)
        await self._ask(cause.call, self._read(client))
        for key in sorted(set(self.core.requests) - known):
            self.slots[slot] = key

    async def _read(self, client: Client) -> None:
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True, stop_token_ids=[STOP])
        async with aclosing(self.engine.generate(list(PROMPT), params, request_id=client.name)) as outputs:
            async for output in outputs:
                client.outputs.append(output)

    async def _do_request_abort(self, cause: Cause) -> None:
        request = self.core.requests.get(self.slots.get(cause.call.instance, -1))
        await self._ask(cause.call, self.engine.abort("nobody" if request is None else request.request_id))

    # ---- operators

    async def _do_engine_pause(self, cause: Cause) -> None:
        data = cause.call.data
        await self._ask(cause.call, self.engine.pause(data["mode"], data["owner"], timeout=_timeout(cause)))

    async def _do_engine_resume(self, cause: Cause) -> None:
        await self._ask(cause.call, self.engine.resume(cause.call.data["owner"]))

    async def _do_engine_sleep(self, cause: Cause) -> None:
        data = cause.call.data
        tags = {name: data[name] for name in ("weights", "kv_cache") if data[name] != "none"}
        chosen: dict[str, Any] = {"tags": tags} if tags else {"level": 0}
        await self._ask(cause.call, self.engine.sleep(**chosen, mode=data["mode"], timeout=_timeout(cause)))

    async def _do_engine_wake_up(self, cause: Cause) -> None:
        tags = cause.call.data["tags"]
        named = ["weights", "kv_cache"] if tags == "both" else [tags]
        await self._ask(cause.call, self.engine.wake_up(named, timeout=_timeout(cause)))

    async def _do_engine_clear(self, cause: Cause) -> None:
        await self._ask(cause.call, self.engine.reset_prefix_cache(reset_running_requests=True))

    async def _do_engine_begin_update(self, cause: Cause) -> None:
        kv = "keep" if cause.keeps_kv else "recompute"
        asked = self.engine.begin_weight_update(cause.call.data["mode"], kv, timeout=_timeout(cause))
        await self._ask(cause.call, asked)

    async def _do_engine_shutdown(self, cause: Cause) -> None:
        timeout_s = 0.0 if cause.call.data["mode"] == "abort" else _timeout(cause)
        await self._ask(cause.call, self.engine.shutdown(timeout_s))

    async def _do_weights_load(self, cause: Cause) -> None:
        """All tensors. Where the write is to fail it waits, else it is let go, and the call is answered."""
        await self._ask(
            cause.call, self.engine.load_weights(open_source(checkpoint_folder("small"), self.engine.model.info)[0])
        )
        if "fetch" not in self.device.pending:
            return  # refused
        await self._let_until("fetch")
        if not cause.is_withdrawn:
            await self._let_until("write")
            await self._let_until("fetch")

    async def _do_weights_load_failed(self, cause: Cause) -> None:
        while self.core.operations.update._num_stale_writes:
            await self._let_until("write")  # of an update that is over
        if "write" not in self.device.pending:
            if self.core.world.weights.base_intact:
                raise CannotCause("a write fails only after it has begun, and then the old weights are gone")
            load = Call("weights", "", "load", {})
            await self._do_weights_load(Cause(load, is_withdrawn=True))
        await self._let_until("write", Outcome(OSError("the write failed")))

    async def _do_weights_commit(self, cause: Cause) -> None:
        """An update over weights that were not whole needs every tensor first; writing them again changes nothing."""
        update = self.core.operations.update
        if update._begun is not None and update._begun.asked.keep_kv != (cause.call.event == "commit_keep"):
            raise CannotCause("whether the KV is kept is said when the update is begun")
        if self.core.world.weights.state == "updating" and not update._partial and not update._written:
            await self._do_weights_load(Cause(Call("weights", "", "load", {})))
        await self._ask(cause.call, self.engine.finish_weight_update())

    async def _do_weights_commit_keep(self, cause: Cause) -> None:
        await self._do_weights_commit(cause)

    async def _do_weights_rollback(self, cause: Cause) -> None:
        await self._ask(cause.call, self.engine.abort_weight_update())

    # ---- timers

    async def _expire(self, kind: OperationKind) -> None:
        waiting = (OperationState.queued, OperationState.draining)
        operations = self.core.operations
        due = [op.deadline_s for op in operations.by_key.values() if op.kind == kind and op.state in waiting and op.deadline_s]
        if not due:
            raise CannotCause(f"no {kind} waits for its deadline")
        self.link.now_s = max(self.link.now_s, *due)
        await self.make_pass()

    async def _do_engine_withdraw_sleep(self, cause: Cause) -> None:
        await self._expire(WITHDRAWS[cause.call.event])

    async def _do_engine_withdraw_update(self, cause: Cause) -> None:
        await self._expire(WITHDRAWS[cause.call.event])

    async def _do_engine_withdraw_clear(self, cause: Cause) -> None:
        await self._expire(WITHDRAWS[cause.call.event])

    async def _do_engine_shutdown_deadline(self, cause: Cause) -> None:
        due = self.core.operations.shutdown_deadline_s
        if due is None:
            raise CannotCause("no shutdown waits for its deadline")
        self.link.now_s = max(self.link.now_s, due)
        await self.make_pass()

    # ---- the device and the environment

    async def _let_until(self, name: str, outcome: Outcome | None = None) -> None:
        """Lets work of this name go, which ends like this; then a pass takes what it reported."""
        if name not in self.device.pending:
            raise CannotCause(f"the device has no {name} in hand, but {', '.join(self.device.pending) or 'nothing'}")
        while self.device.pending[0] in ("write", "fetch", "checksum") and self.device.pending[0] != name:
            self.device.let(self.device.pending[0])  # of an update that is over
            await self.make_pass()
        self.device.let(name, outcome)
        await self.make_pass()

    async def _do_engine_ready(self, cause: Cause) -> None:
        await self._let_until("load")

    async def _do_engine_ready_empty(self, cause: Cause) -> None:
        await self._let_until("load")

    async def _do_engine_fail(self, cause: Cause) -> None:
        self.device.lost = DeviceLost("the device is lost")
        await self.make_pass()

    async def _do_memory_released(self, cause: Cause) -> None:
        await self._let_until(f"unmap {cause.call.instance}")

    async def _do_memory_release_failed(self, cause: Cause) -> None:
        await self._let_until(f"unmap {cause.call.instance}", Outcome(OSError("the copy failed")))

    async def _do_memory_restored(self, cause: Cause) -> None:
        await self._let_until(f"map {cause.call.instance}")

    async def _do_memory_restore_failed(self, cause: Cause) -> None:
        await self._let_until(f"map {cause.call.instance}", Outcome(OSError("the copy failed")))

    async def _do_memory_kv_ready(self, cause: Cause) -> None:
        await self._let_until("zero kv_cache")

    async def _do_step_land(self, cause: Cause) -> None:
        step = self.core.world.older if cause.call.instance == "0" else self.core.world.newer
        if cause.call.instance == "1":
            raise CannotCause("the older step retires in the pass in which it lands")
        keys = self.core.pipeline.plans[step.key].keys.tolist() if step.key in self.core.pipeline.plans else []
        rows: dict[str, list[int]] = {"eos": [], "device_fault": []}
        for call in cause.with_it:
            key = self.slots.get(call.instance, -1)
            if key not in keys:
                raise CannotCause(f"{call}: the step does not name it")
            rows[call.event].append(keys.index(key))
        await self._let_until(f"step {step.key}", Outcome(stops=rows["eos"], faults=rows["device_fault"]))

    async def _do_request_eos(self, cause: Cause) -> None:
        raise CannotCause("a request reaches its end, or fails, in the instant in which a step that names it lands")

    async def _do_request_device_fault(self, cause: Cause) -> None:
        await self._do_request_eos(cause)

    # ---- the scheduler

    async def _do_request_start(self, cause: Cause) -> None:
        await self.make_pass(Choice(start=self.slots.get(cause.call.instance, -1)))

    async def _do_request_preempt(self, cause: Cause) -> None:
        await self.make_pass(Choice(preempt=True))

    async def _do_step_plan(self, cause: Cause) -> None:
        named = [call.data["requests"] for call in (cause.call, *cause.with_it)]
        await self.make_pass(Choice(plan=[self.slots.get(slot, -1) for slot in named]))

    async def _do_step_launch(self, cause: Cause) -> None:
        await self.make_pass(Choice(launch=True))

    # ---- the end ------------------------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Shuts down; everybody is answered, nothing is left.

        Raises:
            AssertionError: something is.
        """
        task = asyncio.create_task(self.engine.shutdown(0), name="the end")
        await self.loop.wait_idle()
        while not self.link.is_over:
            self.steering.choice = None
            if self.device.pending and not self.device._closing:
                self.device.let(self.device.pending[0])
            self.link.step()
            await self.loop.wait_idle()
        self.device.close()
        await asyncio.gather(task, *self.calls, return_exceptions=True)
        assert_nothing_left(self.engine)


def _timeout(cause: Cause) -> float:
    return 0.0 if cause.is_in_vain else SOON_S if cause.is_withdrawn else NEVER_S
