"""The core: synchronous, single-threaded, one pass at a time. `step` is the table of contents.

A pass takes what landed and what was posted, one event at a time, fires the boundary rows to a fixpoint after each, performs the
effects, then plans and launches. At its end it publishes the status and hands its answers over. Nothing in here waits.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from quiesce.engine import errors
from quiesce.engine.answers import Answer, Answers, Ended, Nak, PromptLogprobs, Reply
from quiesce.engine.batch_state import BatchState
from quiesce.engine.block_pool import BlockPool
from quiesce.engine.checkpoint import ModelInfo
from quiesce.engine.commit import cache_full_blocks, commit_step, tell_tokens
from quiesce.engine.config import EngineConfig
from quiesce.engine.inbox import Abort, AwaitReady, Control, Detach, Event, Inbox, Submit
from quiesce.engine.interpreter import Interpreter
from quiesce.engine.lifecycle import Lifecycle
from quiesce.engine.measures import Measures
from quiesce.engine.messages import Checksum, Completion, Device, Fetched, Loaded, Moved, StepOutput, WeightsWritten
from quiesce.engine.noise import drawn_seed
from quiesce.engine.operations import Operations, error_for
from quiesce.engine.outputs import Admission, Status
from quiesce.engine.pipeline import Pipeline, PlannedStep
from quiesce.engine.prefix_cache import PrefixCache
from quiesce.engine.request import NO_ROW, Request
from quiesce.engine.tokenizer import Tokenizer
from quiesce.spec.vocabulary import EngineState, FinishReason, Mode, OperationKind, RequestState, StepState
from quiesce.statemachine.compile import compile_guard
from quiesce.statemachine.effects import LaunchStep, LoadWeights, Map, Unmap
from quiesce.statemachine.gate import Gate, RefusedTransition
from quiesce.statemachine.machine import NO_DATA
from quiesce.statemachine.monitor import ConformanceError, Monitor
from quiesce.statemachine.records import World
from quiesce.statemachine.trace import Trace

logger = logging.getLogger("quiesce.core")
FOR_THE_DEVICE = (LaunchStep, Map, Unmap, LoadWeights)
"""Effects that a device which has failed is not asked for any more."""


class Core:
    """One engine's control plane. `inbox` takes events, `deliver` gets answers; `step` is called by a driver and by nothing else."""

    def __init__(
        self,
        config: EngineConfig,
        info: ModelInfo,
        device: Device,
        *,
        max_model_len: int,
        tokenizer: Tokenizer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.info, self.device, self.clock = config, info, device, clock
        self.max_model_len, self.tokenizer = max_model_len, tokenizer
        self.epoch, self.version_number, self.pass_number = 1, 0, 0
        self.world = World()
        self.gate = Gate()
        self.lifecycle = Lifecycle(self.world, self.gate)
        self.monitor = Monitor(self.world)
        self.gate.watch = self.monitor.watch
        self.trace = Trace(Path(config.trace_path) if config.trace_path is not None else None)
        self.inbox = Inbox(config.max_queue)
        self.pool = BlockPool(device.num_blocks, PrefixCache(device.block_size, config.enable_prefix_caching))
        self.batch = BatchState(config.max_num_seqs, max_model_len, device.block_size)
        self.requests: dict[int, Request] = {}
        self.by_stream: dict[int, list[Request]] = {}
        self.finished = dict.fromkeys(FinishReason, 0)
        self.num_accepted = self.num_rejected = 0
        self.measures = Measures()
        self.deliver: Callable[[Answers], None] = lambda answers: None
        self._answers: list[Answer] = []
        self._events: deque[Event] = deque()
        self._landed: list[tuple[PlannedStep, StepOutput]] = []
        self._num_requests = 0
        self.failure: Exception | None = None
        self.closes_device = False
        self._ready_calls: list[int] = []
        self.started_s = clock()
        self._queues = compile_guard("engine", "queues")
        self.pipeline = Pipeline(self)
        self.operations = Operations(self)
        self.interpreter = Interpreter(self)
        self.status = self._snapshot()

    # ---- the pass -----------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One pass. An exception in it fails the engine; everybody is answered all the same."""
        self.pass_number += 1
        try:
            self._land_completions()
            self._take_events()
            self._expire_deadlines()
            self.pipeline.fill()
            self._account_for_landed()
            self.pipeline.prepare()
            self.settle()
            self._close_pass()
        except Exception as error:  # noqa: BLE001  whatever it is, everybody is answered
            self.fail(error)
            self._take_events()  # what was posted before the failure is answered, too: nothing else would wake the core for it
            self._close_pass()

    @property
    def finished_for_good(self) -> bool:
        """Whether no further pass can change anything."""
        return bool(self.world.engine.state == EngineState.stopped)

    def next_deadline_s(self) -> float | None:
        """When, on the core's clock, a pass is due even if nothing happens."""
        launched = [plan.launched_s for plan in self.pipeline.plans.values() if plan.launched_s is not None]
        due = [launched_s + self.config.step_timeout_s for launched_s in launched]
        control_s = self.operations.next_deadline_s()
        return min(due if control_s is None else [*due, control_s], default=None)

    def settle(self) -> None:
        """Boundary rows to a fixpoint, then their effects: after every event, so that none is taken while such work is pending (R1)."""
        self.lifecycle.settle()
        self.act()
        while self.operations.begin_waiting():
            self.lifecycle.settle()
            self.act()

    def act(self) -> None:
        """Performs the effects collected so far."""
        self.interpreter.perform(self.lifecycle.effects)

    # ---- what the device reports --------------------------------------------------------------------------------------------

    def _land_completions(self) -> None:
        for completion in self.device.poll():
            if self.world.engine.state in (EngineState.failed, EngineState.stopped):
                continue  # a completion of a dead device or epoch
            if isinstance(completion, Loaded):
                if completion.error is not None:
                    raise completion.error
                if self.config.load_format == "empty":
                    self.lifecycle.ready_empty()
                else:
                    self.lifecycle.ready()
            else:
                self._take_completion(completion)
            self.settle()

    def _take_completion(self, completion: Completion) -> None:
        match completion:
            case StepOutput():
                self._land_step(completion)
            case Moved():
                self.operations.moved(completion)
            case Fetched():
                self.operations.update.fetched(completion)
            case WeightsWritten():
                self.operations.update.written(completion)
            case Checksum():
                self.operations.delivered(completion.ticket, completion.digest, completion.error)

    def _land_step(self, output: StepOutput) -> None:
        step = self.world.older
        if output.epoch != self.epoch or output.step != step.key:
            raise RuntimeError(
                f"step {output.step} of epoch {output.epoch} landed; step {step.key} of epoch {self.epoch} was due"
            )
        if output.error is not None:
            raise output.error
        planned, now_s = self.pipeline.plans[step.key], self.clock()
        self.lifecycle.land(step)
        unchanged = planned.version == self.batch.version
        committed = commit_step(self.batch, planned.plan, planned.keys, output, now_s, unchanged)
        version = self.world.weights.version
        tell = partial(tell_tokens, self.batch, planned.plan, committed, version, now_s, self.measures, self.answer)
        if committed.owed:
            self.batch.owe(tell)
        else:
            tell()
        for index, position, logprobs in output.prompt_logprobs:
            row = planned.plan.rows[index]
            if self.batch.live[row] and self.batch.key[row] == planned.keys[index] and self.batch.child[row] == 0:
                self.answer(PromptLogprobs(int(self.batch.stream[row]), position, logprobs))
        for request in committed.ended:
            self.lifecycle.eos(request)
        if output.faults or not committed.complete:
            self._blame(planned, output)
        self._landed.append((planned, output))
        if committed.ended or output.faults or self.world.engine.state != EngineState.running:
            self._account_for_landed()  # now: what ends gives its blocks back in this pass
        for other in self.pipeline.plans.values():
            if other.launched_s is not None:
                other.launched_s = now_s  # it waited behind this one; its own time begins now

    def _account_for_landed(self) -> None:
        """Makes the blocks that landed steps filled findable, and traces the steps. After the next launch, where nobody waits for it."""
        self.batch.pay()
        for planned, output in self._landed:
            plan = planned.plan
            cache_full_blocks(self.batch, self.pool.prefix_cache, plan, planned.keys, self.world.weights.version)
            began, ended = output.started_s - self.started_s, output.ended_s - self.started_s
            now_s = self.clock() - self.started_s
            self.trace.step(now_s, self.pass_number, output.step, began, ended, len(plan.rows), int(plan.counts.sum()))
        self._landed.clear()

    def _blame(self, planned: PlannedStep, output: StepOutput) -> None:
        """Marks the requests whose own work failed in this step, before anything they computed can be shared."""
        faults = dict(output.faults)
        for index in np.flatnonzero(planned.plan.samples & (output.token_ids < 0)):
            faults.setdefault(int(index), "the device gave it no token")
        for place, reason in faults.items():
            row = planned.plan.rows[place]
            faulty = self.batch.requests[row]
            if faulty is not None and faulty.key == planned.keys[place] and self.batch.live[row]:
                faulty.error = reason
                self.lifecycle.device_fault(faulty)

    # ---- what clients and operators ask -------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        self._events.extend(self.inbox.take())
        while self._events:
            event = self._events.popleft()
            match event:
                case Submit():
                    self._submit(event)
                case Abort():
                    self._abort(event)
                case Control():
                    self._account_for_landed()  # before anything is forgotten: afterwards these blocks may hold something else
                    self.operations.call(event)
                case Detach():
                    self.operations.detach(event.call)
                case AwaitReady():
                    self._ready_calls.append(event.call)
            self.settle()

    def _submit(self, event: Submit) -> None:
        """Accepts all `n` sequences of a request or none: nothing can come between them."""
        by_state = self.world.by_state
        num_waiting = len(by_state[RequestState.received]) + len(by_state[RequestState.admitted])
        if num_waiting + event.params.n > self.config.max_queue:
            self._refuse(event, errors.QueueFull(f"{num_waiting} of at most {self.config.max_queue} requests wait already"))
            return
        seed = event.params.seed if event.params.seed is not None else drawn_seed(self.config.seed, self._num_requests + 1)
        for child in range(event.params.n):
            self._num_requests += 1
            request = Request(self.world, self, self._num_requests, event, seed, self.clock(), child, self.tokenizer)
            self.requests[request.key] = request
            try:
                self.lifecycle.submit(request)
            except RefusedTransition as refusal:
                del self.requests[request.key]
                self._refuse(event, error_for(refusal, str(self.world.engine.state)))
                return  # the first is refused or none: the gate does not move between them

    def _refuse(self, event: Submit, error: Exception) -> None:
        self.num_rejected += 1
        self.answer(Nak(event.stream, error))

    def _abort(self, event: Abort) -> None:
        moved = False
        for request in self.by_stream.get(event.stream, ()):
            request.client_aborts = True
            moved |= self.lifecycle.abort(request).moved
        if event.call is not None:
            self.settle()  # answered only once the terminal is out
            self.answer(Reply(event.call, moved))

    def _expire_deadlines(self) -> None:
        now_s = self.clock()
        self.operations.expire(now_s)
        for number, planned in self.pipeline.plans.items():
            if planned.launched_s is not None and now_s >= planned.launched_s + self.config.step_timeout_s:
                raise TimeoutError(f"step {number} did not land within {self.config.step_timeout_s} s")

    # ---- keeping the indexes ------------------------------------------------------------------------------------------------

    def request_moved(self, request: Request, source: str, target: str) -> None:
        """Called by the gate through `Request.moved`: the waiting queue, the fences and the batch follow the state."""
        if target == RequestState.admitted:
            self.pipeline.wait(request)
        elif source == RequestState.admitted and target == RequestState.ended:
            self.pipeline.wait_no_more()
        elif source == RequestState.running and target in (RequestState.draining, RequestState.retracting):
            self.batch.stop_running(request)
            self.pool.fence(request.blocks)

    def forget_ended(self, request: Request) -> None:
        """Drops a request that is over and has no row: its last effect has been performed."""
        if request.state == RequestState.ended and request.row == NO_ROW:
            del self.requests[request.key]
            if request.in_session:
                self.answer(Ended(request.stream))

    def stop_ids(self, request: Request) -> tuple[int, ...]:
        """Token ids that end the request."""
        ends = () if request.params.ignore_eos else self.info.eos_token_ids
        return (*ends, *request.params.stop_token_ids)

    def limit(self, request: Request) -> int:
        """Tokens the request may have in all, prompt included."""
        if request.params.max_tokens is None:
            return self.max_model_len
        return min(request.num_prompt_tokens + request.params.max_tokens, self.max_model_len)

    # ---- the end of a pass, and of an engine --------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Queues an answer for the end of the pass."""
        self._answers.append(answer)

    def fail(self, error: Exception) -> None:
        """Fails the engine: everybody live is answered `error`, pending shutdowns end, nothing hangs."""
        logger.error("engine failed: %s: %s", type(error).__name__, error, exc_info=error)
        unperformed = [effect for effect in self.lifecycle.effects if not isinstance(effect, FOR_THE_DEVICE)]
        self.lifecycle.effects.clear()
        self.interpreter.perform(deque(unperformed))  # an answer that was due is still due
        for request in self.requests.values():
            request.error = request.error or f"{type(error).__name__}: {error}"
        self.failure = self.failure or error
        self._landed.clear()
        self.lifecycle.fail_engine()
        self.operations.fail(error)
        self.epoch += 1
        self.pipeline.plans.clear()
        self.settle()
        if any(operation.kind == OperationKind.shutdown for operation in self.operations.by_key.values()):
            self.lifecycle.shutdown(Mode.abort)
            self.settle()

    def _close_pass(self) -> None:
        """Holds the pass against the declaration, publishes the status, then hands the answers over."""
        log, self.gate.log = self.gate.log, []
        for record, event, source, target, _, _ in log:
            if record is self.world.engine and source != target:
                logger.info("engine %s -> %s (%s): %s", source, target, event, self._counts())
        self.monitor.check(log)
        self.trace.transitions(self.clock() - self.started_s, self.pass_number, log)
        if self.world.engine.state != EngineState.starting:
            over = self.world.engine.state in (EngineState.stopping, EngineState.stopped)
            error = self.failure or (
                errors.EngineDead(str(self.world.engine.state), "it was shut down while loading") if over else None
            )
            for call in self._ready_calls:
                self.answer(Reply(call, error=error))
            self._ready_calls.clear()
        self.status = self._snapshot()
        if not self.status.balanced:
            raise ConformanceError(f"S6_conservation, S15_balance: {self.status}")
        if self._answers:
            answers, self._answers = self._answers, []
            self.deliver(Answers(self.status, answers))
        if self.closes_device:
            self.closes_device = False
            self.device.close()

    def _counts(self) -> str:
        """Requests by state and the blocks, for the log."""
        requests = ", ".join(f"{len(found)} {state}" for state, found in self.world.by_state.items() if found)
        blocks = self.pool.counts()
        return f"{requests or 'no requests'}; blocks {blocks.free} free, {blocks.cached} cached, {blocks.held} held, {blocks.fenced} fenced"

    def _snapshot(self) -> Status:
        world = self.world
        return Status(
            engine=str(world.engine.state),
            admission=self._admission(),
            memory=MappingProxyType({tag.value: str(record.state) for tag, record in world.memory.items()}),
            weights=(world.weights.version, str(world.weights.state)),
            pause_owners=MappingProxyType({name: str(t.state) for name, t in world.pause_token.items() if t.state != "free"}),
            operation=self.operations.in_hand(),
            requests=MappingProxyType({str(state): len(found) for state, found in world.by_state.items() if found}),
            sessions=0,
            streams=0,
            steps_in_flight=sum(step.state in (StepState.launched, StepState.landed) for step in (world.older, world.newer)),
            blocks=self.pool.counts(),
            epoch=self.epoch,
            accepted=self.num_accepted,
            rejected=self.num_rejected,
            finished=MappingProxyType({str(reason): count for reason, count in self.finished.items()}),
            measured=self.measures.snapshot(),
        )

    def _admission(self) -> Admission:
        if self.world.engine.state == EngineState.running:
            return "accept"
        return "queue" if self._queues is not None and self._queues(self.world.engine, NO_DATA) else "reject"
