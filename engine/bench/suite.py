"""`quiesce bench --suite`: the rows of figures to reach that apply to this version, floors beside them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from quiesce.engine.bench import boundary, decode, gate, host, http, lifecycle, mixed
from quiesce.engine.bench.peer_process import PeerError, PeerProcess, missing
from quiesce.engine.bench.result import VERSION, Figure, machine_facts, table

ALONE: Final[dict[str, Callable[[bool], Iterable[Figure]]]] = {
    "gate": gate.measure, "host": host.measure, "lifecycle": lifecycle.measure, "boundary": boundary.measure, "http": http.measure,
}  # fmt: skip
AGAINST_A_PEER: Final = {"decode": decode.measure, "mixed": mixed.measure}
ROWS: Final = (*ALONE, *AGAINST_A_PEER)


def measure(rows: Sequence[str], quick: bool) -> Iterator[Figure]:
    """The figures of these rows, in order. Rows with a peer share its process and its checkpoint."""
    for row in ALONE:
        if row in rows:
            yield from ALONE[row](quick)
    wanted = [row for row in AGAINST_A_PEER if row in rows]
    if not wanted:
        return
    if reason := missing():
        yield from (Figure(row, "/ transformers", "x", skipped=reason) for row in wanted)
        return
    with tempfile.TemporaryDirectory() as name, PeerProcess(Path(name)) as peer:
        try:
            peer.ask("make", tiny=quick)
        except PeerError as error:
            yield from (Figure(row, "/ transformers", "x", skipped=str(error)) for row in wanted)
            return
        for row in wanted:
            yield from AGAINST_A_PEER[row](quick, peer, Path(name))


def run(rows: Sequence[str], quick: bool, console: Console) -> dict[str, Any]:
    """Measures, prints the table, returns what is written as JSON. With `quick` the figures are of toy sizes and mean nothing."""
    facts, began = machine_facts(), time.perf_counter()
    figures = list(measure(rows, quick))
    console.print(table(figures))
    console.print(
        f"load average when it began {facts.get('load_average_1min', '?')}, {facts['processor']}, {facts['num_processors']} processors"
    )
    if quick:
        console.print("--quick: toy sizes; this shows that it runs and says nothing of how fast", style="yellow")
    return {
        "quiesce_bench": VERSION,
        "kind": "suite",
        "quick": quick,
        "rows": list(rows),
        "machine": facts,
        "duration_s": time.perf_counter() - began,
        "figures": [figure.as_json() for figure in figures],
    }
