"""Who notices that a run went wrong. Each oracle has a name, and says in one sentence what it saw; none of them stops the engine.

Outside, as a client or an operator could: `history`, `tokens`, `answer`, `refusal`, `balance`, `hang`, `zombie`, `left`.
Inside: `failed` (the engine gave itself up: monitor, gate, device or pool), `log`, and `model`: it is where the model cannot be (`on_path.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.core import Core
from quiesce.engine.operations import Operation
from quiesce.spec import CATALOG
from quiesce.spec.language import ELSEWHERE
from quiesce.stateful.fuzz.coverage import abstract_state
from quiesce.stateful.fuzz.on_path import OnPath
from quiesce.statemachine.compile import Predicate, compile_guard
from quiesce.statemachine.gate import Gate, RefusedTransition, Transition
from quiesce.statemachine.machine import NO_DATA
from quiesce.statemachine.records import Record

OUTSIDE = ("history", "tokens", "answer", "refusal", "balance", "hang", "zombie", "left")
Places = Mapping[str, str]
"""Where the device says that each tag's memory is: `here`, `moving` or `away`."""


class Problem(NamedTuple):
    oracle: str
    text: str


@cache
def _guard(machine: str, text: str) -> Predicate | None:
    return compile_guard(machine, text)


def _holds(record: Record, text: str, data: Any) -> bool:
    guard = _guard(record.machine, text)
    return guard is None or bool(guard(record, data))


def declared_error(record: Record, event: str, data: Any) -> str | None:
    """What the tables say a caller meets, read from the declaration and not from the sealed rows; None if it is no refusal."""
    machine = CATALOG.machines[record.machine]
    state = str(record.state)
    for row in machine.rows:
        if row.event == event and state in row.source and _holds(record, row.when, data):
            return None
    for entry in machine.refused:
        if entry.event == event and (state in entry.states or entry.states == ELSEWHERE) and _holds(record, entry.when, data):
            return str(entry.error)
    return None


class Oracles:
    """Watches one engine from its inside doors; what it finds goes to `problems`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.problems: list[Problem] = []
        self.is_wanted: Callable[[str], bool] = lambda request_id: True
        """Whether somebody asked for the end of the request with this id."""
        self._refusals: list[tuple[RefusedTransition, bool]] = []

    def found(self, oracle: str, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(Problem(oracle, text))

    def expect(self, oracle: str, held: bool, text: str) -> None:
        if not held:
            self.found(oracle, text)

    def facts(self) -> tuple[Any, ...]:
        """Everything that a refused call must leave as it was."""
        core = self.engine._core
        tokens = {name: str(token.state) for name, token in core.world.pause_token.items()}
        return (
            abstract_state(core.world), tokens, core.world.weights.version, core.num_accepted, dict(core.finished),
            core.pool.counts(), core.operations.ttl_s.copy(),
        )  # fmt: skip

    # ---- the gates ------------------------------------------------------------------------------------------------------------

    def watch_gates(self) -> None:
        """Holds each refusal against the declaration: nothing has changed, and the error is the declared one."""
        for gate in (self.engine._core.gate, self.engine._front.gate):
            self._watch(gate)

    def watch_core(self, core: Core, places: Callable[[], Places], launched: Callable[[], int]) -> None:
        """Watches a core that came later, as `watch_gates` and `watch_operations` have the first."""
        self._watch(core.gate)
        self.watch_operations(places, launched)

    def _watch(self, gate: Gate) -> None:
        fire = gate.fire

        def fired(record: Record, event: str, data: Any = NO_DATA) -> Any:
            state = record.state
            try:
                outcome = fire(record, event, data)
            except RefusedTransition as refusal:
                self._judge(record, event, data, refusal, str(state))
                raise
            if outcome.moved and event == "abort":
                request_id = record.name.partition("/")[0]
                if not self.is_wanted(request_id):
                    self.found("history", f"{record.machine} {request_id} is aborted, which nobody wanted")
            return outcome

        gate.fire = fired  # type: ignore[method-assign]

    def _judge(self, record: Record, event: str, data: Any, refusal: RefusedTransition, state: str) -> None:
        self.expect("refusal", str(record.state) == state, f"{record.machine} moved although {event} was refused")
        declared = True
        if (refusal.machine, refusal.event) == (record.machine, event):  # else a joint event was refused
            found = declared_error(record, event, data)
            declared = found == str(refusal.error)
            self.expect("refusal", declared, f"{event} in {state} was refused {refusal.error}; declared is {found}")
        self._refusals.append((refusal, declared))

    # ---- the model --------------------------------------------------------------------------------------------------------------

    def watch_passes(self) -> OnPath:
        """Holds each pass of the core against the model, once it is over."""
        core = self.engine._core
        path, transitions = OnPath(core.world), core.trace.transitions

        def followed(now_s: float, number: int | None, log: Sequence[Transition]) -> None:
            transitions(now_s, number, log)
            if number is not None and (wrong := path.take(log)):
                self.found("model", f"pass {number}: {wrong}")

        core.trace.transitions = followed  # type: ignore[assignment, method-assign]
        return path

    # ---- the operations ---------------------------------------------------------------------------------------------------------

    def watch_operations(self, places: Callable[[], Places], launched: Callable[[], int]) -> None:
        """Holds each answer against the device and the pool at the moment it is given, and each refusal against what it changed.

        Args:
            places: where the tags' memory is.
            launched: how many steps are on the device.
        """
        operations = self.engine._core.operations
        answer, attempt = operations.answer, operations._try

        def answered(key: int, detail: str) -> None:
            if detail == "done":
                self._check_done(operations.by_key[key], places(), launched())
            answer(key, detail)

        def tried(operation: Operation) -> bool:
            before = self.facts()
            self._refusals.clear()
            over = attempt(operation)
            if operation.error is not None and over:
                self._check_refused(operation, before)
            return over

        operations.answer = answered  # type: ignore[method-assign]
        operations._try = tried  # type: ignore[method-assign]

    def _check_refused(self, operation: Operation, before: tuple[Any, ...]) -> None:
        error = operation.error
        self.expect("refusal", self.facts() == before, f"{operation.kind} was refused ({error}) and has changed something")
        self.expect("refusal", isinstance(error, errors.EngineError), f"{operation.kind} was refused with {error!r}")
        if self._refusals:
            refusal = self._refusals[-1][0]
            same = type(error).__name__ == str(refusal.error)
            self.expect("refusal", same, f"{operation.kind}: the caller was told {error!r}, declared is {refusal.error}")

    def _check_done(self, operation: Operation, places: Places, launched: int) -> None:
        core = self.engine._core
        world, kind = core.world, str(operation.kind)
        if world.engine.state in ("stopped", "failed"):
            return
        asked = operation.asked
        named = [tag for tag, policy in (("weights", asked.weights), ("kv_cache", asked.kv_cache)) if policy != "none"]
        if kind == "wake_up":
            named = ["weights", "kv_cache"] if asked.tags == "both" else [asked.tags]
        held: dict[str, bool] = {}
        if kind in ("pause", "begin_weight_update"):
            held = {"the device is idle": launched == 0, "every terminal is handed over": not world.by_state["draining"]}
        elif kind == "sleep":
            # whom an abort ends while the other tag's copy is on its way is answered, and drains until that has ended
            held = {"the device is idle": launched == 0} | {f"{tag} is away": places[tag] == "away" for tag in named}
        elif kind == "wake_up":
            held = {f"{tag} is here": places[tag] == "here" for tag in named}
        elif kind in ("update_weights", "finish_weight_update"):
            held = {"the weights are whole": world.weights.state == "stable"}
        if operation.changed and (kind == "reset_prefix_cache" or operation.asked.clear_cache):
            held |= {"nothing is cached": core.pool.counts().cached == 0}
        for what, holds in held.items():
            self.expect("answer", holds, f"{kind} was answered done, but not: {what}")


class Listener(logging.Handler):
    """Keeps what the engine logs at ERROR or above: an exception that only a log knows of was swallowed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
