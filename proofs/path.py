"""A path of the model, taken one action at a time, for any number of requests: nothing is built that no path asks for.

`Tables` reads the same rows as the explorers, by the same builder, but only the actions that are asked for; `Path` is where one stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quiesce.proofs.expr import All, Any, Const, Expr, Free, In, Neg
from quiesce.proofs.model import Action, Builder
from quiesce.proofs.search import State
from quiesce.proofs.world import World
from quiesce.spec.check import decided
from quiesce.spec.guards import Joint, parse_joint
from quiesce.spec.language import Ignored, Machine, Refused, Row

Data = Mapping[str, str]
NAMED = re.compile(r"(\w+)(?:\[(\w+)\])?\.(\w+)(?:\((.*)\))?")


class NotAPath(Exception):
    """What was asked for is no move of the model from where one stands."""


@dataclass(frozen=True, slots=True)
class Call:
    """An event of one instance, with what it carries: what an action is called after."""

    machine: str
    instance: str
    event: str
    data: Mapping[str, str]

    @staticmethod
    def parse(name: str) -> Call:
        """`engine.pause(owner=caller, mode=keep)`, `request[0].submit`.

        Raises:
            ValueError: no name of an action.
        """
        found = NAMED.fullmatch(name.strip())
        if found is None:
            raise ValueError(f"{name!r} is no name of an action, as `request[0].submit` is")
        pairs = [part.split("=", 1) for part in (found[4] or "").split(",") if part.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"{name!r}: what an event carries is written `name=value`")
        return Call(found[1], found[2] or "", found[3], {key.strip(): value.strip() for key, value in pairs})

    def __str__(self) -> str:
        where = f"{self.machine}[{self.instance}]" if self.instance else self.machine
        carried = ", ".join(f"{key}={value}" for key, value in self.data.items())
        return f"{where}.{self.event}({carried})" if carried else f"{where}.{self.event}"


@dataclass(frozen=True, slots=True)
class Moved:
    """One record's part in a move, as a line of the trace has it."""

    machine: str
    instance: str
    event: str
    source: str
    target: str
    row: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of an event: the action it is, why it is ignored, or how it is refused. None of them: it waits."""

    action: Action | None = None
    ignored: str = ""
    refused: Refused | None = None
    of: Call | None = None
    """Whose cell it is that refuses: the event's own, or that of one which would move with it."""


def is_true(tree: Expr, state: State) -> bool:
    """What a guard says of a state. Read as it is: a path asks too seldom for a compiled one to pay."""
    match tree:
        case Const(value):
            return value
        case In(variable, values):
            return state[variable] in values
        case Free(states, holding, capacity):
            return sum(state[place] in holding for place in states) < capacity
        case Neg(part):
            return not is_true(part, state)
        case All(parts):
            return all(is_true(part, state) for part in parts)
        case Any(parts):
            return any(is_true(part, state) for part in parts)


class Tables(Builder):
    """The actions of a world, each made when it is asked for.

    `machines`: in place of the project's own tables.
    """

    def __init__(self, world: World, machines: Mapping[str, Machine] | None = None) -> None:
        super().__init__(world, machines)
        self._found: dict[str, list[Action]] = {}
        self._taken: dict[str, list[tuple[Row, Expr]]] = {}

    def actions(self, call: Call) -> list[Action]:
        """All ways in which this event can happen: one for each row.

        Raises:
            NotAPath: the world has no such event.
        """
        name = str(call)
        if name not in self._found:
            self._known(call)
            event = self.machines[call.machine].event(call.event)
            self._found[name] = list(self._actions(call.machine, call.instance, event, call.data))
        return self._found[name]

    def _known(self, call: Call) -> None:
        machine = self.machines.get(call.machine)
        if machine is None or call.instance not in self.world.instances[call.machine]:
            raise NotAPath(f"this world has no {call.machine}[{call.instance}]")
        event = next((event for event in machine.events if event.name == call.event), None)
        if event is None:
            raise NotAPath(f"{call.machine} has no event {call.event}")
        if (call.machine, call.event) in self._joint_only:
            raise NotAPath(f"{call} happens only together with another")
        if set(event.takes) != set(call.data):
            raise NotAPath(f"{call} must carry {', '.join(event.takes) or 'nothing'}")

    def enabled(self, call: Call, state: State) -> Action | None:
        """The action that this event is in this state, if it can happen; of the rows of a cell only one can be taken."""
        return next((action for action in self.actions(call) if is_true(action.guard, state)), None)

    def after(self, action: Action, state: State) -> State:
        """All conditions and copies are read in the state before."""
        values = list(state)
        for one in action.assigns:
            if is_true(one.when, state):
                values[one.variable] = one.value if one.source is None else state[one.source]
        return tuple(values)

    def decide(self, call: Call, state: State) -> Decision:
        """What the tables say of an event in this state, what moves with it included."""
        action = self.enabled(call, state)
        if action is not None:
            return Decision(action)
        for found in self._joint(call, state):
            if self._row(found, state) is None and (decision := self._fallback(found, state)).refused is not None:
                return decision
        return self._fallback(call, state) if self._row(call, state) is None else Decision()

    def _fallback(self, call: Call, state: State) -> Decision:
        entries = decided(self.machines[call.machine], call.event)[self.value(call.machine, call.instance, "state", state)]
        for entry in entries:
            if isinstance(entry, Refused) and is_true(self.guard(call.machine, call.instance, entry.when, call.data), state):
                return Decision(refused=entry, of=call)
        return Decision(ignored=next((entry.reason for entry in entries if isinstance(entry, Ignored)), ""))

    def value(self, machine: str, instance: str, variable: str, state: State) -> str:
        place = self.place[f"{machine}[{instance}].{variable}" if instance else f"{machine}.{variable}"]
        return self.variables[place].values[state[place]]

    def _row(self, call: Call, state: State) -> Row | None:
        """The row that is taken, joint moves aside."""
        name = str(call)
        if name not in self._taken:
            self._taken[name] = list(self._rows(call.machine, call.instance, call.event, call.data))
        return next((row for row, here in self._taken[name] if is_true(here, state)), None)

    def _joint(self, call: Call, state: State) -> Iterator[Call]:
        """The event and all that happen with it in the same instant, in the order in which the gate makes them."""
        waiting = [call]
        for leader in waiting:  # grows
            yield leader
            row = self._row(leader, state)
            for joint in map(parse_joint, row.also if row is not None else ()):
                data = {key: leader.data[word[6:]] if word.startswith("event.") else word for key, word in joint.data}
                waiting += [Call(joint.machine, other, joint.event, data) for other in self._partners(joint, leader.data)]

    def _partners(self, joint: Joint, data: Data) -> tuple[str, ...]:
        """The instances that a joint move is about."""
        if joint.instance == "*":
            return self.world.instances[joint.machine]
        return (data[joint.instance[6:]],) if joint.instance.startswith("event.") else (joint.instance,)

    def moved(self, call: Call, state: State) -> list[Moved]:
        """What the trace says of this event: a line for each record that takes a row, the leader's first."""
        lines = []
        for found in self._joint(call, state):
            row = self._row(found, state)
            if row is not None:
                source = self.value(found.machine, found.instance, "state", state)
                target = source if row.target is None else str(row.target)
                number = self.machines[found.machine].rows.index(row)
                lines.append(Moved(found.machine, found.instance, found.event, source, target, number))
        return lines


class Path:
    """Where one stands in the model, having begun at its initial state."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.at: State = tuple(tables.initial)
        self.taken: list[tuple[Action, State]] = []
        """The actions so far, each with the state it led to."""

    def take(self, call: Call) -> list[Moved]:
        """Goes on by one action; the lines that a trace has of it.

        Raises:
            NotAPath: it cannot happen here.
        """
        action = self.tables.enabled(call, self.at)
        if action is None:
            raise NotAPath(f"{call} cannot happen while {self.why_not(call)}")
        lines = self.tables.moved(call, self.at)
        self.at = self.tables.after(action, self.at)
        self.taken.append((action, self.at))
        return lines

    def value(self, name: str) -> str:
        place = self.tables.place[name]
        return self.tables.variables[place].values[self.at[place]]

    def why_not(self, call: Call) -> str:
        """What is so, in the words of the tables: the state of the record, and what differs from the beginning."""
        told = [
            f"{variable.name}={variable.values[value]}"
            for variable, value, began in zip(self.tables.variables, self.at, self.tables.initial, strict=True)
            if value != began
        ]
        return ", ".join(told) or "nothing has happened"
