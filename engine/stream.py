"""The client's side: one stream for each request, and the front end that owns them. Lives on one event loop; the core is elsewhere.

Coroutines here hold keys, never records of the core. Nothing is read before an `await` and written after it: deliveries and calls
change a stream in one go, and a consumer only waits until there is something to take.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from quiesce.engine import errors
from quiesce.engine.answers import Ack, Answers, Ended, Nak, PromptLogprobs, Reply, Terminal, Tokens
from quiesce.engine.child import Child, logprobs_of
from quiesce.engine.config import EngineConfig
from quiesce.engine.inbox import Abort, Detach, Event, Submit
from quiesce.engine.link import Link, Supervisor
from quiesce.engine.link.connection import Connection
from quiesce.engine.messages import TokenLogprobs
from quiesce.engine.outputs import Logprob, RequestMetrics, RequestOutput, Status
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.session import FINISHED, Session, Sessions
from quiesce.engine.tokenizer import Tokenizer
from quiesce.spec.vocabulary import FinishReason, LinkState, StreamEvent, StreamState
from quiesce.statemachine.effects import DeliverError, DeliverRefusal, DeliverTerminal, Effect, SendAbort, SendAdd
from quiesce.statemachine.gate import Gate, Outcome, RefusedTransition
from quiesce.statemachine.monitor import Monitor
from quiesce.statemachine.records import StreamRecord, World
from quiesce.statemachine.trace import Trace

logger = logging.getLogger("quiesce.front_end")


class Stream(StreamRecord):
    """What one client has been given and is still owed. At most one merged output is pending, however slow the client is."""

    __slots__ = (
        "accepted", "children", "params", "prompt", "prompt_logprobs", "prompt_token_ids", "refusal", "retryable", "seed", "submit", "terminal",
        "tokenizer", "waiter",
    )  # fmt: skip

    def __init__(self, world: World, key: int, submit: Submit, prompt: str | None, tokenizer: Tokenizer | None) -> None:
        super().__init__(world, key, submit.request_id)
        self.submit = submit
        self.accepted = False
        self.params = submit.params
        self.prompt, self.tokenizer = prompt, tokenizer
        self.prompt_token_ids = tuple(submit.token_ids.tolist())
        self.children = [Child(index, submit.params, tokenizer) for index in range(submit.params.n)]
        self.prompt_logprobs: dict[int, TokenLogprobs] = {}
        self.terminal: Terminal | None = None
        """The last child's terminal: the stream's own end."""
        self.refusal: Exception | None = None
        self.retryable = False
        self.seed: int | None = submit.params.seed
        self.waiter: asyncio.Future[None] | None = None

    @property
    def num_tokens(self) -> int:
        return sum(len(child.token_ids) for child in self.children)

    def end_child(self, terminal: Terminal) -> bool:
        """Takes one child's terminal. Whether all have theirs.

        A terminal that says another number of tokens than were delivered becomes an error: neither hidden nor waited out (S14).
        """
        child = self.children[terminal.child]
        if terminal.num_tokens != len(child.token_ids):
            reason = f"{terminal.num_tokens} tokens were generated and {len(child.token_ids)} delivered (S14)"
            logger.error("request %s: %s", self.request_id, reason)
            terminal = replace(terminal, finish_reason=FinishReason.error, error=reason)
        child.terminal = terminal
        if all(child.terminal is not None for child in self.children):
            self.terminal = terminal
        return self.terminal is not None

    def has_news(self) -> bool:
        """Whether `take` would give something."""
        if self.terminal is not None or self.refusal is not None:
            return True
        return self.params.output_kind != "final" and any(child.has_news for child in self.children)

    def notify(self) -> None:
        """Wakes the consumer, if it waits and there is something to take."""
        if self.waiter is not None and not self.waiter.done() and self.has_news():
            self.waiter.set_result(None)

    async def next_output(self) -> RequestOutput:
        """Waits for news and takes all of it, merged.

        Raises:
            EngineError: the call was refused.
        """
        while not self.has_news():
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        if self.refusal is not None:
            raise self.refusal
        return self.take()

    def take(self) -> RequestOutput:
        """The pending output; afterwards nothing is pending."""
        finished = self.terminal is not None
        delta = self.params.output_kind == "delta" and not finished
        told = [child.take() for child in self.children if child.has_news or not delta]
        errors_told = [child.terminal.error for child in self.children if child.terminal and child.terminal.error]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=tuple(told),
            finished=finished,
            num_cached_tokens=self.terminal.num_cached_tokens if self.terminal else 0,
            metrics=self.terminal.metrics if self.terminal else None,
            prompt_logprobs=self._prompt_logprobs(),
            error=errors_told[0] if errors_told and finished else None,
            seed=self.seed,
            retryable=self.retryable,
        )

    def _prompt_logprobs(self) -> tuple[dict[int, Logprob] | None, ...] | None:
        if self.params.prompt_logprobs is None:
            return None
        found = [self.prompt_logprobs.get(position) for position in range(len(self.prompt_token_ids))]
        return tuple(None if one is None else logprobs_of(one, self.tokenizer) for one in found)


class FrontEnd:
    """All streams of one front end, their gate, and the calls that wait for a reply."""

    def __init__(
        self, link: Link, trace: Trace, clock: Callable[[], float], started_s: float, config: EngineConfig,
        supervisor: Supervisor | None = None,
    ) -> None:  # fmt: skip
        self.link, self.trace, self.clock = link, trace, clock
        self.world = World()
        self.gate = Gate()
        self.monitor = Monitor(self.world)
        self._started_s = started_s
        self.num_refused = 0
        """Calls refused before the core saw them."""
        self.by_id: dict[str, Stream] = {}
        self.by_key: dict[int, Stream] = {}
        self.calls: dict[int, asyncio.Future[object]] = {}
        self.ended: BaseException | None = None
        self._num_keys = 0
        self.sessions = Sessions(self.world, self.gate, config.max_sessions, config.session_idle_timeout_s, self._abort_by_key)
        self.connection = Connection(self, supervisor, config.max_restarts)
        self._perform: dict[type[Effect], Callable[[Effect], None]] = {
            SendAdd: self.do_send_add,
            SendAbort: self.do_send_abort,
            DeliverRefusal: self.do_deliver_refusal,
            DeliverTerminal: self.do_deliver_terminal,
            DeliverError: self.do_deliver_error,
        }

    def status(self) -> Status:
        """The core's last word, with this front end's own counts. A core that died without one has failed."""
        status = self.link.status().seen_from(len(self.by_key), self.num_refused, len(self.world.sessions))
        if self.world.link.state in (LinkState.lost, LinkState.down) and status.engine not in ("failed", "stopped"):
            return replace(status, engine="failed", admission="reject")
        return status

    def connect(self) -> None:
        """The core is there."""
        self.connection.connect()

    # ---- calls --------------------------------------------------------------------------------------------------------------

    def open(
        self,
        request_id: str,
        prompt: str | None,
        token_ids: Sequence[int],
        params: SamplingParams,
        priority: int,
        tokenizer: Tokenizer | None,
        session: Session | None = None,
    ) -> Stream:
        """Opens a stream and sends the call.

        Raises:
            DuplicateRequest: the id is in use.
            QueueFull: the core's inbox is full.
            InvalidRequest: it holds what cannot be sent.
            Unavailable, EngineDead: there is no core to send it to.
        """
        if request_id in self.by_id:
            raise errors.DuplicateRequest(request_id)
        self._num_keys += 1
        submit = Submit(self._num_keys, request_id, np.array(token_ids, np.int32), params, priority, session is not None)
        stream = Stream(self.world, self._num_keys, submit, prompt, tokenizer)
        self.by_id[request_id] = self.by_key[stream.key] = stream
        if session is not None:
            self.sessions.carry(session, stream.key)
        try:
            self.call(stream)
        except RefusedTransition as refusal:
            self._forget(stream.key)
            raise self.connection.refusal(self.status().engine) from refusal
        except errors.EngineError as refused:
            stream.refusal = refused
            self.nak(stream)
            raise
        return stream

    def ask(self, make: Callable[[int], Event]) -> asyncio.Future[object]:
        """Posts an event that the core answers; the future is the answer."""
        self._num_keys += 1
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if not self.connection.is_up:
            answer.set_exception(self.connection.refusal(self.status().engine))
            return answer
        self.calls[self._num_keys] = answer
        answer.add_done_callback(lambda _, call=self._num_keys: self.calls.pop(call, None))  # type: ignore[misc]  # a default binds it now
        try:
            self.link.post(make(self._num_keys))
        except errors.EngineError as refused:
            answer.set_exception(refused)
        return answer

    def control(self, make: Callable[[int], Event]) -> asyncio.Future[object]:
        """As `ask`, for a control call: the core is told when the caller leaves."""
        answer = self.ask(make)
        answer.add_done_callback(lambda done, call=self._num_keys: self._left(done, call))  # type: ignore[misc]  # as above
        return answer

    def _left(self, answer: asyncio.Future[object], call: int) -> None:
        if answer.cancelled() and self.connection.is_up:
            self.link.post(Detach(call))

    def _abort_by_key(self, key: int) -> None:
        stream = self.by_key.get(key)
        if stream is not None:
            self.abort(stream)

    # ---- events of a stream, one method each --------------------------------------------------------------------------------

    def call(self, stream: Stream) -> None:
        self._fire(self.gate.fire(stream, StreamEvent.call))

    def gone(self, stream: Stream) -> None:
        """The client stopped listening, for whatever reason. Cleanup is synchronous: there is no await to be cancelled at."""
        if stream.state != StreamState.closed:
            logger.info("client of %s disconnected after %d tokens", stream.request_id, stream.num_tokens)
        self._fire(self.gate.fire(stream, StreamEvent.gone))
        self.sessions.stream_closed(stream.key, None, accepted=True)  # nobody listens to the turn: the next one may wait for it

    def abort(self, stream: Stream) -> None:
        self._fire(self.gate.fire(stream, StreamEvent.abort))

    def ack(self, stream: Stream) -> None:
        self._fire(self.gate.fire(stream, StreamEvent.ack))

    def nak(self, stream: Stream) -> None:
        self._fire(self.gate.fire(stream, StreamEvent.nak))

    def terminal(self, stream: Stream) -> None:
        self._fire(self.gate.fire(stream, StreamEvent.terminal))

    def fail(self, stream: Stream) -> None:
        self._fire(self.gate.fire(stream, StreamEvent.fail))

    # ---- what the core sends ------------------------------------------------------------------------------------------------

    def deliver(self, batch: Answers) -> None:
        """Takes the answers of one pass."""
        streams = self.by_key
        touched: dict[int, Stream] = {}
        for answer in batch.answers:
            if isinstance(answer, Reply):
                self._reply(answer)
                continue
            if isinstance(answer, Tokens):
                tokens = zip(answer.streams.tolist(), answer.children.tolist(), answer.token_ids.tolist(), strict=True)
                for place, (key, child, token_id) in enumerate(tokens):
                    stream = streams.get(key)
                    if stream is not None:
                        stream.children[child].push(token_id, answer.version, answer.logprobs.get(place))
                        touched[key] = stream
                continue
            if isinstance(answer, Ended):
                self.sessions.request_ended(answer.stream)
                continue
            stream = streams.get(answer.stream)
            if stream is None:
                continue  # closed meanwhile: a message for nobody
            touched[answer.stream] = stream
            match answer:
                case Ack():
                    stream.seed, stream.accepted = answer.seed, True
                    self.ack(stream)
                case Nak():
                    stream.refusal = answer.error
                    self.nak(stream)
                case PromptLogprobs():
                    stream.prompt_logprobs[answer.position] = answer.logprobs
                case Terminal():
                    stream.retryable |= answer.finish_reason == FinishReason.error and self.connection.will_replace(
                        batch.status.engine
                    )
                    if stream.end_child(answer):
                        self.terminal(stream)
        for stream in touched.values():
            stream.notify()
        self.account()

    def account(self) -> None:
        """Holds what happened since the last time against the declaration, and writes it to the trace."""
        log, self.gate.log = self.gate.log, []
        self.trace.transitions(self.clock() - self._started_s, None, log)
        self.monitor.check(log)

    def _reply(self, answer: Reply) -> None:
        future = self.calls.pop(answer.call, None)
        if future is None or future.done():
            return  # the caller left; the operation ran to its end all the same
        if answer.error is not None:
            future.set_exception(answer.error)
        else:
            future.set_result(answer.value)

    @property
    def num_calls(self) -> int:
        return len(self.calls)

    def core_ended(self, cause: BaseException | None) -> None:
        """The core is over, stopped or dead, and no other will follow."""
        self.connection.lose(cause, is_final=True)

    def answer_everybody(self, cause: BaseException | None, is_retryable: bool) -> None:
        """The link is lost: everything that still waits is answered now. Sessions outlive the core where another follows."""
        self.ended = cause
        for stream in list(self.by_key.values()):
            stream.retryable = is_retryable
            self.fail(stream)
            stream.notify()
        for future in list(self.calls.values()):
            if not future.done():
                future.set_exception(self.connection.dead(self.status().engine, cause))
        self.calls.clear()
        self.sessions.core_ended(is_final=not is_retryable)

    # ---- effects ------------------------------------------------------------------------------------------------------------

    def _fire(self, outcome: Outcome) -> None:
        for effect in outcome.effects:
            self._perform[type(effect)](effect)

    def do_send_add(self, effect: Effect) -> None:
        self.link.post(self.by_key[effect.subject].submit)

    def do_send_abort(self, effect: Effect) -> None:
        self.link.post(Abort(effect.subject))

    def do_deliver_refusal(self, effect: Effect) -> None:
        self._forget(effect.subject)

    def do_deliver_terminal(self, effect: Effect) -> None:
        self._forget(effect.subject)

    def do_deliver_error(self, effect: Effect) -> None:
        stream = self._forget(effect.subject)
        reason = f"the core ended: {self.ended}" if self.ended else "the core has stopped"
        if not stream.accepted:
            stream.refusal = self.connection.dead(self.status().engine, self.ended, reason)
            return
        for child in stream.children:
            if child.terminal is None:
                metrics = RequestMetrics(0.0)
                stream.end_child(
                    Terminal(stream.key, child.index, FinishReason.error, None, len(child.token_ids), 0, metrics, reason)
                )

    def _forget(self, key: int) -> Stream:
        stream = self.by_key.pop(key)
        del self.by_id[stream.request_id]
        ended = stream.terminal
        finished = ended is not None and ended.finish_reason in FINISHED
        history = (*stream.prompt_token_ids, *stream.children[0].token_ids) if finished else None
        self.sessions.stream_closed(key, history, stream.accepted)
        return stream
