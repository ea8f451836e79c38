"""Leads-to, judged by SPIN: nested depth-first search for a cycle that never answers, without fairness and with weak fairness.

SPIN's weak fairness (`pan -f`, Choueka's flags) belongs to processes: one that can always move must move at some time. So every weakly
fair event of an instance is a process of its own; everything else, also what is strongly fair, is the environment, which may idle at
every step and so is never obliged to anything. What is compared is therefore `search.unfair_lasso` under no or weak fairness only:
strong fairness has no counterpart in SPIN.

The one-pass rule holds here, too. The environment looks for boundary work once, then picks a patient action or idles; a patient event
that is weakly fair (a timer) looks by itself. No process has a place of its own to be in, so a state is still a state of the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quiesce.proofs.expr import Expr, disj
from quiesce.proofs.model import Model, is_patient
from quiesce.proofs.promela import Printer, compile_search, run
from quiesce.spec.language import Fairness


@dataclass(frozen=True, slots=True)
class LeadsTo:
    """What SPIN found about one promise."""

    name: str
    holds_without_fairness: bool
    holds_under_weak_fairness: bool


def program(model: Model, promises: Iterable[tuple[str, Expr, Expr]]) -> tuple[str, int]:
    """The Promela source, one claim `promise_0`, `promise_1` ... to a promise (name, trigger, goal); and how many processes it has."""
    printer = Printer(model)
    fair: dict[str, list[str]] = {}
    free: list[str] = []
    patient: list[str] = []
    for action in model.actions:
        guard, waits = printer.tree(action.guard), is_patient(action)
        is_weak = action.event.fairness is Fairness.weak
        looks = "!BOUNDARY_WORK && " if is_weak and waits else ""
        option = f":: d_step {{ {looks}{guard} -> {printer.assigns(action)} }}"
        options = fair.setdefault(action.fair_name, []) if is_weak else patient if waits else free
        options.append(option)
    urgent = disj([action.guard for action in model.actions if action.event.boundary])
    lines = [printer.declarations(), "hidden byte idle;", f"#define BOUNDARY_WORK {printer.tree(urgent)}"]
    lines += ["active proctype environment() { do", ":: idle = 0", *free]
    lines += [":: atomic { !BOUNDARY_WORK -> if", ":: idle = 0", *patient, "fi }", "od }"]
    for number, (name, options) in enumerate(fair.items()):
        lines += [f"/* {name} */", f"active proctype fair_{number}() {{ do", *options, "od }"]
    for number, (name, trigger, goal) in enumerate(promises):
        lines += [
            f"/* {name} */",
            f"#define TRIGGER_{number} {printer.tree(trigger)}",
            f"#define GOAL_{number} {printer.tree(goal)}",
        ]
        lines.append(f"ltl promise_{number} {{ [] (TRIGGER_{number} -> <> GOAL_{number}) }}")
    return "\n".join([*lines, ""]), len(fair) + 1


def judge(
    model: Model,
    promises: Iterable[tuple[str, Expr, Expr]],
    megabytes: int = 2048,
    seconds: float = 600.0,
    depth: int = 1_000_000,
    optimise: bool = True,
) -> list[LeadsTo]:
    """Every promise twice: nobody is obliged to anything, and weakly fair events are.

    Raises:
        ToolMissing, MemoryError, TimeoutError: as `promela.search`.
    """
    promises = list(promises)
    source, num_processes = program(model, promises)
    flags = [
        f"-DNFAIR={(num_processes + 6) // 4}",
        "-DVECTORSZ=4096",
        f"-DMEMLIM={megabytes}",
    ]  # pan takes 4 * NFAIR - 2 processes
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_search(folder, source, flags, seconds, optimise)
        for number, (promise, _, _) in enumerate(promises):
            search = ["./pan", "-a", "-N", f"promise_{number}", f"-m{depth}", "-w20"]
            verdicts = [_holds(run(search, folder, seconds)), _holds(run([*search, "-f"], folder, seconds))]
            found.append(LeadsTo(promise, *verdicts))
    return found


def _holds(text: str) -> bool:
    broken, complete = "acceptance cycle (at depth" in text, "errors: 0" in text
    if broken == complete:
        raise RuntimeError(f"SPIN gave no verdict: {text[:2000]}")
    return complete
