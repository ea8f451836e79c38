"""`python -m quiesce.engine.bench.gpu`: the blocks, then JSON, then the table last."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quiesce.engine.bench import result
from quiesce.engine.bench.result import Figure

DEFAULT_FILE = Path("build/bench/gpu.json")
DRY = "  (dry run, no figure)"
NAME_WIDTH = 64


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 if a block ended early, 2 if there is nothing to run on."""
    parser = argparse.ArgumentParser(prog="quiesce.engine.bench.gpu", description="What the engine reaches on a CUDA device.")
    parser.add_argument("--dry", action="store_true", help="every block at toy size on the CPU: that it runs, not how fast")
    parser.add_argument("--blocks", help="some of the blocks, separated by commas")
    parser.add_argument("--json", type=Path, default=DEFAULT_FILE, metavar="FILE", help="where the figures are written")
    parser.add_argument("--block", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    console = result.console()
    reason = _nothing_to_run_on(asked.dry)
    if reason:
        print(reason, file=sys.stderr if asked.block is not None else sys.stdout)  # of a block only figures are read
        return 2
    from quiesce.engine.bench.gpu import blocks

    if asked.block is not None:
        return blocks.child_main(**json.loads(asked.block))
    names = [block.name for block in blocks.BLOCKS] if asked.blocks is None else asked.blocks.split(",")
    unknown = [name for name in names if name not in blocks.BY_NAME]
    if unknown:
        parser.error(f"no block {', '.join(unknown)}; there are {', '.join(blocks.BY_NAME)}")

    def tell(figure: Figure) -> None:
        shown = figure.skipped or (f"{figure.median:.4g} {figure.unit}" if figure.median is not None else "")
        console.print(f"{figure.row}: {figure.name}: {shown}{DRY if asked.dry else ''}", markup=False, highlight=False)

    ran = blocks.run_all(names, asked.dry, tell)
    figures = [figure for one in ran for figure in one.figures]
    document: dict[str, Any] = {
        "quiesce_bench": result.VERSION,
        "kind": "gpu",
        "dry": asked.dry,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": result.machine_facts() | _gpu_facts(asked.dry),
        "versions": blocks.versions(),
        "blocks": [{"name": one.block, "seconds": one.seconds, "failure": one.failure} for one in ran],
        "figures": [figure.as_json() | ({"verdict": DRY.strip()} if asked.dry else {}) for figure in figures],
    }
    result.write(asked.json, document)
    for one in ran:
        if one.failure:
            console.print(f"--- {one.block} ended early ---\n{one.failure}", markup=False, highlight=False)
    console.print(f"written to {asked.json}", markup=False)
    console.print("\n".join(table(figures, asked.dry)), markup=False, highlight=False, soft_wrap=True)
    return 1 if any(one.failure for one in ran) else 0


def table(figures: Sequence[Figure], dry: bool) -> list[str]:
    """One short line for each figure: some hundred of them must fit what is kept of an output's end."""
    lines, row = [], ""
    for figure in figures:
        if figure.row != row:
            lines.append(f"[{figure.row}]")
        row, sign = figure.row, "<=" if figure.at_most else ">="
        value = "-" if figure.median is None else f"{figure.median:.4g}"
        bounds = " ".join(f"{sign}{bound:g}" for bound in (figure.floor, figure.aim) if bound is not None)
        name = f"{figure.name}: {figure.skipped}" if figure.skipped else figure.name
        end = DRY if dry else f" {bounds} {figure.verdict}".rstrip()
        lines.append(f"{name:<{NAME_WIDTH}} {value:>9} {figure.unit}{end}")
    return lines


def _nothing_to_run_on(dry: bool) -> str:
    try:
        import torch
    except ImportError:
        return f"make gpu needs torch, which {sys.executable} lacks; name another with PYTHON=, or try make gpu DRY=1"
    if dry or torch.cuda.is_available():
        return ""
    return f"torch {torch.__version__} of {sys.executable} sees no CUDA device; make gpu DRY=1 runs every block at toy size on the CPU"


def _gpu_facts(dry: bool) -> dict[str, Any]:
    if dry:
        return {"gpu": None}
    import torch

    facts = torch.cuda.get_device_properties(0)
    return {"gpu": facts.name, "gpu_memory_bytes": facts.total_memory, "cuda": torch.version.cuda}


if __name__ == "__main__":
    sys.exit(main())
