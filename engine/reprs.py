"""How a status shows itself in a notebook. (A machine: `statemachine/notebook.py`.)"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

from quiesce.engine.outputs import Status


def status_html(status: Status) -> str:
    """A small table of a status: everything that is not nothing."""
    blocks = status.blocks
    rows: list[tuple[str, str]] = [
        ("engine", status.engine),
        ("admission", status.admission),
        ("weights", f"version {status.weights[0]}, {status.weights[1]}"),
        ("memory", _pairs(status.memory)),
        ("paused by", _pairs(status.pause_owners)),
        ("operation", status.operation or ""),
        ("requests", _pairs(status.requests)),
        (
            "KV blocks",
            _pairs({name: getattr(blocks, name) for name in ("free", "cached", "held", "fenced")}) + f" of {blocks.total}",
        ),
        ("steps in flight", _unless_none(status.steps_in_flight)),
        ("streams", _unless_none(status.streams)),
        ("sessions", _unless_none(status.sessions)),
        ("accepted", str(status.accepted)),
        ("rejected", _unless_none(status.rejected)),
        ("finished", _pairs({name: count for name, count in status.finished.items() if count})),
        ("epoch", str(status.epoch)),
    ]
    return f"<table>{''.join(_row(name, value) for name, value in rows if value)}</table>"


def _row(name: str, value: str) -> str:
    return f'<tr><th style="text-align:left">{html.escape(name)}</th><td style="text-align:left">{html.escape(value)}</td></tr>'


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(_words(values.items()))


def _words(items: Iterable[tuple[str, object]]) -> Iterable[str]:
    """`3 running` for a count, `weights resident` for a state."""
    return (f"{value} {name}" if isinstance(value, int) else f"{name} {value}" for name, value in items)


def _unless_none(count: int) -> str:
    return str(count) if count else ""
