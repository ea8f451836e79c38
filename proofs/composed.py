"""Engine, memory and weights together, as reviewers think of them: which states of the three go with each other, and what leads on.

Read off the reachable states of the engine world (one pass, as the engine runs), not written down: what is not here cannot happen
there. The picture sums the two tags up in one word; the table has every combination.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from quiesce.proofs import search
from quiesce.proofs.model import Builder
from quiesce.proofs.world import World
from quiesce.spec.vocabulary import EngineState, MemoryState, WeightsState
from quiesce.statemachine.graphviz import LOOKS, lines_table, quoted
from quiesce.statemachine.markdown import code, table

SUMMED_UP: Final = (EngineState.stopping, EngineState.failed, EngineState.stopped)
"""Drawn as one box each: the end does not depend on where the memory was."""
ENDS: Final = (EngineState.stopping, EngineState.failed)
"""What leads here is said in words, not drawn."""


@dataclass(frozen=True, slots=True, order=True)
class Combination:
    """The states of the four records."""

    engine: str
    weights_tag: str
    kv_tag: str
    weights: str

    @property
    def box(self) -> Box:
        if self.engine in SUMMED_UP:
            return Box(self.engine, "", "")
        return Box(self.engine, residency(self.weights_tag, self.kv_tag), self.weights)


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """What the picture draws as one."""

    engine: str
    memory: str
    weights: str

    @property
    def name(self) -> str:
        return "_".join(part.replace(" ", "_") for part in (self.engine, self.memory, self.weights) if part)

    @property
    def lines(self) -> list[str]:
        return [f"memory {self.memory}", f"weights {self.weights}"] if self.memory else []


def residency(weights_tag: str, kv_tag: str) -> str:
    """Two tags in one word."""
    states = {weights_tag, kv_tag}
    if states & {MemoryState.releasing, MemoryState.restoring}:
        return "in transit"
    if MemoryState.released in states:
        return "away" if len(states) == 1 else "partly away"
    return "undefined" if MemoryState.undefined in states else "resident"


@dataclass(frozen=True, slots=True)
class View:
    """What can be, and what leads from one to the other: (from, to) -> `machine.event`."""

    num_requests: int
    num_states: int
    combinations: tuple[Combination, ...]
    moves: dict[tuple[Combination, Combination], tuple[str, ...]]

    @property
    def arrows(self) -> dict[tuple[Box, Box], tuple[str, ...]]:
        """The moves between boxes."""
        found: dict[tuple[Box, Box], set[str]] = {}
        for (before, after), events in self.moves.items():
            if before.box != after.box:
                found.setdefault((before.box, after.box), set()).update(events)
        return {ends: tuple(sorted(found[ends])) for ends in sorted(found)}

    @property
    def boxes(self) -> list[Box]:
        """In the order of the engine's states."""
        order = [str(state) for state in EngineState]
        return sorted({one.box for one in self.combinations}, key=lambda box: (order.index(box.engine), box))


def view(num_requests: int = 1) -> View:
    """Explores the engine world (seconds) and keeps what engine, memory and weights do in it."""
    builder = Builder(World.engine(num_requests))
    graph = search.explore(builder.build(), one_pass=True)
    names = ("engine.state", "memory[weights].state", "memory[kv_cache].state", "weights.state")
    places = [builder.place[name] for name in names]
    combined = [Combination(*(graph.model.variables[place].values[state[place]] for place in places)) for state in graph.states]
    moves: dict[tuple[Combination, Combination], set[str]] = {}
    for before, out in zip(combined, graph.edges, strict=True):
        for action, after in out:
            if combined[after] != before:
                cause = graph.model.actions[action]
                moves.setdefault((before, combined[after]), set()).add(f"{cause.machine}.{cause.event.name}")
    ordered = {ends: tuple(sorted(moves[ends])) for ends in sorted(moves)}
    return View(num_requests, len(graph.states), tuple(sorted(set(combined))), ordered)


def legend(seen: View) -> list[str]:
    """What the picture shows, and what it leaves out."""
    return [
        f"The engine, its memory and its weights together: every combination in {seen.num_states:,} states "
        f"({seen.num_requests} request{'' if seen.num_requests == 1 else 's'}, one pass).",
        "in transit: a tag is being copied, mapped or unmapped. partly away: one tag is released.",
        *(_ways_to(seen, end) for end in ENDS),
    ]


def _ways_to(seen: View, end: str) -> str:
    """What leads to an end, said once instead of drawn from everywhere."""
    sources = {before.engine for before, after in seen.arrows if after.engine == end}
    events = sorted({event for (_, after), names in seen.arrows.items() if after.engine == end for event in names})
    return (
        f"To {end}, not drawn: {', '.join(events)}, from {', '.join(str(state) for state in EngineState if state in sources)}."
    )


def _drawn(seen: View) -> Iterator[tuple[Box, Box, list[str]]]:
    """Arrows with the names of their events, which say by themselves whose they are."""
    for (before, after), events in seen.arrows.items():
        if after.engine not in ENDS:
            yield before, after, sorted({event.partition(".")[2] for event in events})


def dot(seen: View) -> str:
    """A Graphviz digraph."""
    words = "".join(quoted(line)[1:-1] + "\\l" for line in ["", *legend(seen)])
    lines = [
        "digraph composed {",
        '    graph [id="composed", rankdir=TB, nodesep=0.1, ranksep=0.2, fontname=Helvetica, fontsize=10, labelloc=b, labeljust=l,',
        f'           label="{words}"]',
        *LOOKS,
    ]
    lines += [f"    {box.name} [id={quoted(box.name)}, label=<{lines_table(box.lines, box.engine)}>]" for box in seen.boxes]
    lines += [f"    {a.name} -> {b.name} [label=<{lines_table(events)}>]" for a, b, events in _drawn(seen)]
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(seen: View) -> str:
    """A flowchart, likewise."""
    lines = [*(f"%% {line}" for line in legend(seen)), "flowchart TB"]
    lines += [f'    {box.name}["{"<br>".join([box.engine, *box.lines])}"]' for box in seen.boxes]
    lines += [f'    {a.name} -->|"{"<br>".join(events)}"| {b.name}' for a, b, events in _drawn(seen)]
    return "\n".join(lines) + "\n"


def combinations(seen: View) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and rows of every combination: weights down, KV across, in the cell the states of the engine."""
    tags = [str(state) for state in MemoryState]
    rows = []
    for tag in tags:
        for weights in WeightsState:
            cells = [
                ", ".join(code(state) for state in EngineState if Combination(state, tag, kv_tag, weights) in seen.combinations)
                for kv_tag in tags
            ]
            if any(cells):
                rows.append((f"{code(tag)}, {code(weights)}", *cells))
    return ("the weights' tag, the weights", *(f"KV {code(tag)}" for tag in tags)), tuple(rows)


def markdown(seen: View) -> str:
    """The picture, and every combination as a table."""
    blocks = [
        "# The engine, its memory and its weights",
        "\n".join(f"- {line}" for line in legend(seen)),
        f"```mermaid\n{mermaid(seen).rstrip()}\n```",
        f"## Which states go together\n\n{len(seen.combinations)} combinations. A cell holds the states of the engine; an empty one is never reached.",
        table(*combinations(seen)),
    ]
    return "\n\n".join(blocks) + "\n"
