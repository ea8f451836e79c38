"""Tours: stories that together take every edge of the abstraction at an engine's own pace (`proofs/pace.c`), for a real engine to be driven along.

An engine does boundary work at once and in the order of the pass (rule R1), so its moves are *turns*: a caller's, a timer's, the device's
or the scheduler's event, and all that follows from it. Every turn is a path of the interleaved model. The abstraction is the state of
the engine, of both tags and of the weights, and how many requests are in which state; an edge is what one action does to it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quiesce.proofs.explorer import compiled
from quiesce.proofs.explorer_source import Layout, Printer, header
from quiesce.proofs.expr import TRUE, Expr, In, conj, disj
from quiesce.proofs.model import Action, Builder
from quiesce.proofs.search import State
from quiesce.proofs.world import World
from quiesce.spec import PASS_ORDER
from quiesce.spec.language import Owner
from quiesce.spec.vocabulary import Tag

SINGLE, LAND, END, PLAN, BOUNDARY = range(1, 6)
ENDS = ("eos", "device_fault")
CAUSED = (Owner.client, Owner.operator, Owner.timer, Owner.device, Owner.environment)
PRECONDITIONS: Mapping[str, str] = {
    "request.preempt": "all_requests(not each.state in (draining, retracting))",
    "weights.load_failed": "not weights.base_intact",
}
"""What an engine never does where the tables would let it: it preempts only where no blocks are on their way home anyway, and a write
fails only after it has begun. `request.preempt`, too, has another that runs: the oldest never yields."""
Edge = tuple[int, int, int]
"""Abstract state, kind of action, abstract state; each as a number."""


@dataclass(frozen=True, slots=True)
class Toured:
    """The edges there are, and tours that take all of them."""

    num_states: int
    """Settled states."""
    num_turns: int
    edges: frozenset[Edge]
    tours: tuple[tuple[tuple[str, ...], ...], ...]
    """Each is a list of turns, each turn the actions that cause it, as a story names them."""


class Abstraction:
    """What of a state is looked at, as a number, and which kinds of actions there are."""

    def __init__(self, world: World) -> None:
        self.builder = Builder(world)
        self.model = self.builder.build()
        self.layout = Layout.of(self.model)
        plain = ["engine.state", *(f"memory[{tag.value}].state" for tag in Tag), "weights.state"]
        self.plain = [self.model.place[name] for name in plain]
        self.requests = [self.model.place[f"request[{number}].state"] for number in world.instances["request"]]
        self.kinds = {kind: number for number, kind in enumerate(dict.fromkeys(map(kind_of, self.model.actions)))}
        self.causes = {
            cause: number for number, cause in enumerate(dict.fromkeys(cause_of(a.name) for a in self.model.actions))
        }

    def _size(self, variable: int) -> int:
        return len(self.layout.values[variable])

    def _code(self, variable: int, state: State) -> int:
        return self.layout.values[variable].index(state[variable])

    def number(self, state: State) -> int:
        """As `abstraction` in pace.c."""
        found = 0
        for variable in self.plain:
            found = found * self._size(variable) + self._code(variable, state)
        for code in sorted(self._code(variable, state) for variable in self.requests):
            found = found * self._size(self.requests[0]) + code
        return found + 1

    def words(self, number: int) -> tuple[str, ...]:
        """An abstract state, for people."""
        number -= 1
        values: list[str] = []
        for variable in (*reversed(self.requests), *reversed(self.plain)):
            number, code = divmod(number, self._size(variable))
            values.append(self.model.variables[variable].values[self.layout.values[variable][code]])
        return tuple(reversed(values))

    def told(self, edge: Edge) -> str:
        before, kind, after = edge
        name = next(name for name, number in self.kinds.items() if number == kind)
        return f"{' '.join(self.words(before))} --{name}--> {' '.join(self.words(after))}"


def kind_of(action: Action) -> str:
    return f"{action.machine}.{action.event.name}"


def cause_of(name: str) -> str:
    """The name of an action less what no queue of calls looks at: modes, and the policies of the tags that a sleep names."""
    return re.sub(r"(mode=)\w+|(?<==)(offload|discard)", r"\1", name)


def find_tours(seen: Abstraction, avoided: Iterable[tuple[int, int]] = (), taken: Iterable[Edge] = ()) -> Toured:
    """Tours that take every edge that is not `taken`; no turn begins with an `avoided` cause in that abstract state.

    Raises:
        ToolMissing: there is no C compiler.
    """
    printer = Printer(seen.model, seen.layout)
    said = [f"A {before} {cause}" for before, cause in avoided]
    said += [f"E {before} {kind} {after}" for before, kind, after in taken]
    with compiled("pace.c", header(printer, one_pass=False) + _tables(seen, printer)) as binary:
        done = subprocess.run([str(binary)], input="\n".join(said), capture_output=True, text=True, check=True)
    first, *lines = done.stdout.splitlines()
    num_states, _, num_turns = map(int, first.split())
    edges: list[Edge] = []
    tours: list[list[tuple[str, ...]]] = []
    for line in lines:
        what, *numbers = line.split()
        if what == "E":
            before, kind, after = map(int, numbers)
            edges.append((before, kind, after))
        elif what == "T":
            tours.append([])
        else:
            tours[-1].append(tuple(seen.model.actions[int(number)].name for number in numbers))
    return Toured(num_states, num_turns, frozenset(edges), tuple(map(tuple, tours)))


def _tables(seen: Abstraction, printer: Printer) -> str:
    """What pace.c must know of the actions beside what the model says."""
    actions, requests = seen.model.actions, seen.builder.world.instances["request"]
    order = {f"{machine}.{event}": number for number, (machine, event) in enumerate(PASS_ORDER)}
    conditions: dict[str, Expr] = {"": TRUE}
    conditions |= {kind: seen.builder.guard("engine", "", text) for kind, text in PRECONDITIONS.items()}
    conditions |= {
        f"named {slot}": seen.builder.guard("request", slot, "member[0] and state in (running, retracting)")
        for slot in requests
    }
    conditions |= {f"not oldest {slot}": _another_runs(seen, slot) for slot in requests}
    names = list(conditions)

    def needs(action: Action) -> str:
        kind = kind_of(action)
        if kind == "request.preempt":
            return f"not oldest {action.instance}"
        return f"named {action.instance}" if str(action.event.name) in ENDS else kind if kind in PRECONDITIONS else ""

    columns = {
        "ROLE": [_role(action) for action in actions],
        "RANK": [
            order.get(kind_of(action), 0) * 100 + (int(action.instance) if action.instance.isdigit() else 0)
            for action in actions
        ],
        "KIND": [seen.kinds[kind_of(action)] for action in actions],
        "CAUSE": [seen.causes[cause_of(action.name)] for action in actions],
        "INSTANCE": [int(action.instance) if action.machine == "step" else 0 for action in actions],
        "ORDER": [_order(action, requests) for action in actions],
        "NEEDS": [names.index(needs(action)) for action in actions],
    }
    ended = [seen.model.variables[seen.plain[0]].values.index(state) for state in ("stopping", "stopped", "failed")]
    held = "|".join(f"(u64)!!{printer.truth(tree)}<<{number}" for number, tree in enumerate(conditions.values()))
    lines = [f"static const int {name}[]={{{','.join(map(str, column))}}};" for name, column in columns.items()]
    lines += [
        f"#define PLAIN {len(seen.plain)}", f"#define REQUESTS {len(seen.requests)}",
        f"static const int plain[]={{{','.join(map(str, seen.plain))}}};",
        f"static const int plain_size[]={{{','.join(str(len(seen.layout.values[v])) for v in seen.plain)}}};",
        f"static const int request_state[]={{{','.join(map(str, seen.requests))}}};",
        f"#define ENDED {sum(1 << code for code, value in enumerate(seen.layout.values[seen.plain[0]]) if value in ended)}ULL",
        f"static const int request_size={len(seen.layout.values[seen.requests[0]])};",
        f"static int is_empty(const u8*s,int slot){{return s[slot?{seen.model.place['step[1].state']}:{seen.model.place['step[0].state']}]==0;}}",
        f"static u64 held(const u64*w){{(void)w;return {held};}}",
    ]  # fmt: skip
    return "\n".join(lines)


def _another_runs(seen: Abstraction, slot: str) -> Expr:
    places = [seen.model.place[f"request[{other}].state"] for other in seen.builder.world.instances["request"] if other != slot]
    runs = [In(place, frozenset({seen.model.variables[place].values.index("running")})) for place in places]
    return conj([disj(runs), seen.builder.guard("engine", "", PRECONDITIONS["request.preempt"])])


def _role(action: Action) -> int:
    event = str(action.event.name)
    if action.event.boundary:
        return BOUNDARY
    if event in ENDS:
        return END
    if action.machine == "step" and event in ("land", "plan"):
        return PLAN if event == "plan" else LAND if action.instance == "0" else 0
    scheduled = event in ("start", "preempt", "launch")
    return SINGLE if action.event.owner in CAUSED or scheduled else 0


def _order(action: Action, requests: Sequence[str]) -> int:
    """Requests in rising order; of one request its end before its fault."""
    named = action.request or (action.instance if action.machine == "request" else "")
    return 2 * requests.index(named) + (str(action.event.name) == "device_fault") if named else 0
