"""What runs of the real engine have touched: cells (machine, state, event), pairs of transitions, and abstract states."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from quiesce.engine.api import AsyncEngine
from quiesce.spec import MACHINES
from quiesce.spec.language import ELSEWHERE, Error
from quiesce.statemachine.gate import Gate, Outcome, Transition
from quiesce.statemachine.records import Record, World

VERSION = 2
Cell = tuple[str, str, str]
"""Machine, state, event."""


@cache
def declared_cells() -> dict[Cell, str]:
    """Every cell that somebody outside the engine's own promises can reach -> `moves`, `ignored` or `refused`.

    Cells whose only decision is "a defect of our own" cannot be reached in an engine that keeps its promises; they are not in here.
    """
    found: dict[Cell, str] = {}
    for machine in MACHINES:
        for event in machine.events:
            decided: dict[str, str] = {}
            for row in machine.rows:
                if row.event == event.name:
                    decided |= dict.fromkeys(map(str, row.source), "moves")
            for kind, entries in (("ignored", machine.ignored), ("refused", machine.refused)):
                for entry in entries:
                    if entry.event != event.name or (kind == "refused" and getattr(entry, "error", None) is Error.defect):
                        continue
                    states = [str(state) for state in machine.states] if entry.states == ELSEWHERE else map(str, entry.states)
                    for state in states:
                        if entry.states != ELSEWHERE or state not in decided:
                            decided.setdefault(state, kind)
            found |= {(machine.name, state, str(event.name)): kind for state, kind in decided.items()}
    return found


def abstract_state(world: World) -> tuple[Any, ...]:
    """The state of the core's machines, requests without their names."""
    engine, weights = world.engine, world.weights
    requests = Counter(
        (request.state, request.begun, request.abort_mark, request.eos_mark, request.stale,
         request.key in world.older.members, request.key in world.newer.members)
        for request in world.requests.values()
    )  # fmt: skip
    return (
        engine.state, engine.goal, engine.granted, weights.state, weights.base_intact,
        tuple((memory.state, memory.policy) for memory in world.memory.values()),
        tuple(sorted((name, token.state) for name, token in world.pause_token.items() if token.state != "free")),
        world.older.state, world.newer.state, frozenset(requests.items()),
    )  # fmt: skip


class Coverage:
    """Counts, over many runs."""

    def __init__(self) -> None:
        self.cells: Counter[Cell] = Counter()
        """What the engine's own callers did."""
        self.strays: Counter[Cell] = Counter()
        """What came astray (`strays.py`)."""
        self.astray = False
        """What comes now comes astray."""
        self.edges: Counter[tuple[str, int, str]] = Counter()
        """Machine, row, state that the row was taken from."""
        self.pairs: Counter[tuple[str, str, str]] = Counter()
        self.states: set[int] = set()
        self.num_actions = self.num_transitions = 0

    def took(self, log: Iterable[Transition], last: dict[int, str]) -> None:
        """A pass's transitions; `last` remembers each record's event before."""
        for record, event, source, _, row, *_ in log:
            machine = record.machine
            self.num_transitions += 1
            self.cells[machine, source, event] += 1
            self.edges[machine, row, source] += 1
            before = last.get(id(record))
            if before is not None:
                self.pairs[machine, before, event] += 1
            last[id(record)] = event

    def watch(self, engine: AsyncEngine) -> None:
        """Counts what this engine does from now on."""
        last: dict[int, str] = {}
        kept: list[object] = []  # ids are not used again while a run lasts
        for owner in (engine._core, engine._front):
            check = owner.monitor.check

            def checked(log: Any, check: Any = check, world: World = owner.world) -> None:
                kept.extend(record for record, *_ in log)
                self.took(log, last)
                if log and world is engine._core.world:
                    self.states.add(hash(abstract_state(world)))
                check(log)

            owner.monitor.check = checked  # type: ignore[method-assign]
            self._watch_gate(owner.gate)

    def _watch_gate(self, gate: Gate) -> None:
        """Counts what does not move, as the leader of a move or together with another."""
        fall_back, cells, strays = gate._fall_back, self.cells, self.strays

        def fell_back(record: Record, event: str, cell: Any, data: Any) -> Outcome:
            (strays if self.astray else cells)[record.machine, record.state, event] += 1
            return fall_back(record, event, cell, data)

        gate._fall_back = fell_back  # type: ignore[method-assign]

    @property
    def num_cells(self) -> int:
        """Declared cells that were touched, by whomever."""
        return sum(bool(self.cells[cell] or self.strays[cell]) for cell in declared_cells())

    @property
    def num_own_cells(self) -> int:
        """Those that the engine's own callers touched."""
        return sum(bool(self.cells[cell]) for cell in declared_cells())

    def to_json(self) -> dict[str, Any]:
        declared = declared_cells()
        return {
            "quiesce_coverage": VERSION,
            "actions": self.num_actions, "transitions": self.num_transitions, "states": len(self.states),
            "cells": [[*cell, kind, self.cells[cell], self.strays[cell]] for cell, kind in declared.items()],
            "edges": [
                [machine.name, number, str(source), self.edges[machine.name, number, str(source)]]
                for machine in MACHINES for number, row in enumerate(machine.rows) for source in row.source
            ],
            "pairs": [[*pair, count] for pair, count in sorted(self.pairs.items())],
        }  # fmt: skip

    def save(self, path: Path) -> Path:
        """Writes the counts as JSON, one entry a line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            f" {json.dumps(name)}: " + (json.dumps(value) if not isinstance(value, list) else _rows(value))
            for name, value in self.to_json().items()
        )
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return path

    def missing(self) -> Iterator[Cell]:
        """Declared cells that nothing has touched."""
        return (cell for cell in declared_cells() if not self.cells[cell] and not self.strays[cell])


def _rows(values: list[Any]) -> str:
    return "[\n" + ",\n".join(f"  {json.dumps(value)}" for value in values) + "\n ]"


def read(path: Path) -> Mapping[str, Any]:
    """What `Coverage.save` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if found.get("quiesce_coverage") != VERSION:
        raise ValueError(f"{path}: not a quiesce coverage of version {VERSION}")
    return found


def hits(path: Path) -> dict[str, dict[tuple[int, str], int]]:
    """Of each machine how often each row was taken from each of its states.

    Raises:
        ValueError: the file is no coverage.
    """
    found: dict[str, dict[tuple[int, str], int]] = {machine.name: {} for machine in MACHINES}
    for machine, row, source, count in read(path)["edges"]:
        found.setdefault(machine, {})[row, source] = count
    return found
