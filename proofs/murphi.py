"""A third judge: the same trees printed as Murphi (Dill, "The Murphi verification system", 1996), searched by Rumur.

Nothing is shared with the other judges but the trees. What Rumur counts, and how that answers to what `proofs/explorer.py` counts:

* Every action is one rule. A state is the values of all variables, in as few bits as they take; none is dropped, merged or reordered.
  Under the one-pass rule one more bit, `busy`, says whether boundary work can be done, as in `proofs/promela.py`: it follows from the
  others, so it tells no two states apart.
* `rules_fired` counts every rule in every state that allows it, also one that changes nothing, and also two rules that lead to the
  same state. That is what we call edges; nothing is added or taken away.
* An invariant of Murphi stops the search at the first state that breaks it. So a property is printed as `cover` of its negation:
  Rumur counts the states in which that is so, each once, and goes on. "Covered" is our "broken" (a promise about moves: one of them
  can be made and what should hold before does not), and a state without any way on is one more cover. The sum is what SPIN counts as
  errors. Rumur's own deadlock detection is off: it stops, too.

The engine world of two requests, one pass: 12 851 716 states and 65 517 118 edges in 3.2 minutes of one core and 0.55 GB, as we count.

Traps: a rule may read what it has just written, so all right-hand sides are computed into locals first. A cover that is never hit
makes the exit status 1. A search that ran out of memory is no answer.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from quiesce.proofs.explorer import MoveProperty
from quiesce.proofs.expr import FALSE, TRUE, All, Any, Const, Expr, Free, In, Neg
from quiesce.proofs.model import Action, Model, is_patient
from quiesce.proofs.promela import NO_WAY_ON, Search, run, tool

TRUTH = ("true",)


class Printer:
    """Prints one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = [re.sub(r"\W+", "_", variable.name).strip("_") for variable in model.variables]
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"two variables of {model.name} have one name in Murphi")

    def tree(self, tree: Expr) -> str:
        match tree:
            case Const(value):
                return "true" if value else "false"
            case In(variable, values):
                return self._is_in(self.names[variable], len(self.model.variables[variable].values), values)
            case Free(states, holding, capacity):
                return f"{' + '.join(f'({self.tree(In(state, holding))} ? 1 : 0)' for state in states)} < {capacity}"
            case Neg(part):
                return f"!({self.tree(part)})"
            case All(parts):
                return " && ".join(f"({self.tree(part)})" for part in parts)
            case Any(parts):
                return " || ".join(f"({self.tree(part)})" for part in parts)

    def _is_in(self, name: str, count: int, values: frozenset[int]) -> str:
        """As few ranges as the values make."""
        starts = sorted(value for value in values if value - 1 not in values)
        ends = sorted(value for value in values if value + 1 not in values)
        ranges = []
        for first, last in zip(starts, ends, strict=True):
            low = [] if first == 0 else [f"{name} >= {first}"]
            high = [] if last == count - 1 else [f"{name} <= {last}"]
            ranges.append(f"{name} = {first}" if first == last else " && ".join([*low, *high]) or "true")
        return " || ".join(f"({one})" for one in ranges) or "false"

    def variables(self) -> str:
        lines = []
        for name, variable in zip(self.names, self.model.variables, strict=True):
            legend = ", ".join(f"{number} {value}" for number, value in enumerate(variable.values))
            lines.append(f"{name}: 0..{len(variable.values) - 1}; -- {legend}")
        return "\n".join(lines)

    def rule(self, number: int, action: Action, guard: str, last: str) -> str:
        """One action. Everything is computed before anything is written."""
        after: dict[int, str] = {}
        for one in action.assigns:
            if one.when == FALSE:
                continue
            value = str(one.value) if one.source is None else self.names[one.source]
            if one.when != TRUE:
                value = f"(({self.tree(one.when)}) ? {value} : {after.get(one.variable, self.names[one.variable])})"
            after[one.variable] = value
        computed = {variable: value for variable, value in after.items() if not value.isdigit()}
        local = [f"next_{self.names[place]}: 0..{len(self.model.variables[place].values) - 1};" for place in computed]
        lines = [f"next_{self.names[place]} := {value};" for place, value in computed.items()]
        lines += [
            f"{self.names[place]} := {f'next_{self.names[place]}' if place in computed else value};"
            for place, value in after.items()
        ]
        declared = f"var {' '.join(local)} " if local else ""
        return f'-- {action.name}\nrule "{number}" {guard} ==> {declared}begin {" ".join(lines)}{last} end;'


def program(model: Model, always: Mapping[str, Expr], moves: Sequence[MoveProperty], one_pass: bool) -> str:
    """The Murphi source. What is violated is a cover, named by its number."""
    printer = Printer(model)
    functions = [_function(f"can_{number}", (printer.tree(action.guard), TRUTH)) for number, action in enumerate(model.actions)]
    guards = [f"can_{number}()" for number in range(len(model.actions))]
    begin = [f"{name} := {value};" for name, value in zip(printer.names, model.initial, strict=True)]
    last = ""
    if one_pass:
        urgent = [guard for guard, action in zip(guards, model.actions, strict=True) if action.event.boundary]
        functions.append(_function("boundary_work", ("true", urgent)))
        last = " busy := boundary_work();"
        begin.append(last)
        patient = map(is_patient, model.actions)
        guards = [f"!busy && {guard}" if waits else guard for guard, waits in zip(guards, patient, strict=True)]
    rules = [printer.rule(number, action, guards[number], last) for number, action in enumerate(model.actions)]
    functions += [
        _function(f"broken_{number}", (f"!({printer.tree(holds)})", TRUTH)) for number, holds in enumerate(always.values())
    ]
    for number, move in enumerate(moves, len(always)):
        made: dict[Expr, list[str]] = {}
        for one, tree in sorted(move.before.items()):
            made.setdefault(tree, []).append(guards[one])
        functions.append(_function(f"broken_{number}", *((f"!({printer.tree(tree)})", of) for tree, of in made.items())))
    names = [*always, *(move.name for move in moves), NO_WAY_ON]
    broken = [f"broken_{number}()" for number in range(len(names) - 1)]
    functions.append(_function("way_on_or_broken", ("true", [*broken, *guards])))
    covers = [
        f'-- {name}\ncover "{number}" {where};'
        for number, (name, where) in enumerate(zip(names, [*broken, "!way_on_or_broken()"], strict=True))
    ]
    return "\n".join([
        f"-- {model.name}, {'one pass' if one_pass else 'interleaved'}", "var", printer.variables(),
        "busy: boolean;" if one_pass else "", *functions, f"startstate begin {' '.join(begin)} end;", *rules, *covers, "",
    ])  # fmt: skip


def _function(name: str, *cases: tuple[str, Sequence[str]]) -> str:
    """True where the condition of a case holds and one of its alternatives.

    Rumur takes quadratic time for a long chain of `||`, hence a statement for each.
    """
    lines = [f"function {name}(): boolean; begin"]
    for condition, alternatives in cases:
        lines.append(f"if {condition} then {' '.join(f'if {one} then return true; end;' for one in alternatives)} end;")
    return "\n".join([*lines, "return false; end;"])


def search(
    model: Model,
    always: Mapping[str, Expr],
    moves: Sequence[MoveProperty] = (),
    one_pass: bool = False,
    megabytes: int = 2048,
    seconds: float = 600.0,
    optimise: bool = True,
) -> Search:
    """Lets Rumur search the whole world: prints, compiles and runs in a folder of its own.

    Raises:
        ToolMissing: rumur or gcc is not installed.
        MemoryError: the search needs more than `megabytes`.
        TimeoutError: one of the three steps takes more than `seconds`.
    """
    source = program(model, always, moves, one_pass)
    return judge(source, [*always, *(move.name for move in moves), NO_WAY_ON], megabytes, seconds, optimise)


def judge(source: str, names: Sequence[str], megabytes: int, seconds: float, optimise: bool, symmetry: str = "off") -> Search:
    """What Rumur finds in a Murphi source whose covers have these names; `symmetry` is one of its own words."""
    rumur, compiler = tool("rumur", "rumur"), tool("gcc", "gcc")
    options = ["--deadlock-detection", "off", "--symmetry-reduction", symmetry, "--counterexample-trace", "off"]
    options += ["--output-format", "machine-readable", "--threads", "1", "--quiet"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "world.m").write_text(source, encoding="utf-8")
        run([rumur, *options, "-o", "world.c", "world.m"], folder, seconds)
        flags = ["-O1" if optimise else "-O0", "-w", "-mcx16"]
        run([compiler, *flags, "-o", "world", "world.c", "-lpthread"], folder, seconds)
        began = time.perf_counter()
        limited = f"ulimit -v {megabytes * 1024}; ./world || test $? = 1"
        return _read(run(["sh", "-c", limited], folder, seconds), names, time.perf_counter() - began)


def _read(text: str, names: Sequence[str], seconds: float) -> Search:
    found = ElementTree.fromstring(text.encode())
    summary = found.find("summary")
    counts = {names[int(one.attrib["message"])]: int(one.attrib["count"]) for one in found.iter("cover_result")}
    if summary is None or found.find("error") is not None or len(counts) != len(names):
        raise RuntimeError(f"Rumur gave no verdict: {text[:2000]}")
    violated = frozenset(name for name, count in counts.items() if count)
    return Search(
        int(summary.attrib["states"]), int(summary.attrib["rules_fired"]), sum(counts.values()), violated, 0.0, seconds
    )
