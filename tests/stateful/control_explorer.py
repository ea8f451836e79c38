"""Random clients, operators and failures against the control calls, on the deterministic loop. A seed is a run.

A *program* is data: actors, each a list of (ticks to wait, what to do, with what), so that a run that fails can be made smaller. While
it runs everything may be called at any time, legal or not; a call must be answered, with a result that holds at that moment or with one
of the declared errors. Then the world turns fair: holds are released, memory is woken, broken weights are healed; every client must
be answered, with true tokens, and the engine must run with nothing left over.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.inbox import AwaitReady
from quiesce.engine.noise import noise_key
from quiesce.engine.outputs import RequestOutput, Status, Transition
from quiesce.engine.sampling_params import SamplingParams
from quiesce.engine.tensor_files import expected_tensors
from quiesce.stateful.control_programs import Action, Program, drawn_config, drawn_loop, drawn_program
from quiesce.stateful.driver import VOCAB_SIZE, assert_nothing_left, ledger_checkpoint, ledger_config, ledger_engine
from quiesce.stateful.ledger_device import LedgerDevice
from quiesce.stateful.loop import DeterministicLoop
from quiesce.stateful.truth import assert_tokens_are_true

GATED = ("paused", "partially_awake", "sleeping")


@dataclass(slots=True)
class Asked:
    """A client and what it saw."""

    name: str
    prompt: list[int]
    params: SamplingParams
    outputs: list[RequestOutput] = field(default_factory=list)
    refusal: Exception | None = None
    left: bool = False


@dataclass
class Run:
    """One run of a program."""

    loop: DeterministicLoop
    engine: AsyncEngine
    device: LedgerDevice
    clients: list[Asked] = field(default_factory=list)
    numbers: dict[int | str, int] = field(default_factory=lambda: {0: 0})
    """Names of weight versions -> the number that steps carry."""
    fatal: bool = False
    """A failure was injected that the engine may not survive."""
    faulty: bool = False
    """One was injected that a request does not survive."""

    # ---- actors -----------------------------------------------------------------------------------------------------------

    async def act(self, actions: Sequence[Action]) -> None:
        for ticks, what, given in actions:
            for _ in range(ticks):
                await self.tick()
            await getattr(self, f"do_{what}")(**given)

    async def tick(self) -> None:
        turn: asyncio.Future[None] = self.loop.create_future()
        self.loop.offer("tick", lambda: None if turn.done() else turn.set_result(None))
        await turn

    async def do_generate(self, stop_after: int | None, length: int, first: int, **params: Any) -> None:
        prompt = [3 + (first + 11 * place) % (VOCAB_SIZE - 3) for place in range(length)]
        asked = Asked(f"r{len(self.clients)}", prompt, SamplingParams(ignore_eos=True, **params))
        self.clients.append(asked)
        try:
            async with aclosing(self.engine.generate(prompt, asked.params, request_id=asked.name)) as outputs:
                async for output in outputs:
                    asked.outputs.append(output)
                    if stop_after is not None and len(asked.outputs) >= stop_after:
                        asked.left = not output.finished
                        break
        except errors.EngineError as refusal:
            asked.refusal = refusal

    async def do_abort(self, which: int) -> None:
        names = self.engine.request_ids()
        await self.engine.abort(names[which % len(names)] if names else "nobody")

    async def do_fault(self, kind: str, tag: str, to: str) -> None:
        if kind == "write":
            self.device.fail_write = OSError("no write")
        elif kind == "fetch":
            self.device.fail_fetch = OSError("no fetch")
        elif kind == "step":
            self.device.fail_at[len(self.device.steps) + 3] = OSError("no step")
            self.fatal = True
        elif kind == "row":
            self.device.fault_at.add((len(self.device.steps) + 3, 0))
            self.faulty = True
        else:
            self.device.fail_move.add((tag, to))
            self.fatal |= to == "zeroed"

    async def do_call(self, verb: str, cancel_after: int | None = None, **given: Any) -> None:
        """A control call, and what is true of its answer."""
        if "weights" in given:
            weights = made_weights(given.pop("weights"), self.tensors)
            given["source" if verb == "update_weights" else "weights"] = weights
        call = asyncio.ensure_future(getattr(self.engine, verb)(**given))
        if cancel_after is not None:
            for _ in range(cancel_after):
                await self.tick()
            call.cancel()
        with suppress(errors.EngineError, asyncio.CancelledError):
            self._check_answer(verb, given, await call)

    def _check_answer(self, verb: str, given: Mapping[str, Any], answer: object) -> None:
        if not isinstance(answer, Transition) or "operation_id" in given:
            return  # or perhaps the answer of another call, that had the same one
        if verb == "pause" or (verb == "sleep" and given.get("level") == 0):
            assert answer.state in GATED, answer
        elif verb == "sleep":
            assert answer.state in ("partially_awake", "sleeping"), answer
        elif verb == "begin_weight_update":
            assert answer.state in ("paused", "partially_awake"), answer
        elif verb == "shutdown":
            assert answer.state == "stopped", answer
        mine = {client.name: client for client in self.clients}
        for name in answer.aborted:
            ended = {child.finish_reason for output in mine[name].outputs[-1:] for child in output.outputs}
            assert not ended or ended & {None, "abort"}, (name, answer)
        assert answer.freed_bytes >= 0
        assert not set(answer.aborted) & set(answer.kept), answer

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return expected_tensors(self.engine.model.info)

    def watch_answers(self) -> None:
        """Holds each answer against the device at the moment it is given."""
        operations, world, device = self.engine._core.operations, self.engine._core.world, self.device
        answer = operations.answer

        def checked(key: int, detail: str) -> None:
            operation, pool = operations.by_key[key], self.engine._core.pool
            names = [tag for tag, named in (("weights", operation.names_weights), ("kv_cache", operation.names_kv)) if named]
            if detail == "done" and world.engine.state != "stopped":
                match operation.kind:
                    case "pause" | "begin_weight_update":
                        assert not device.launched
                        assert not world.by_state["draining"]
                    case "sleep":
                        assert not device.launched
                        assert all(device.places[tag] == "away" for tag in names), device.places
                    case "wake_up":
                        assert all(device.places[tag] == "here" for tag in names), device.places
                    case "reset_prefix_cache":
                        assert pool.counts().cached == 0
                    case "update_weights" | "finish_weight_update":
                        assert world.weights.state == "stable"
            answer(key, detail)

        operations.answer = checked  # type: ignore[method-assign]

    # ---- the end ----------------------------------------------------------------------------------------------------------

    async def turn_fair(self) -> None:
        """No more failures; whatever holds the engine is released, in the order in which it can be."""
        self.device.fail_move.clear()
        self.device.fail_write = self.device.fail_fetch = None
        with suppress(OSError, errors.EngineError):  # what it failed of
            await self.engine._front.ask(AwaitReady)
        for _ in range(20):  # an impatient schedule lets deadlines pass
            state = self.engine.status()
            if state.engine in ("stopped", "failed", "running"):
                break
            with suppress(errors.TransitionConflict, errors.DeadlineExceeded, errors.EngineDead):
                await self._let_go(state)
            await self.loop.wait_idle()

    async def _let_go(self, state: Status) -> None:
        for owner in state.pause_owners:
            if owner not in ("sleep", "update", "clear", "shutdown"):
                await self.engine.resume(owner)
        with suppress(errors.TransitionConflict):
            await self.engine.abort_weight_update()
        await self.engine.wake_up()
        if self.engine.status().weights[1] != "stable":
            await self.engine.update_weights(made_weights("full", self.tensors))

    def check_clients(self) -> None:
        engine_failed = self.engine._core.failure is not None
        for client in self.clients:
            if client.refusal is not None:
                assert not client.outputs, f"{client.name} was refused after it was accepted"
                continue
            assert client.left or client.outputs[-1].finished, f"{client.name} has no terminal"
            allowed = ("length", "abort", "error") if engine_failed or self.faulty else ("length", "abort")
            for child in client.outputs[-1].outputs if not client.left else ():
                assert child.finish_reason in allowed, (client.name, child, client.outputs[-1].error)
                if child.finish_reason == "length":
                    assert len(child.token_ids) == client.params.max_tokens
            self._check_tokens(client)

    def _check_tokens(self, client: Asked) -> None:
        seen: dict[int, tuple[int, ...]] = {}
        for output in client.outputs:
            for child in output.outputs:
                assert child.token_ids[: len(seen.get(child.index, ()))] == seen.get(child.index, ()), client
                seen[child.index] = child.token_ids
        for child in client.outputs[-1].outputs if client.outputs else ():
            key = 0
            if client.params.temperature > 0:
                key = int(noise_key(client.outputs[-1].seed or 0, child.index))
            spans = [(self.numbers[name], start, end) for name, start, end in child.weight_versions]
            assert_tokens_are_true(client.name, client.prompt, child.token_ids, spans, key)


def made_weights(what: str, tensors: Mapping[str, tuple[int, ...]]) -> Any:
    """Weights for a call, by a word."""
    values = {name: np.full(shape, 0.5, np.float32) for name, shape in tensors.items()}
    first = next(iter(values))
    match what:
        case "full":
            return values
        case "pairs":
            return iter(values.items())
        case "partial":
            return iter(list(values.items())[:3])
        case "misshapen":
            return iter([*list(values.items())[:3], (first, np.zeros((1, 2, 3), np.float32))])
        case "unknown":
            return iter([("no.such.tensor", np.zeros(3, np.float32))])
        case "raises":
            return raising(values)
    raise ValueError(what)


def raising(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from list(values.items())[:2]
    raise OSError("the source is gone")


# ---- a run ------------------------------------------------------------------------------------------------------------------


def explore(folder: Path, seed: int, program: Program | None = None) -> str:
    """Runs one seed; returns how the engine ended.

    Raises:
        Exception: whatever was promised and not kept.
    """
    program = drawn_program(seed) if program is None else program
    loop = drawn_loop(seed)
    ends: list[str] = []

    async def main() -> None:
        engine, device = ledger_engine(loop, ledger_config(folder, **drawn_config(seed)))
        run = Run(loop, engine, device)
        core = engine._core
        core.next_deadline_s = core.operations.next_deadline_s  # type: ignore[method-assign]  # no step is late
        new_version = core.operations.update.new_version

        def noted() -> None:
            new_version()
            run.numbers[core.world.weights.version] = core.version_number

        core.operations.update.new_version = noted  # type: ignore[method-assign]
        run.watch_answers()
        actors = [asyncio.create_task(run.act(actions), name=f"actor {n}") for n, actions in enumerate(program)]
        is_client = [all(what == "generate" for _, what, _ in actions) for actions in program]
        operators = [actor for actor, client in zip(actors, is_client, strict=True) if not client]
        await asyncio.gather(*operators)
        await run.turn_fair()
        await asyncio.gather(*actors)
        await loop.wait_settled()
        status = engine.status()
        if status.engine == "failed":
            assert run.fatal, f"failed by {core.failure!r}"
        else:
            asked = [given["verb"] for actions in program for _, what, given in actions if what == "call"]
            assert status.engine == "running" or (status.engine == "stopped" and "shutdown" in asked), status
        run.check_clients()
        assert_nothing_left(engine)
        assert not core.world.operations, core.world.operations
        assert not core.operations.by_key
        assert core.operations.next_deadline_s() is None
        ends.append(status.engine)
        await engine.shutdown(timeout=0)
        assert_nothing_left(engine)

    loop.run(main())
    return ends[0]


def smaller(folder: Path, seed: int, program: Program) -> Program:
    """The program less all that is not needed for it to fail in the same way."""

    def failure(candidate: Program) -> str | None:
        try:
            explore(folder, seed, candidate)
        except Exception as error:  # noqa: BLE001  whatever it is
            return f"{type(error).__name__}: {str(error)[:40]}"
        return None

    wanted = failure(program)
    assert wanted is not None
    progress = True
    while progress:
        progress = False
        for actor in range(len(program)):
            for place in range(len(program[actor]) - 1, -1, -1):
                actions = (*program[actor][:place], *program[actor][place + 1 :])
                candidate = (*program[:actor], actions, *program[actor + 1 :])
                if failure(candidate) == wanted:
                    program, progress = candidate, True
    return program


def main(first: int, last: int) -> int:
    """Runs seeds and prints each failure once, made smaller. Returns how many differ."""
    logging.disable(logging.CRITICAL)
    folder = ledger_checkpoint(Path(tempfile.mkdtemp()) / "ledger")
    seen: set[str] = set()
    for seed in range(first, last):
        try:
            explore(folder, seed)
        except Exception as error:  # noqa: BLE001  whatever it is
            kind = f"{type(error).__name__}: {str(error)[:60]}"
            if kind not in seen:
                seen.add(kind)
                program = [actions for actions in smaller(folder, seed, drawn_program(seed)) if actions]
                print(f"seed {seed}: {error}", *program, drawn_config(seed), sep="\n  ")
    print(f"seeds {first} to {last - 1}: {len(seen)} kinds of failures")
    return len(seen)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])) > 0)
