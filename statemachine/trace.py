"""The transition trace: one JSON object a line, and the same as a Chrome trace that Perfetto opens.

The documented form, version 2. The first line is a header, every further line one transition or one device step:

    {"quiesce_trace": 2, "spec": "<hash of the tables>"}
    {"t": 0.0123, "pass": 7, "machine": "request", "id": "r1", "key": 1, "event": "admit", "from": "received", "to": "admitted", "row": 1}
    {"t": 0.0123, "pass": 7, "machine": "engine", "id": "engine", "key": 0, "event": "pause", "from": "running", "to": "draining", "row": 3,
     "data": {"owner": "user", "mode": "keep"}}                                                                    (one line in the file)
    {"t": 0.0201, "pass": 9, "step": 3, "began": 0.0150, "ended": 0.0199, "rows": 4, "tokens": 19}

`t`, `began` and `ended` are seconds since the engine's start; `row` counts the rows of the machine's table from 0; `key` tells
requests apart that had one id, one after the other. `data` is what the event carried, requests by their keys; it is left out where
the event carries nothing, and where a step names the same requests as the step planned before it. What moves jointly are several
lines, the leader first. With this a trace can be followed in the model, move by move (`proofs/trace_path.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from quiesce.spec import FACTS, MACHINES, PASS_ORDER
from quiesce.spec.vocabulary import StepEvent
from quiesce.statemachine.gate import Transition

VERSION = 2
logger = logging.getLogger("quiesce.trace")


def spec_hash() -> str:
    """sha256 over the tables and the facts their guards name, so that a trace says which declaration it belongs to."""
    text = "\n".join(repr(part) for part in (*MACHINES, *FACTS, *PASS_ORDER))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Trace:
    """Keeps the last `capacity` entries, and writes every one to `path` where one is given."""

    def __init__(self, path: Path | None = None, capacity: int = 10_000) -> None:
        self.path = path
        self.entries: deque[dict[str, Any]] = deque(maxlen=capacity)
        self._file: IO[str] | None = None
        self._planned: object = None
        """The requests of the step planned last, to tell whether the next one names the same."""
        self._watchers: list[Callable[[dict[str, Any]], None]] = []
        self._lock = threading.Lock()  # the core and the front end write, each from its own thread
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
            self._file.write(json.dumps(header()) + "\n")

    def transitions(self, now_s: float, number: int | None, log: Iterable[Transition]) -> None:
        """Adds the transitions of one pass of the core, or, with `number` None, of the front end."""
        for record, event, source, target, row, data in log:
            entry: dict[str, Any] = {"t": round(now_s, 6), "pass": number, "machine": record.machine, "id": record.name, "key": record.key, "event": str(event),
                     "from": str(source), "to": str(target), "row": row}  # fmt: skip
            if data and not (event == StepEvent.plan and data["requests"] is self._planned):
                entry["data"] = {name: _word(value) for name, value in data.items()}
            if event == StepEvent.plan:
                self._planned = data["requests"]
            self.add(entry)

    def step(
        self, now_s: float, number: int, step: int, began_s: float, ended_s: float, num_rows: int, num_tokens: int
    ) -> None:
        """Adds a device step that landed."""
        self.add({"t": round(now_s, 6), "pass": number, "step": step, "began": round(began_s, 6), "ended": round(ended_s, 6),
                   "rows": num_rows, "tokens": num_tokens})  # fmt: skip

    def add(self, entry: dict[str, Any]) -> None:
        """Adds an entry as it is: one of ours, or of a core elsewhere."""
        with self._lock:
            self.entries.append(entry)
            for look in self._watchers:
                look(entry)
            if self._file is not None:
                try:
                    self._file.write(json.dumps(entry) + "\n")
                except OSError as error:  # a full disk must not fail the engine; what is missing is said
                    logger.error("the trace ends here: %s", error)
                    self._file = None

    def watch(self, look: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Calls `look` with every further entry, in the thread that adds it, until the function that is returned is called."""
        with self._lock:
            self._watchers.append(look)

        def stop() -> None:
            with self._lock:
                if look in self._watchers:
                    self._watchers.remove(look)

        return stop

    def close(self) -> None:
        """Flushes and closes the file. Idempotent."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def _word(value: Any) -> Any:
    return str(value) if isinstance(value, str) else [request.key for request in value]


def header() -> dict[str, Any]:
    return {"quiesce_trace": VERSION, "spec": spec_hash()}


def spec_of(path: Path) -> str:
    """The hash of the declaration under which a trace was written.

    Raises:
        ValueError: not a trace of this version.
    """
    with path.open(encoding="utf-8") as lines:
        first = json.loads(next(lines, "{}"))
    if first.get("quiesce_trace") != VERSION:
        raise ValueError(f"{path}: not a quiesce trace of version {VERSION}")
    return str(first.get("spec"))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a trace file, header excluded.

    Raises:
        ValueError: not a trace of this version.
    """
    spec_of(path)
    with path.open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            yield json.loads(line)


def chrome_trace(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The trace in Chrome's Trace Event Format: device steps as slices, a request's states as nested async slices, the rest as instants."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}
        for tid, name in ((1, "core"), (2, "device"))
    ]
    open_states: dict[str, str] = {}
    for entry in entries:
        microseconds = entry["t"] * 1e6
        if "step" in entry:
            events.append({"ph": "X", "pid": 1, "tid": 2, "name": f"step {entry['step']}", "ts": entry["began"] * 1e6,
                           "dur": (entry["ended"] - entry["began"]) * 1e6, "args": {"rows": entry["rows"], "tokens": entry["tokens"]}})  # fmt: skip
            continue
        if entry["machine"] == "request" and entry["from"] != entry["to"]:
            who = f"{entry['id']} #{entry['key']}"
            common = {"pid": 1, "tid": 1, "cat": "request", "id": who, "ts": microseconds}
            if who in open_states:
                events.append({"ph": "e", "name": open_states.pop(who), **common})
            if entry["to"] != "ended":
                events.append({"ph": "b", "name": entry["to"], **common})
                open_states[who] = entry["to"]
        events.append({"ph": "i", "s": "t", "pid": 1, "tid": 1, "ts": microseconds, "name": f"{entry['machine']} {entry['id']}: {entry['event']}",
                       "args": {"from": entry["from"], "to": entry["to"], "pass": entry["pass"]}})  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms"}
