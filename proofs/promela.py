"""An independent judge: the same trees printed as Promela, searched by SPIN (Holzmann, "The SPIN Model Checker", 2003).

Nothing is shared with our explorers but the trees: another printer, another language, somebody else's search. What it counts, and how
that answers to what `proofs/explorer.py` counts:

* One process with one loop. Every action is one `d_step`, hence one transition; every variable is a byte of the state vector, so a
  stored state is one of our states. Under the one-pass rule one more byte, `busy`, says whether boundary work can be done: it follows
  from the others, so it tells no two states apart. It is written in one place, after the action and in the same atomic step, because
  a guard of that size, printed at every action, takes half a minute to compile. SPIN lists the first half of such a step as an
  "atomic step" and stores nothing for it.
* `transitions = stored + matched`: every transition ends in a state that is new or known; the first state is stored without one. So
  SPIN reports one edge more than there are.
* A property is an option of the loop that can be taken only where the property is broken, fails an assertion and changes nothing (a
  promise about moves is broken where one of them can be made and what should hold before does not); a state without any way on takes
  the option `else`. Each is one transition and one error: `edges = transitions - 1 - errors`.

The engine world of two requests, one pass: 12 851 716 states and 65 517 118 edges in a minute of one core and 1.8 GB, as we count.

Traps: SPIN drops variables that are written and never read, removes what it thinks dead and merges statements (`-o1 -o2 -o3` forbid
it), and reduces the order of independent steps (`-DNOREDUCE` forbids that). A search that ran out of depth or memory is no answer.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quiesce.proofs.explorer import MoveProperty, ToolMissing
from quiesce.proofs.expr import FALSE, TRUE, All, Any, Const, Expr, Free, In, Neg, disj, neg
from quiesce.proofs.model import Action, Model, is_patient

NO_WAY_ON = "no_way_on"
"""Among what is violated: some state has no way on, and breaks nothing."""


@dataclass(frozen=True, slots=True)
class Search:
    """What SPIN found, in our way of counting."""

    num_states: int
    num_edges: int
    num_errors: int
    """Pairs of a state and a property that it breaks, and states without any way on that break none."""
    violated: frozenset[str]
    megabytes: float
    seconds: float
    """Of the search alone."""


class Printer:
    """Prints one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = [re.sub(r"\W+", "_", variable.name).strip("_") for variable in model.variables]
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"two variables of {model.name} have one name in Promela")

    def tree(self, tree: Expr) -> str:
        match tree:
            case Const(value):
                return "true" if value else "false"
            case In(variable, values):
                return self._is_in(variable, values)
            case Free(states, holding, capacity):
                return "(" + " + ".join(self._is_in(state, holding) for state in states) + f" < {capacity})"
            case Neg(part):
                return f"!{self.tree(part)}" if isinstance(part, (All, Any)) else f"!({self.tree(part)})"
            case All(parts):
                return "(" + " && ".join(map(self.tree, parts)) + ")"
            case Any(parts):
                return "(" + " || ".join(map(self.tree, parts)) + ")"

    def _is_in(self, variable: int, values: frozenset[int]) -> str:
        others = frozenset(range(len(self.model.variables[variable].values))) - values
        name = self.names[variable]
        if len(others) < len(values):
            return "(" + (" && ".join(f"{name} != {value}" for value in sorted(others)) or "true") + ")"
        return "(" + (" || ".join(f"{name} == {value}" for value in sorted(values)) or "false") + ")"

    def assigns(self, action: Action) -> str:
        """Everything is computed before anything is written."""
        after: dict[int, str] = {}
        for one in action.assigns:
            if one.when == FALSE:
                continue
            value = str(one.value) if one.source is None else self.names[one.source]
            if one.when != TRUE:
                value = f"({self.tree(one.when)} -> {value} : {after.get(one.variable, self.names[one.variable])})"
            after[one.variable] = value
        computed = {variable: value for variable, value in after.items() if not value.isdigit()}
        lines = [f"next_{self.names[variable]} = {value}" for variable, value in computed.items()]
        lines += [
            f"{self.names[variable]} = {f'next_{self.names[variable]}' if variable in computed else value}"
            for variable, value in after.items()
        ]
        return "; ".join(lines) or "skip"

    def declarations(self) -> str:
        lines = []
        for name, variable, first in zip(self.names, self.model.variables, self.model.initial, strict=True):
            legend = ", ".join(f"{number} {value}" for number, value in enumerate(variable.values))
            lines.append(f"byte {name} = {first}; hidden byte next_{name}; /* {legend} */")
        return "\n".join(lines)


def program(model: Model, always: Mapping[str, Expr], moves: Sequence[MoveProperty], one_pass: bool) -> str:
    """The Promela source."""
    printer = Printer(model)
    guards = [printer.tree(action.guard) for action in model.actions]
    if one_pass:
        patient = map(is_patient, model.actions)
        guards = [f"(!busy && {guard})" if waits else guard for guard, waits in zip(guards, patient, strict=True)]
    options = [
        f"/* {action.name} */\n:: d_step {{ {guard} -> {printer.assigns(action)} }}"
        for action, guard in zip(model.actions, guards, strict=True)
    ]
    broken = {name: printer.tree(neg(holds)) for name, holds in always.items()}
    for move in moves:
        made: dict[Expr, list[str]] = {}
        for number, tree in sorted(move.before.items()):
            made.setdefault(tree, []).append(guards[number])
        wrong = [f"({printer.tree(neg(tree))} && ({' || '.join(of)}))" for tree, of in made.items()]
        broken[move.name] = f"({' || '.join(wrong) or 'false'})"
    judges = [
        f"/* {name} */\n:: d_step {{ {where} -> assert({number} < 0) }}" for number, (name, where) in enumerate(broken.items())
    ]
    judges.append(f"/* {NO_WAY_ON} */\n:: atomic {{ else -> assert({len(judges)} < 0) }}")
    lines = [f"/* {model.name}, {'one pass' if one_pass else 'interleaved'} */", printer.declarations()]
    if one_pass:
        urgent = disj([action.guard for action in model.actions if action.event.boundary])
        lines += [f"#define BOUNDARY_WORK {printer.tree(urgent)}", "bool busy = BOUNDARY_WORK;"]
        options = [":: atomic { if", *options, "fi; busy = BOUNDARY_WORK }"]
    return "\n".join([*lines, "active proctype world() {", "do", *options, *judges, "od }", ""])


def search(
    model: Model,
    always: Mapping[str, Expr],
    moves: Sequence[MoveProperty] = (),
    one_pass: bool = False,
    megabytes: int = 2048,
    seconds: float = 600.0,
    depth: int = 1_000_000,
    optimise: bool = True,
) -> Search:
    """Lets SPIN search the whole world: prints, compiles and runs in a folder of its own.

    Without `optimise` the search is compiled twice as fast and runs half as fast: for worlds of less than a million edges.

    Raises:
        ToolMissing: spin or gcc is not installed.
        MemoryError: the search needs more than `megabytes`, or goes deeper than `depth` steps.
        TimeoutError: one of the three steps takes more than `seconds`.
    """
    with tempfile.TemporaryDirectory() as name:
        source = program(model, always, moves, one_pass)
        compile_search(Path(name), source, ["-DSAFETY", f"-DMEMLIM={megabytes}"], seconds, optimise)
        began = time.perf_counter()
        text = run(["./pan", "-c0", f"-m{depth}", "-w20"], Path(name), seconds)
        return _read(text, [*always, *(move.name for move in moves), NO_WAY_ON], time.perf_counter() - began)


def compile_search(folder: Path, source: str, flags: Sequence[str], seconds: float, optimise: bool) -> None:
    """Makes the program `pan` in a folder: Promela to C, C to a program."""
    spin, compiler = tool("spin", "spin"), tool("gcc", "gcc")
    (folder / "world.pml").write_text(source, encoding="utf-8")
    run([spin, "-o1", "-o2", "-o3", "-a", "world.pml"], folder, seconds)
    run([compiler, "-O1" if optimise else "-O0", "-w", "-DNOREDUCE", *flags, "-o", "pan", "pan.c"], folder, seconds)


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ToolMissing(f"{name} is not installed: install the Debian package {package}")
    return path


def run(command: Sequence[str], folder: Path, seconds: float) -> str:
    """What a program printed. A search that was cut short is an error."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{Path(command[0]).name} took more than {seconds:g} s") from error
    text = done.stdout + done.stderr
    if "MEMLIM" in text or "out of memory" in text or "max search depth too small" in text:
        raise MemoryError(f"the search is not complete: {text[:400]}")
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {text[:2000]}")
    return text


def _read(text: str, names: Sequence[str], seconds: float) -> Search:
    def number(pattern: str) -> float:
        found = re.search(pattern, text)
        if found is None:
            raise RuntimeError(f"{pattern!r} is not in what SPIN printed: {text[:2000]}")
        return float(found[1])

    states, transitions = int(number(r"(\d+) states, stored")), int(number(r"(\d+) transitions \(= stored\+matched\)"))
    errors = int(number(r"errors: (\d+)"))
    violated = {names[int(place)] for place in re.findall(r"assertion violated \((\d+)<0\)", text)}
    return Search(
        states, transitions - 1 - errors, errors, frozenset(violated), number(r"([\d.]+)\s+total actual memory usage"), seconds
    )
