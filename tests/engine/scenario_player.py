"""Plays a scenario on a real engine over the real CPU device, and checks at its end that nothing is left and nobody was forgotten."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pytest

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.config import EngineConfig
from quiesce.engine.model import Model
from quiesce.engine.outputs import AbortResult, RequestOutput, Transition
from quiesce.engine.sampling_params import SamplingParams
from quiesce.spec.vocabulary import Tag
from quiesce.stateful.driver import assert_nothing_left
from tests.engine.scenario_parser import BARRIERS, CALLS, RANGE, Condition, Statement
from tests.engine.scenario_sight import Client, Sight, check_error, counts
from tests.engine.scenario_world import Barrier, Claim, StageDevice, Weights, prompt_of, rss, small_engine

PATIENCE_S = 60.0
Taken = Mapping[Tag, tuple[int, int]]
OF_PARAMS = {each.name for each in fields(SamplingParams)}


class Player:
    """Performs statements one after the other."""

    def __init__(self, statements: Sequence[Statement], weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
        self._statements, self._weights, self._monkeypatch = statements, weights, monkeypatch
        self._barriers = {name: Barrier() for name in BARRIERS}
        self._clients: dict[str, Client] = {}
        self._calls: dict[str, asyncio.Task[Any]] = {}
        self._taken: dict[str, Taken] = {}
        """Background call -> what each tag could give back when it began."""
        self._contents: dict[object, str] = {}
        """Weight version -> what they are."""
        self._loaded = ""
        self._later_s = 0
        self._sight = Sight(self._clients, self._barriers, self._contents)
        self._engine: AsyncEngine | None = None

    @property
    def _device(self) -> StageDevice:
        assert self._sight.device is not None
        return self._sight.device

    @property
    def engine(self) -> AsyncEngine:
        assert self._engine is not None
        return self._engine

    def play(self) -> list[Claim]:
        """All of it, on the stock event loop. What it returns is still to be judged."""
        before, logger = set(threading.enumerate()), logging.getLogger("quiesce")
        level, listener = logger.level, self._sight.listener
        logger.addHandler(listener)
        logger.setLevel(logging.INFO)
        try:
            asyncio.run(self._main())
        finally:
            logger.removeHandler(listener)
            logger.setLevel(level)
        assert set(threading.enumerate()) <= before, "a thread is left"
        assert not listener.unexpected, "logged as errors, and not expected"
        return self._sight.claims

    async def _main(self) -> None:
        uncaught: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: uncaught.append(str(context)))
        try:
            for statement in self._statements:
                await self._perform(statement)
        finally:
            await self._end()
        for client in self._clients.values():
            client.check_history()
            assert client.is_over, f"{client.name} was never answered"
        assert_nothing_left(self.engine)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not uncaught

    async def _perform(self, statement: Statement) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._do(statement)
            assert self._engine is None or self._engine.status().balanced
        except Exception as error:
            error.add_note(f"at {statement.place}: {statement.text}\n{self._engine and self._engine.status()}")
            raise

    async def _end(self) -> None:
        for barrier in self._barriers.values():
            barrier.release()
        if self._sight.device is not None:
            self._sight.device.mend("pages")
        if self._engine is not None:
            await self._engine.shutdown(timeout=0)
        readers = [client.reader for client in self._clients.values() if client.reader is not None]
        await asyncio.gather(*readers, *self._calls.values(), return_exceptions=True)
        for client in self._clients.values():
            if client.stream is not None:
                await client.stream.aclose()

    async def _do(self, statement: Statement) -> None:
        taken = self._sight.to_be_freed()
        if statement.background:
            self._taken[statement.background] = taken
            self._calls[statement.background] = asyncio.create_task(self._call(statement))
            await self._breathe()
        elif statement.verb in CALLS:
            await self._outcome(self._call(statement), statement, taken)
        else:
            await getattr(self, f"_do_{statement.verb}")(statement)

    async def _breathe(self) -> None:
        """Lets what was just started post what it has to say."""
        for _ in range(3):
            await asyncio.sleep(0)

    # ---- verbs ----------------------------------------------------------------------------------------------------------------

    async def _do_engine(self, statement: Statement) -> None:
        settings = dict(statement.arguments)
        if "chunk_tensors" in settings:
            self._monkeypatch.setattr("quiesce.engine.device.weight_update.CHUNK_TENSORS", settings.pop("chunk_tensors"))
        config = small_engine(**settings)

        def make_device(config: EngineConfig, model: Model) -> StageDevice:
            self._sight.device = StageDevice(config, model, self._barriers)
            return self._sight.device

        self._engine = AsyncEngine(config, make_device=make_device)
        if self._barriers["loading"].is_held:
            self.engine._start()
        else:
            await self.engine.start()
        if config.load_format != "empty":
            self._contents[0] = "original"

    async def _do_client(self, statement: Statement) -> None:
        asked = statement.arguments
        for name in statement.names:
            params = {key: value for key, value in asked.items() if key in OF_PARAMS}
            number = asked.get("prompt", int("".join(filter(str.isdigit, name)) or sum(map(ord, name))))
            prompt = prompt_of(number, asked.get("length", 12), self.engine.model.info.vocab_size)
            client = Client(
                name, asked.get("id", name), prompt, SamplingParams(**({"temperature": 0, "ignore_eos": True} | params)),
                asked.get("priority", 0), asked.get("reads"),
            )  # fmt: skip
            self._clients[name] = client
            client.reader = asyncio.create_task(client.read(self.engine))
        await self._breathe()
        for condition in statement.conditions:
            for name in statement.names:
                await self._until_answered(self._clients[name])
                check_error(self._clients[name].refusal, (condition,))

    async def _until_answered(self, client: Client) -> None:
        if client.reader is not None:
            await asyncio.wait([client.reader], timeout=PATIENCE_S)

    async def _do_abort(self, statement: Statement) -> None:
        everybody = statement.names == ("all",)
        ids = [self._clients[name].request_id if name in self._clients else name for name in statement.names]
        await self._outcome(self.engine.abort_all() if everybody else self.engine.abort(ids), statement, {})

    async def _do_cancel(self, statement: Statement) -> None:
        for name in statement.names:
            task = self._calls.pop(name) if name in self._calls else self._clients[name].reader
            assert task is not None
            assert not task.done(), f"{name} is over already"
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), "a cancellation is never swallowed"

    async def _do_disconnect(self, statement: Statement) -> None:
        for name in statement.names:
            stream = self._left(name)
            assert stream is not None
            await stream.aclose()

    async def _do_drop(self, statement: Statement) -> None:
        for name in statement.names:
            self._left(name)
        gc.collect()
        await self._breathe()

    def _left(self, name: str) -> AsyncGenerator[RequestOutput, None] | None:
        """The generator of a client that has stopped reading, which it has no more."""
        client = self._clients[name]
        assert not client.is_reading, f"{name} is still reading: ask with reads=, and wait until it has left"
        stream, client.stream = client.stream, None
        return stream

    async def _do_hold(self, statement: Statement) -> None:
        self._barriers[statement.names[0]].hold(statement.arguments.get("after", 0))

    async def _do_release(self, statement: Statement) -> None:
        self._barriers[statement.names[0]].release()

    async def _do_break(self, statement: Statement) -> None:
        self._device.break_(statement.names[0])

    async def _do_mend(self, statement: Statement) -> None:
        self._device.mend(statement.names[0])

    async def _do_expect(self, statement: Statement) -> None:
        for condition in statement.conditions:
            if condition.who and condition.field in ("finished", "refused"):
                for name in condition.who:
                    await self._until_answered(self._clients[name])
            found = self._sight.seen(condition, self.engine.status())
            assert found is True, f"{condition.field} {' '.join(condition.words)}: {found}"

    async def _do_wait(self, statement: Statement) -> None:
        while True:
            status = self.engine.status()
            missing = [each for each in statement.conditions if self._sight.seen(each, status) is not True]
            if not missing:
                return
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError as error:  # of the minute that `_perform` gives
                error.add_note(f"still missing: {missing}")
                raise

    async def _do_later(self, statement: Statement) -> None:
        core = self.engine._core
        self._later_s += statement.arguments["seconds"]
        core.clock = lambda: time.monotonic() + self._later_s
        core.inbox._wake()

    async def _do_note(self, statement: Statement) -> None:
        self._sight.noted_rss = rss()

    # ---- calls ----------------------------------------------------------------------------------------------------------------

    async def _call(self, statement: Statement) -> Any:
        """Any call of the engine. Remembers which weights it brought, for the truth about tokens."""
        arguments, verb = dict(statement.arguments), statement.verb
        if "source" in arguments:
            form, content = arguments.pop("source")
            source = self._weights.source(form, content, self._barriers["tensors"])
            arguments["weights" if verb == "load_weights" else "source"] = source
            loaded = "other" if content == "part" else content
        result = await getattr(self.engine, verb)(**arguments)
        if verb in ("update_weights", "load_weights"):
            self._loaded = loaded
        if verb in ("update_weights", "finish_weight_update"):
            self._contents[self.engine.status().weights[0]] = self._loaded
        return result

    async def _do_told(self, statement: Statement) -> None:
        (name,) = statement.names
        if not statement.conditions:
            await self._breathe()
            assert not self._calls[name].done(), f"{name} is answered: {self._calls[name]}"
            return
        await self._outcome(asyncio.wait_for(self._calls.pop(name), PATIENCE_S), statement, self._taken[name])

    async def _outcome(self, asked: Any, statement: Statement, taken: Taken) -> None:
        try:
            result = await asked
        except errors.EngineError as error:
            check_error(error, statement.conditions)
            return
        for condition in statement.conditions:
            found = self._result(result, condition, taken)
            assert found is True, f"{condition.field} {' '.join(condition.words)}: {found}; {result}"

    def _result(self, result: Any, condition: Condition, taken: Taken) -> object:
        """True, or what there is instead."""
        name, words = condition.field, condition.words
        match result:
            case Transition():
                if name == "state":
                    return result.state == words[0] or result.state
                if name == "epoch":
                    return counts(result.epoch, words)
                if name in ("changed", "unchanged"):
                    return result.changed is (name == "changed")
                if name == "freed":
                    least, most = (sum(taken[Tag(word)][which] for word in words) for which in (0, 1))
                    return 0.95 * least <= result.freed_bytes <= most and result.freed_bytes > 0
                return name in ("aborted", "kept") and self._who(getattr(result, name), words)
            case AbortResult():
                return name in ("aborted", "not_found") and self._who(getattr(result, name), words)
            case bool():
                return result is (name == "yes") and name in ("yes", "no")
            case str():
                return (name == "digest" and result == self._weights.digest(words[0])) or result
        return name == "nothing" and result is None

    def _who(self, found: Sequence[str], words: Sequence[str]) -> object:
        if words[0].isdigit():
            return len(found) == int(words[0]) or len(found)
        expected: set[str] = set()
        for word in words:
            span = RANGE.fullmatch(word)
            expected |= {f"{span[1]}{number}" for number in range(int(span[2]), int(span[4]) + 1)} if span else {word}
        return set(found) == expected - {"none"} or found
