"""`Engine`: the same verbs as `AsyncEngine`, blocking, for code without an event loop. It keeps a loop of its own in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from tqdm import tqdm

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.errors import InvalidRequest
from quiesce.engine.model import Prompt, batch_of
from quiesce.engine.outputs import AbortResult, RequestOutput, Status, Transition
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.session import Session

T = TypeVar("T")


class _Call(Generic[T]):
    """A coroutine run for another thread. It exists before it is posted, so that whoever is interrupted can always end it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop, self._work = loop, work
        self._task: asyncio.Task[T] | None = None
        self._given_up = False

    def start(self) -> None:
        """In the loop: begins, unless the caller has left already."""
        if not self._given_up:
            self._task = self._loop.create_task(self._work)
            self._task.add_done_callback(self._tell)

    def _tell(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.answer.cancel()
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())

    def give_up(self) -> None:
        """From the caller's thread: ends the work, whether it has begun or not."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing of the work runs any more
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._given_up = True
        if self._task is not None:
            self._task.cancel()
        else:
            self._work.close()


class Engine:
    """`AsyncEngine` for code without an event loop: the same verbs, blocking. Works inside notebooks, too.

    Raises:
        InvalidRequest: the configuration or the checkpoint cannot be.
        Exception: what kept it from loading.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self._engine = AsyncEngine(config)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="quiesce-loop", daemon=True)
        self._thread.start()
        try:
            self._run(self._engine.start())
        except BaseException:
            self._close()
            raise

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        call = _Call(self._loop, work)
        try:
            with self._lock:  # no call slips in behind the last look at what is still running
                if self._closing:
                    work.close()
                    raise errors.EngineDead("stopped", "start a new engine")
                self._loop.call_soon_threadsafe(call.start)
            return call.answer.result()
        except concurrent.futures.CancelledError:
            raise errors.EngineDead("stopped", "it was shut down meanwhile") from None
        except (KeyboardInterrupt, SystemExit):
            call.give_up()  # Ctrl+C here, at whatever instruction, must end the work there
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        session_id: str | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Runs a batch to its end; outputs come in the order of the prompts. A session takes one prompt, its next turn.

        Raises:
            InvalidRequest: a prompt or parameter cannot be; nothing of the batch is left running.
        """
        batch = batch_of(prompts)
        if session_id is not None and len(batch) != 1:
            raise InvalidRequest("prompts", f"a session takes one turn at a time, not {len(batch)}")
        params = (
            [sampling_params] * len(batch)
            if sampling_params is None or isinstance(sampling_params, SamplingParams)
            else list(sampling_params)
        )
        if len(params) != len(batch):
            raise InvalidRequest("sampling_params", f"{len(params)} for {len(batch)} prompts")
        return self._run(self._generate(batch, params, session_id, use_tqdm))

    async def _generate(
        self, prompts: list[Prompt], params: Sequence[SamplingParams | None], session_id: str | None, use_tqdm: bool
    ) -> list[RequestOutput]:
        with tqdm(total=len(prompts), desc="Processed prompts", disable=None if use_tqdm else True) as bar:
            places = asyncio.Semaphore(self._engine.config.max_queue)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._last(prompt, one, session_id, places, bar))
                        for prompt, one in zip(prompts, params, strict=True)
                    ]
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _last(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        session_id: str | None,
        places: asyncio.Semaphore,
        bar: tqdm[Any],
    ) -> RequestOutput:
        async with places:  # a batch longer than the queue waits here instead of being refused
            turn = self._engine.generate(prompt, params, session_id=session_id)
            outputs = [output async for output in turn if output.finished]
        bar.update()
        return outputs[-1]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        session_id: str | None = None,
    ) -> list[RequestOutput]:
        """`generate` on one conversation, written by the checkpoint's chat template."""
        tokenizer = self._engine.model.tokenizer
        if tokenizer is None:
            raise InvalidRequest("messages", "this checkpoint has no tokenizer; send token ids")
        return self.generate(tokenizer.apply_chat_template(messages), sampling_params, session_id=session_id, use_tqdm=False)

    def abort(self, request_ids: str | Sequence[str]) -> AbortResult:
        return self._run(self._engine.abort(request_ids))

    def abort_all(self) -> AbortResult:
        return self._run(self._engine.abort_all())

    def request_ids(self) -> tuple[str, ...]:
        return self._engine.request_ids()

    # ---- control calls: see `AsyncEngine` for what each does and raises ---------------------------------------------------------

    def pause(
        self,
        mode: str = "abort",
        owner: str = "user",
        clear_cache: bool = False,
        timeout: float | None = None,
        ttl: float | None = None,
        operation_id: str | None = None,
    ) -> Transition:
        return self._run(self._engine.pause(mode, owner, clear_cache, timeout, ttl, operation_id))

    def resume(self, owner: str = "user", operation_id: str | None = None) -> Transition:
        return self._run(self._engine.resume(owner, operation_id))

    def pause_generation(
        self, *, mode: str = "abort", wait_for_inflight_requests: bool = False, clear_cache: bool = True
    ) -> Transition:
        waits = wait_for_inflight_requests
        return self._run(self._engine.pause_generation(mode=mode, wait_for_inflight_requests=waits, clear_cache=clear_cache))

    def resume_generation(self) -> Transition:
        return self._run(self._engine.resume_generation())

    def is_paused(self) -> bool:
        return self._run(self._engine.is_paused())

    def reset_prefix_cache(self, reset_running_requests: bool = False, operation_id: str | None = None) -> bool:
        return self._run(self._engine.reset_prefix_cache(reset_running_requests, operation_id))

    def sleep(
        self,
        level: int | None = None,
        tags: Iterable[str] | Mapping[str, str] | None = None,
        mode: str | None = None,
        timeout: float | None = None,
        operation_id: str | None = None,
    ) -> Transition:
        return self._run(self._engine.sleep(level, tags, mode, timeout, operation_id))

    def wake_up(
        self, tags: Iterable[str] | None = None, timeout: float | None = None, operation_id: str | None = None
    ) -> Transition:
        return self._run(self._engine.wake_up(tags, timeout, operation_id))

    def is_sleeping(self) -> bool:
        return self._run(self._engine.is_sleeping())

    def update_weights(
        self,
        source: object,
        version: int | str | None = None,
        mode: str = "keep",
        kv: str = "recompute",
        timeout: float | None = None,
        operation_id: str | None = None,
    ) -> Transition:
        return self._run(self._engine.update_weights(source, version, mode, kv, timeout, operation_id))

    def begin_weight_update(
        self,
        mode: str = "keep",
        kv: str = "recompute",
        timeout: float | None = None,
        lease: float | None = None,
        operation_id: str | None = None,
    ) -> Transition:
        return self._run(self._engine.begin_weight_update(mode, kv, timeout, lease, operation_id))

    def load_weights(
        self, weights: Mapping[str, Any] | Iterable[tuple[str, Any]], operation_id: str | None = None
    ) -> Transition:
        return self._run(self._engine.load_weights(weights, operation_id))

    def finish_weight_update(self, version: int | str | None = None, operation_id: str | None = None) -> Transition:
        return self._run(self._engine.finish_weight_update(version, operation_id))

    def abort_weight_update(self, operation_id: str | None = None) -> Transition:
        return self._run(self._engine.abort_weight_update(operation_id))

    def weights_checksum(self) -> str:
        return self._run(self._engine.weights_checksum())

    def open_session(self) -> Session:
        return self._run(self._engine.open_session())

    def close_session(self, session_id: str) -> bool:
        return self._run(self._engine.close_session(session_id))

    def status(self) -> Status:
        return self._engine.status()

    def check_health(self) -> None:
        self._run(self._engine.check_health())

    def shutdown(self, timeout: float | None = 30) -> Transition:
        """As `AsyncEngine.shutdown`; afterwards only `status` and `shutdown` work."""
        if self._closing:
            self._thread.join()
            status = self.status()
            return Transition(status.engine, False, status.epoch)
        result = self._run(self._engine.shutdown(timeout))
        self._close()
        return result

    def _close(self) -> None:
        """Ends the loop; calls that other threads still wait for are cancelled, and told so."""

        async def cancel_the_rest() -> None:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        with self._lock:
            if self._closing:
                return
            self._closing = True
            rest = asyncio.run_coroutine_threadsafe(cancel_the_rest(), self._loop)
        rest.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown(None if kind is None else 0)
