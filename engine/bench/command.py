"""What `quiesce bench` does with its arguments."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Final

from quiesce.engine.bench import result
from quiesce.engine.errors import InvalidRequest

SUITE_FILE: Final = Path("build/bench/suite.json")
AT_LEAST_ONE: Final = ("num_prompts", "input_len", "output_len", "concurrency")


def run(asked: argparse.Namespace) -> int:
    """Measures and prints; writes JSON where asked. The exit status: 1 if a request failed.

    Raises:
        InvalidRequest: an argument cannot be; names it.
        EngineError: the model cannot be served.
        OSError: the file cannot be written.
    """
    console = result.console()
    path: Path | None = asked.json
    if asked.suite and asked.profile is not None:
        raise InvalidRequest("profile", "shows the steps of a load; the suite has many engines")
    if asked.suite:
        from quiesce.engine.bench import suite

        rows = [row.strip() for row in asked.rows.split(",") if row.strip()]
        for row in rows:
            if row not in suite.ROWS:
                raise InvalidRequest("rows", f"{row!r} is none of {', '.join(suite.ROWS)}")
        document = suite.run(rows, asked.quick, console)
        path = path or SUITE_FILE
    else:
        document = _serve(asked, console)
    if path is not None:
        result.write(path, document)
        console.print(f"written to {path}", markup=False)
    return 1 if document.get("failed") else 0


def _serve(asked: argparse.Namespace, console: Any) -> dict[str, Any]:
    from quiesce.engine.bench import serving

    for name in AT_LEAST_ONE:
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise InvalidRequest(name, f"must be at least 1, not {value}")
    if math.isnan(asked.request_rate) or asked.request_rate <= 0:
        raise InvalidRequest("request_rate", f"must be above 0, not {asked.request_rate}")
    sizes = {"num_prompts": 8, "input_len": 16, "output_len": 8} if asked.quick else {}
    load = serving.Load(
        asked.model,
        sizes.get("num_prompts", asked.num_prompts),
        sizes.get("input_len", asked.input_len),
        sizes.get("output_len", asked.output_len),
        asked.request_rate,
        asked.concurrency,
        asked.seed,
        asked.num_threads,
        asked.dtype,
    )
    return serving.run(load, console, asked.profile)
