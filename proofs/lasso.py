"""Leads-to under fairness in worlds too large for `proofs/search.py: unfair_lasso`: the same judgement, in C (`lasso.c`), with all edges
in memory.

One search answers many questions: every promise, under the declared fairness and under any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quiesce.proofs.explorer import compiled, run
from quiesce.proofs.explorer_source import Layout, Printer, header, labels
from quiesce.proofs.expr import Expr
from quiesce.proofs.model import Model
from quiesce.spec import PROPERTIES
from quiesce.spec.language import Fairness

MOST = 32
"""Promises that one search judges."""
DESPITE = {prop.name: prop.despite for prop in PROPERTIES if prop.despite}
"""Promise -> events that need not happen for it, under whatever fairness it is judged."""
Marks = Mapping[str, Fairness]
"""For each event of an instance (`Action.fair_name`), how it is treated; what is not there is never obliged to happen."""


@dataclass(frozen=True, slots=True)
class Lasso:
    """How a leads-to fails."""

    story: tuple[str, ...]
    """A shortest way to where one can stay for ever."""
    around: tuple[str, ...]
    """Actions that can go on for ever there; none, if nothing more need happen."""
    num_states: int
    """In how many states one stays."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one search found."""

    num_states: int
    num_edges: int
    seconds: float
    """Of processor time; there is one thread."""
    peak_bytes: int
    lassos: tuple[Mapping[str, Lasso | None], ...]
    """For each fairness that was asked about: by promise, how it fails, or None."""


def declared(model: Model) -> dict[str, Fairness]:
    """The fairness that the tables declare, for each event of an instance."""
    marks = {action.fair_name: action.event.fairness for action in model.actions}
    return {name: mark for name, mark in marks.items() if mark is not Fairness.none}


def judge(
    model: Model,
    promises: Sequence[tuple[str, Expr, Expr]],
    marks: Sequence[Marks] | None = None,
    one_pass: bool = True,
    megabytes: int = 4096,
    progress: bool | None = None,
) -> Answers:
    """Judges every promise (name, trigger, goal) under each fairness; None: under the declared one.

    Raises:
        ToolMissing: there is no C compiler.
        MemoryError: the graph needs more than `megabytes`.
        ValueError: a state takes more than 128 bits, or there are more than 32 promises.
    """
    if len(promises) > MOST:
        raise ValueError(f"{MOST} promises are the most")
    asked = [declared(model)] if marks is None else marks
    events = sorted({name for some in asked for name in some})
    place = {name: number for number, name in enumerate(events)}
    printer = Printer(model, Layout.of(model))
    triggers, goals = [trigger for _, trigger, _ in promises], [goal for _, _, goal in promises]
    event_of = ",".join(str(place.get(action.fair_name, len(events))) for action in model.actions)
    world = (
        header(printer, one_pass)
        + labels(printer, {**dict(enumerate(triggers)), **{MOST + number: goal for number, goal in enumerate(goals)}})
        + f"#define EVENTS {len(events)}\nstatic const unsigned short event_of[ACTIONS]={{{event_of}}};\n"
    )
    letters = {Fairness.none: "n", Fairness.weak: "w", Fairness.strong: "s"}
    event_names = {action.fair_name: f"{action.machine}.{action.event.name}" for action in model.actions}
    spared = [DESPITE.get(name.partition("[")[0], ()) for name, _, _ in promises]
    questions = []
    for some in asked:
        for number, spare in enumerate(spared):
            marks_of = (Fairness.none if event_names[name] in spare else some.get(name, Fairness.none) for name in events)
            questions.append(f"{number} {''.join(letters[mark] for mark in marks_of)}.")
    with compiled("lasso.c", world) as binary:
        text = run(binary, megabytes, model.name, "\n".join(questions) + "\n", progress)
    *told, counts, peak, seconds = text.splitlines()
    found = [_lasso(model, line) for line in told]
    names = [name for name, _, _ in promises]
    each = [dict(zip(names, found[start : start + len(names)], strict=True)) for start in range(0, len(found), len(names) or 1)]
    (num_states, num_edges) = map(int, counts.split()[1:])
    return Answers(num_states, num_edges, float(seconds.split()[1]), int(peak.split()[1]), tuple(each))


def _lasso(model: Model, line: str) -> Lasso | None:
    if line == "holds":
        return None
    word, _, around = line.partition("|")
    _, size, *story = word.split()
    names = [action.name for action in model.actions]
    return Lasso(
        tuple(names[int(number)] for number in story), tuple(names[int(number)] for number in around.split()), int(size)
    )
