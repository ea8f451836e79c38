"""What users call: `AsyncEngine`. (`Engine`, in `engine/blocking.py`, is the same without asyncio.)

A call validates, opens a stream and waits for its outputs; everything else happens in the core. Closing, cancelling or dropping a
generator aborts its request at once and synchronously, so there is no await at which cleanup could be cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from quiesce.engine import errors
from quiesce.engine.config import EngineConfig, is_seconds
from quiesce.engine.control import ControlCalls
from quiesce.engine.core import Core
from quiesce.engine.errors import InvalidRequest, shown
from quiesce.engine.inbox import NOBODY, Abort, AwaitReady, Control
from quiesce.engine.link import Link
from quiesce.engine.link.thread import ThreadLink
from quiesce.engine.messages import Device
from quiesce.engine.model import Model, Prompt, make_device, open_model
from quiesce.engine.outputs import AbortResult, RequestOutput, Status, Transition
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.session import Session
from quiesce.engine.stream import FrontEnd, Stream
from quiesce.spec.vocabulary import OperationKind
from quiesce.statemachine.trace import Trace

logger = logging.getLogger("quiesce.api")
T = TypeVar("T")
DEFAULT_DEVICE = make_device
DeviceFactory = Callable[[EngineConfig, Model], Device]
LinkFactory = Callable[[Core, Callable[..., object]], Link]


class AsyncEngine(ControlCalls):
    """An engine on the running event loop; its core works elsewhere (a thread of its own).

    Use it as a context manager: entering waits until the weights are loaded, leaving shuts down.

    Args:
        config: sizes and limits; default the shipped model.
        make_device, make_link: where the core computes and where it runs; tests bring their own.

    Raises:
        InvalidRequest: the configuration or the checkpoint cannot be; names the field, or the file and the tensor.
    """

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        make_device: DeviceFactory = make_device,
        make_link: LinkFactory = ThreadLink,
    ) -> None:
        self.config = config or EngineConfig()
        self.model = open_model(self.config)
        self._loop: asyncio.AbstractEventLoop | None = None
        if self.config.backend == "process":
            if sys.platform != "linux":
                raise InvalidRequest("backend", "a core in a process of its own needs Linux; must be thread here")
            if make_device is not DEFAULT_DEVICE or make_link is not ThreadLink:
                raise InvalidRequest("backend", "a core in a process of its own makes its own device; bring one to a thread")
            self._front = self._in_a_process()
        else:
            self._front = self._in_a_thread(make_device(self.config, self.model), make_link)
        self._ended: asyncio.Future[None] | None = None
        self._ids = itertools.count()

    def _in_a_thread(self, device: Device, make_link: LinkFactory) -> FrontEnd:
        info, length, tokenizer = self.model.info, self.model.max_model_len, self.model.tokenizer
        self._core = core = Core(self.config, info, device, max_model_len=length, tokenizer=tokenizer)
        self._link = make_link(core, self._call_in_loop)
        return FrontEnd(self._link, core.trace, core.clock, core.started_s, self.config)

    def _in_a_process(self) -> FrontEnd:
        from quiesce.engine.link.process import ProcessLink  # ZeroMQ and msgspec: only who asks for a process pays for them

        trace = Trace(Path(self.config.trace_path) if self.config.trace_path is not None else None)
        self._link = link = ProcessLink(self.config, self.model, trace, self._call_in_loop)
        front = FrontEnd(link, trace, time.monotonic, link.started_s, self.config, link)
        link.bind(front.connection, self._gone)
        return front

    def _call_in_loop(self, function: Callable[..., object], *args: object) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function, *args)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown(timeout=None if kind is None else 0)

    async def start(self) -> None:
        """Starts the core and waits until it serves.

        Raises:
            Exception: what kept it from loading.
        """
        self._start()
        connection = self._front.connection
        try:
            while await connection.reached(restarted=True):
                try:
                    await self._front.ask(AwaitReady)
                    return
                except errors.EngineDead:
                    if not connection.is_starting:
                        raise  # else there is another core to wait for
            ended = self._front.ended
            raise ended if isinstance(ended, errors.EngineError) else connection.dead(self.status().engine, ended)
        except Exception:
            await self.shutdown(timeout=0)
            raise
        except BaseException:  # cancelled: nobody will call __aexit__, and awaiting here could be cancelled again
            self._stop_at_once()
            raise

    def _stop_at_once(self) -> None:
        """Without waiting for it."""
        self._front.connection.restarts_left = 0
        if self._front.connection.is_up and self.config.connect is None:
            self._link.post(Control(NOBODY, OperationKind.shutdown, timeout_s=0.0))
        else:
            self._front.core_ended(None)

    def _start(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._ended = self._loop.create_future()
            if self.config.backend == "thread":
                self._front.connect()
            self._link.start(self._front.deliver, self._core_ended)
        elif self._loop is not asyncio.get_running_loop():
            raise RuntimeError("an AsyncEngine belongs to the event loop it was first used on; make one for each loop")

    def _core_ended(self, cause: BaseException | None) -> None:
        self._front.core_ended(cause)
        self._gone()

    def _gone(self) -> None:
        """Nothing of the core is left, and none will follow."""
        self._front.trace.close()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # ---- requests -----------------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        session_id: str | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Streams the outputs of one request; the last one is `finished`. The request is submitted on the first iteration.

        Args:
            prompt: text, token ids, or `{"prompt_token_ids": [...]}`.
            sampling_params: default what the checkpoint's generation_config.json says, else `SamplingParams()`.
            request_id: any string not in use; one is made up if there is none.
            session_id: of an open session: the prompt is its next turn, put behind all that was said; `n` must be 1.
            priority: lower is admitted first.

        Raises:
            InvalidRequest: a value cannot be; names the field.
            DuplicateRequest: the id is in use.
            TransitionConflict: the session's last turn is not answered yet; that turn is untouched.
            QueueFull, Unavailable, EngineDead: refused; it was never accepted.
        """
        stream = await self._open(prompt, sampling_params, request_id, session_id, priority)
        try:
            while True:
                output = await stream.next_output()
                yield output
                if output.finished:
                    return
        finally:
            self._front.gone(stream)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], sampling_params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """`generate` on the messages as the checkpoint's chat template writes them. Same options, same errors."""
        if self.model.tokenizer is None:
            raise InvalidRequest("messages", "this checkpoint has no tokenizer; send token ids")
        return self.generate(self.model.tokenizer.apply_chat_template(messages), sampling_params, **options)

    async def _open(
        self, prompt: Prompt, params: SamplingParams | None, request_id: str | None, session_id: str | None, priority: int
    ) -> Stream:
        try:
            params = self._checked(params, request_id, session_id, priority)
            text, token_ids = self.model.token_ids_of(prompt)
            self._start()
            await self._front.connection.reached()
            if session_id is None:
                return self._opened(text, token_ids, params, request_id, priority, None)
            session = await self._front.sessions.begin_turn(session_id)
            try:
                return self._opened(text, [*session.history, *token_ids], params, request_id, priority, session)
            except BaseException:
                self._front.sessions.never_opened(session)
                raise
        except errors.EngineError:
            self._front.num_refused += 1
            raise

    def _checked(
        self, params: SamplingParams | None, request_id: str | None, session_id: str | None, priority: int
    ) -> SamplingParams:
        if params is not None and not isinstance(params, SamplingParams):
            raise InvalidRequest("sampling_params", f"must be SamplingParams, not {type(params).__name__}")
        if request_id is not None and (not isinstance(request_id, str) or not request_id):
            raise InvalidRequest("request_id", f"must be a string that is not empty, not {shown(request_id)}")
        if type(priority) is not int:
            raise InvalidRequest("priority", f"must be an integer, not {shown(priority)}")
        params = params or self.model.default_sampling_params
        self.model.check_params(params)
        if session_id is not None and params.n != 1:
            raise InvalidRequest("n", "must be 1 in a session: there is one history")
        return params

    def _opened(
        self, text: str | None, token_ids: list[int], params: SamplingParams, request_id: str | None, priority: int,
        session: Session | None,
    ) -> Stream:  # fmt: skip
        if len(token_ids) >= self.model.max_model_len:
            reason = f"{len(token_ids)} tokens of the session leave no room in a context of {self.model.max_model_len}"
            raise InvalidRequest("prompt", reason)
        name = request_id if request_id is not None else self._new_id()
        return self._front.open(name, text, token_ids, params, priority, self.model.tokenizer, session)

    def _new_id(self) -> str:
        return next(name for name in (f"request-{number}" for number in self._ids) if name not in self._front.by_id)

    async def abort(self, request_ids: str | Sequence[str]) -> AbortResult:
        """Ends requests now, in every engine state; each stream gets its one `abort` terminal with the tokens so far.

        An id that names nothing live (unknown, answered already, or of an engine that has stopped) is reported in `not_found`.

        Raises:
            InvalidRequest: no id is given.
        """
        asked_for: Any = (request_ids,) if isinstance(request_ids, str) else request_ids
        if (
            not isinstance(asked_for, (Sequence, Set))
            or not asked_for
            or not all(isinstance(name, str) and name for name in asked_for)
        ):
            raise InvalidRequest("request_ids", f"must name requests, not {shown(request_ids)}")
        names = list(dict.fromkeys(asked_for))
        asked = [(name, self._abort(name)) for name in names]
        found = await asyncio.gather(*(self._was_live(answer) for _, answer in asked), return_exceptions=True)
        for error in found:  # every answer is heard before the first error is told
            if isinstance(error, BaseException):
                raise error
        live = dict(zip(names, found, strict=True))
        return AbortResult(tuple(name for name in names if live[name]), tuple(name for name in names if not live[name]))

    async def _was_live(self, answer: asyncio.Future[object] | None) -> bool:
        """What the core says; one that stopped before it could had answered the request by then."""
        try:
            return answer is not None and bool(await answer)
        except errors.EngineDead:
            if self._front.ended is not None:
                raise
            return False

    def _abort(self, name: str) -> asyncio.Future[object] | None:
        """Marks the stream, then asks the core whether there was something to end."""
        stream = self._front.by_id.get(name)
        if stream is None:
            return None
        key = stream.key
        answer = self._front.ask(lambda call: Abort(key, call))
        self._front.abort(stream)
        return answer

    async def abort_all(self) -> AbortResult:
        """Ends every live request."""
        names = self.request_ids()
        return await self.abort(names) if names else AbortResult((), ())

    def request_ids(self) -> tuple[str, ...]:
        """Ids in use: requests whose terminal is not delivered yet."""
        return tuple(self._front.by_id)

    # ---- sessions -----------------------------------------------------------------------------------------------------------

    async def open_session(self) -> Session:
        """A conversation of several turns: pass its `id` to `generate` or `chat`. Idle ones are closed after a time-out.

        Raises:
            QueueFull: `EngineConfig.max_sessions` are open.
            Unavailable, EngineDead: the engine is over.
        """
        self._check_alive()
        self._start()
        return self._front.sessions.open()

    async def close_session(self, session_id: str) -> bool:
        """Ends a session, and its turn in hand with an `abort` terminal; at once, in every state of the engine. Idempotent.

        Returns whether there was one.
        """
        return self._front.sessions.close(session_id)

    # ---- the engine ---------------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """The last published snapshot. Costs nothing, works in every state."""
        return self._front.status()

    @property
    def core_pid(self) -> int | None:
        """The process of the core: another one under `backend="process"`, while there is one."""
        return self._front.connection.core_pid

    @property
    def address(self) -> str | None:
        """What `EngineConfig.connect` takes in another process of this user: there is a core to share under `backend="process"`."""
        return self._front.connection.address

    @property
    def trace(self) -> Trace:
        """The last transitions of every machine; `watch` it to see further ones."""
        return self._front.trace

    async def check_health(self) -> None:
        """Returns while the engine is alive.

        Raises:
            EngineDead: it has failed or stopped.
        """
        self._check_alive()

    def _check_alive(self) -> None:
        state = self.status().engine
        if state in ("failed", "stopped"):
            raise errors.EngineDead(state)

    async def shutdown(self, timeout: float | None = 30) -> Transition:
        """Refuses new work, lets what runs run until `timeout` seconds from now, aborts the rest, then stops. Idempotent.

        A further front end of a core (`EngineConfig.connect`) aborts its own requests and leaves; the core goes on.

        Args:
            timeout: seconds; 0 aborts at once, None is `EngineConfig.control_timeout_s`.

        Raises:
            InvalidRequest: the timeout is negative or not a number.
        """
        seconds = self.config.control_timeout_s if timeout is None else timeout
        if not is_seconds(seconds):
            raise InvalidRequest("timeout", f"must be seconds, 0 or more, not {shown(timeout)}")
        self._start()
        result: Transition | None = None
        connection = self._front.connection
        connection.restarts_left = 0
        if self.config.connect is not None and connection.is_up:
            with contextlib.suppress(errors.EngineError):  # the core has ended them, and itself
                await self.abort_all()
            self._front.core_ended(None)
        elif connection.is_starting:
            self._stop_at_once()
        elif connection.is_up:
            with contextlib.suppress(errors.EngineDead):  # it ended while we asked: that is what was wanted
                asked = self._front.control(lambda call: Control(call, OperationKind.shutdown, timeout_s=float(seconds)))
                asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, though its caller has left
                result = cast("Transition", await asyncio.shield(asked))
        if self._ended is not None:
            await asyncio.shield(self._ended)
        self._link.join()
        return result if result is not None else self._unchanged()
