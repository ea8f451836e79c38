"""Rumur's own symmetry reduction: the rows with their quantifiers, over a scalarset of requests.

The finite model names every request by its number, which a scalarset has not. So what is printed here are the actions that the any-N
proof reads (`proofs/unbounded.py`): a ruleset for those about `this` request, with quantifiers over `each`. Blocks are counted, and
nobody is the oldest, as in the finite worlds. Without reduction Rumur finds the states and edges of the finite model, whose quantifiers
other code has written out; with it, those of `proofs/symmetry.py`. Properties are not judged here.
"""

from __future__ import annotations

from quiesce.proofs.expr import FALSE, TRUE, Expr, In
from quiesce.proofs.model import Action, Assign, is_patient
from quiesce.proofs.murphi import Printer, judge
from quiesce.proofs.promela import Search
from quiesce.proofs.unbounded import EACH, THIS, UnboundedBuilder

HOLDING = ("running", "retracting", "draining")
"""States in which a request has blocks."""


class SymmetricPrinter(Printer):
    """Prints the rows about `this` and `each` request."""

    def __init__(self, builder: UnboundedBuilder) -> None:
        super().__init__(builder.build())
        self.builder = builder
        self.requests = {
            place: variable.name.removeprefix("request[").partition("].")[0]
            for place, variable in enumerate(self.model.variables)
            if variable.name.startswith("request[")
        }
        """Variables of requests, and whether of `this` or of `each`."""
        self.locals = list(self.names)
        self.names = [
            f"{name.replace(f'request_{self.requests[place]}_', 'request_')}[{self.requests[place]}]"
            if place in self.requests
            else name
            for place, name in enumerate(self.names)
        ]

    def tree(self, tree: Expr) -> str:
        if not isinstance(tree, In) or tree.variable not in self.builder.definitions:
            return super().tree(tree)
        definition = self.builder.definitions[tree.variable]
        if definition.body is not None:
            word = "forall" if definition.universal else "exists"
            text = f"({word} each: Request do {self.tree(definition.body)} end)"
        else:
            text = "num_holding() < capacity" if definition.name == "free" else "false"
        return f"({text})" if tree.values == {1} else f"!({text})"

    def is_of_this(self, action: Action) -> bool:
        return action.instance == THIS or f"requests={THIS}" in action.name

    def variables(self) -> str:
        lines = []
        for place, (name, variable) in enumerate(zip(self.names, self.model.variables, strict=True)):
            values = f"0..{len(variable.values) - 1}"
            if place not in self.requests:
                lines.append(f"{name}: {values};")
            elif self.requests[place] == THIS:
                lines.append(f"{name.partition('[')[0]}: array [Request] of {values};")
        return "\n".join(lines)

    def initial(self) -> str:
        begin = zip(self.names, self.model.initial, strict=True)
        globals_, each = [], []
        for place, (name, value) in enumerate(begin):
            if place not in self.requests:
                globals_.append(f"{name} := {value};")
            elif self.requests[place] == EACH:
                each.append(f"{name} := {value};")
        return f"{' '.join(globals_)} for each: Request do {' '.join(each)} end;"

    def rule(self, number: int, action: Action, guard: str, last: str) -> str:
        """One action, or one for each request. Everything is computed before anything is written."""
        of_each = [one for one in action.assigns if self.requests.get(one.variable) == EACH]
        written = (None, THIS) if self.is_of_this(action) else (None,)  # what is done to every request is done to `each`
        computed = self._values([one for one in action.assigns if self.requests.get(one.variable) in written])
        others = self._values(of_each)
        size = {place: f"0..{len(self.model.variables[place].values) - 1}" for place in [*computed, *others]}
        declared = [f"next_{self.locals[place]}: {size[place]};" for place in computed]
        declared += [f"next_{self.locals[place]}: array [Request] of {size[place]};" for place in others]
        lines = [f"next_{self.locals[place]} := {value};" for place, value in computed.items()]
        if others:
            lines.append(
                f"for each: Request do {' '.join(f'next_{self.locals[p]}[each] := {v};' for p, v in others.items())} end;"
            )
            writes = " ".join(f"{self.names[place]} := next_{self.locals[place]}[each];" for place in others)
            lines.append(f"for each: Request do {writes} end;")
        lines += [f"{self.names[place]} := next_{self.locals[place]};" for place in computed]
        variables = f"var {' '.join(declared)} " if declared else ""
        text = f'rule "{number}" {guard} ==> {variables}begin {" ".join(lines)}{last} end;'
        return f"-- {action.name}\n" + (f"ruleset this: Request do {text} end;" if self.is_of_this(action) else text)

    def _values(self, assigns: list[Assign]) -> dict[int, str]:
        after: dict[int, str] = {}
        for one in assigns:
            if one.when == FALSE:
                continue
            value = str(one.value) if one.source is None else self.names[one.source]
            if one.when != TRUE:
                value = f"(({self.tree(one.when)}) ? {value} : {after.get(one.variable, self.names[one.variable])})"
            after[one.variable] = value
        return after


def program(builder: UnboundedBuilder, num_requests: int, one_pass: bool) -> str:
    """The Murphi source; as many blocks as requests."""
    printer = SymmetricPrinter(builder)
    place = builder.place[f"request[{EACH}].state"]
    states = builder.variables[place].values
    holding = printer.tree(In(place, frozenset(states.index(state) for state in HOLDING)))
    lines = [
        f"const capacity: {num_requests};", f"type Request: scalarset({num_requests});", "var", printer.variables(),
        "busy: boolean;" if one_pass else "",
        f"function num_holding(): 0..{num_requests}; var found: 0..{num_requests};",
        f"begin found := 0; for each: Request do if {holding} then found := found + 1; end; end; return found; end;",
    ]  # fmt: skip
    last = ""
    if one_pass:
        urgent = []
        for action in printer.model.actions:
            if action.event.boundary:
                guard = printer.tree(action.guard)
                urgent.append(f"exists this: Request do {guard} end" if printer.is_of_this(action) else guard)
        checks = " ".join(f"if {one} then return true; end;" for one in urgent)
        lines.append(f"function boundary_work(): boolean; begin {checks} return false; end;")
        last = " busy := boundary_work();"
    lines.append(f"startstate begin {printer.initial()}{last} end;")
    for number, action in enumerate(printer.model.actions):
        guard = f"({printer.tree(action.guard)})"
        lines.append(printer.rule(number, action, f"!busy && {guard}" if one_pass and is_patient(action) else guard, last))
    return "\n".join([*lines, ""])


def search(
    builder: UnboundedBuilder,
    num_requests: int,
    one_pass: bool = False,
    reduced: bool = True,
    megabytes: int = 2048,
    seconds: float = 600.0,
    optimise: bool = True,
) -> Search:
    """Lets Rumur search the world of so many requests; `reduced`, states that differ in nothing but numbers are one.

    Raises:
        ToolMissing, MemoryError, TimeoutError: as `murphi.search`.
    """
    source = program(builder, num_requests, one_pass)
    return judge(source, [], megabytes, seconds, optimise, "exhaustive" if reduced else "off")
