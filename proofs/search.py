"""The reading explorer: breadth first, in Python, states as tuples. Small worlds only; the large ones are `proofs/explorer.py`'s.

Guards and assignments are compiled to one Python function each, from the same trees as the C explorer's, by another printer: the two
must agree in states and edges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from quiesce.proofs.expr import FALSE, All, Any, Const, Expr, Free, In, Neg
from quiesce.proofs.model import Assign, Model, is_patient

State = tuple[int, ...]
Guard = Callable[[State], bool]
Apply = Callable[[State], State]


def source(tree: Expr) -> str:
    """A Python expression over the state `s`."""
    match tree:
        case Const(value):
            return str(value)
        case In(variable, values):
            only = next(iter(values))
            return f"s[{variable}] == {only}" if len(values) == 1 else f"s[{variable}] in {tuple(sorted(values))}"
        case Free(states, holding, capacity):
            held = " + ".join(f"(s[{state}] in {tuple(sorted(holding))})" for state in states)
            return f"{held} < {capacity}"
        case Neg(part):
            return f"not ({source(part)})"
        case All(parts):
            return "(" + " and ".join(f"({source(part)})" for part in parts) + ")"
        case Any(parts):
            return "(" + " or ".join(f"({source(part)})" for part in parts) + ")"


def compile_guard(tree: Expr) -> Guard:
    guard: Guard = eval(f"lambda s: {source(tree)}")
    return guard


def compile_assigns(assigns: Sequence[Assign]) -> Apply:
    """The state after, all conditions and copies read in the state before."""
    lines = ["def apply(s):", "    t = list(s)"]
    for one in assigns:
        value = f"s[{one.source}]" if one.source is not None else str(one.value)
        condition = source(one.when)
        lines.append(
            f"    t[{one.variable}] = {value}" if condition == "True" else f"    if {condition}: t[{one.variable}] = {value}"
        )
    lines.append("    return tuple(t)")
    scope: dict[str, Apply] = {}
    exec("\n".join(lines), scope)
    return scope["apply"]


@dataclass(slots=True)
class Graph:
    """All states that can be reached, and what leads where."""

    model: Model
    states: list[State] = field(default_factory=list)
    edges: list[list[tuple[int, int]]] = field(default_factory=list)
    """For each state: (action, state after)."""
    parent: list[tuple[int, int]] = field(default_factory=list)
    """For each state: the state it was first reached from, and by which action."""
    found: int | None = None
    """The state that was searched for."""

    @property
    def num_edges(self) -> int:
        return sum(map(len, self.edges))

    def story(self, state: int) -> list[str]:
        """Names of the actions on a shortest way to this state."""
        names: list[str] = []
        while state:
            state, action = self.parent[state]
            names.append(self.model.actions[action].name)
        return names[::-1]


def explore(model: Model, one_pass: bool = False, limit: int = 3_000_000, until: Expr = FALSE) -> Graph:
    """Every reachable state. `one_pass`: what clients and operators do waits for the core's boundary work (rule R1).

    With `until` the search ends at the first state in which that holds, `Graph.found`: none is nearer.

    Raises:
        MemoryError: more than `limit` states.
    """
    guards = [compile_guard(action.guard) for action in model.actions]
    applies = [compile_assigns(action.assigns) for action in model.actions]
    urgent = [number for number, action in enumerate(model.actions) if action.event.boundary]
    patient = [is_patient(action) for action in model.actions]
    graph = Graph(model, [model.initial], [], [(0, -1)])
    index = {model.initial: 0}
    queue = deque([0])
    is_wanted = compile_guard(until)
    while queue:
        place = queue.popleft()
        state = graph.states[place]
        if is_wanted(state):
            graph.found = place
            return graph
        busy = one_pass and any(guards[number](state) for number in urgent)
        out = []
        for number, guard in enumerate(guards):
            if (busy and patient[number]) or not guard(state):
                continue
            after = applies[number](state)
            found = index.get(after)
            if found is None:
                found = index[after] = len(graph.states)
                if found >= limit:
                    raise MemoryError(f"more than {limit} states")
                graph.states.append(after)
                graph.parent.append((len(graph.edges), number))
                queue.append(found)
            out.append((number, found))
        graph.edges.append(out)
    return graph


def unfair_lasso(graph: Graph, goal: Expr, begin: Expr, fairness: Iterable[str] = ("weak", "strong")) -> list[int] | None:
    """A set of states in which one can stay for ever, fairly, having passed `begin` and without reaching `goal`; None if there is none.

    A leads-to `begin ~> goal` fails exactly if such a set exists (Emerson and Lei 1987: strongly connected parts, restricted again and
    again to those whose strongly fair events are taken or nowhere enabled). Staying in one state, where nothing that is fair can
    happen, is such a set, too: nobody is obliged to call.
    """
    kinds = set(fairness)
    fair = {action.fair_name: str(action.event.fairness) for action in graph.model.actions}
    is_goal, is_begin = compile_guard(goal), compile_guard(begin)
    avoiding = [not is_goal(state) for state in graph.states]
    region = _reachable(graph, [n for n, state in enumerate(graph.states) if avoiding[n] and is_begin(state)], avoiding)
    work = [region]
    while work:
        for part in _components(graph, work.pop()):
            inside = set(part)
            taken = {graph.model.actions[a].fair_name for n in part for a, after in graph.edges[n] if after in inside}
            enabled_at = _enabled(graph, part)
            weak = [e for e, where in enabled_at.items() if fair[e] == "weak" and len(where) == len(part)]
            if "weak" in kinds and any(event not in taken for event in weak):
                continue
            strong = [e for e in enabled_at if fair[e] == "strong" and e not in taken]
            if "strong" in kinds and strong:
                work.append(inside - set().union(*(enabled_at[event] for event in strong)))
                continue
            return part
    return None


def _enabled(graph: Graph, part: Sequence[int]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for state in part:
        for action, _ in graph.edges[state]:
            found.setdefault(graph.model.actions[action].fair_name, set()).add(state)
    return found


def _reachable(graph: Graph, begin: Sequence[int], allowed: Sequence[bool]) -> set[int]:
    found, queue = set(begin), deque(begin)
    while queue:
        for _, after in graph.edges[queue.popleft()]:
            if allowed[after] and after not in found:
                found.add(after)
                queue.append(after)
    return found


def _components(graph: Graph, region: set[int]) -> list[list[int]]:
    """Strongly connected parts of a region (Tarjan 1972), without recursion."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    found: list[list[int]] = []
    for root in region:
        if root in number:
            continue
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        calls = [(root, iter(graph.edges[root]))]
        while calls:
            state, edges = calls[-1]
            for _, after in edges:
                if after not in region:
                    continue
                if after not in number:
                    number[after] = low[after] = len(number)
                    stack.append(after)
                    on_stack.add(after)
                    calls.append((after, iter(graph.edges[after])))
                    break
                if after in on_stack:
                    low[state] = min(low[state], number[after])
            else:
                calls.pop()
                if calls:
                    low[calls[-1][0]] = min(low[calls[-1][0]], low[state])
                if low[state] == number[state]:
                    part = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        part.append(member)
                        if member == state:
                            break
                    found.append(part)
    return found
