"""How a guard of the tables is read in a world: over variables with few values, quantifiers written out over the instances there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quiesce.proofs.expr import FALSE, TRUE, Const, Expr, Free, In, conj, disj, neg
from quiesce.proofs.world import World
from quiesce.spec import CATALOG
from quiesce.spec.guards import And, Guard, Is, Name, Not, Or, Positive, Quantified, Truth, parse_guard
from quiesce.spec.language import Machine, SpecError


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    """`engine.state`, `memory[kv_cache].policy`, `request[1].begun`."""
    values: tuple[str, ...]


SAME = {
    ("operation", "failed"): "done",
    ("operation", "superseded"): "done",
    ("request", "ended"): "absent",
    ("step", "retired"): "empty",
    ("step", "dropped"): "empty",
}
"""States that are told apart in the engine's trace and are one in the model."""
DERIVED = {"place", "oldest", "tag"}
"""Variables whose value follows from which instance it is."""


class OutsideWorld(SpecError):
    """A guard names what a world leaves out."""


class Reader:
    """The variables of one world, and its guards as expressions over them."""

    def __init__(self, world: World, machines: Mapping[str, Machine] | None = None) -> None:
        self.world = world
        around = world.surroundings.around(machines or CATALOG.machines)
        self.machines = {name: around[name] for name in world.instances}
        self._instead = {parse_guard(part): parse_guard(text) for part, (text, _) in world.surroundings.abstractions.items()}
        self.variables: list[Variable] = []
        self.initial: list[int] = []
        self.place: dict[str, int] = {}
        for name, machine in self.machines.items():
            states = tuple(state for state in machine.states if (name, str(state)) not in SAME)
            for instance in world.instances[name]:
                for variable, values in {"state": tuple(map(str, states)), **machine.variables}.items():
                    if self.is_modelled(name, variable):
                        first = (
                            str(world.surroundings.starts.get(name, machine.initial)) if variable == "state" else str(values[0])
                        )
                        self._add(full_name(name, instance, variable), tuple(map(str, values)), first)

    def is_modelled(self, machine: str, variable: str) -> bool:
        return variable not in DERIVED and f"{machine}.{variable}" not in self.world.surroundings.no_variables

    def _add(self, name: str, values: tuple[str, ...], first: str) -> None:
        self.place[name] = len(self.variables)
        self.variables.append(Variable(name, values))
        self.initial.append(values.index(first))

    def guard(self, name: str, instance: str, text: str, data: Mapping[str, str] | None = None) -> Expr:
        """A guard in the words of the tables, about one instance, as an expression.

        Raises:
            OutsideWorld: it names what is not in this world, and nothing is said instead.
        """
        return self._tree(name, instance, parse_guard(text), data or {})

    def exactly(self, name: str, instance: str, text: str) -> Expr:
        """As `guard`, with nothing said instead of what is not there."""
        instead, self._instead = self._instead, {}
        try:
            return self.guard(name, instance, text)
        finally:
            self._instead = instead

    def _tree(
        self, name: str, instance: str, tree: object, data: Mapping[str, str], each: str = "", domain: str = "request"
    ) -> Expr:
        if (instead := self._abstraction(tree)) is not None:
            return self._tree(*((domain, each) if _is_of_each(tree) else (name, instance)), instead, data, each, domain)
        match tree:
            case Truth(value):
                return Const(value)
            case Not(part):
                return neg(self._tree(name, instance, part, data, each, domain))
            case And(parts):
                return conj([self._tree(name, instance, part, data, each, domain) for part in parts])
            case Or(parts):
                return disj([self._tree(name, instance, part, data, each, domain) for part in parts])
            case Positive("free"):
                return self._free()
            case Quantified(universal, over, body):
                return self._quantified(name, instance, universal, over, body, data)
            case Is(variable, words):
                return self._is_one_of(name, instance, variable, words, data, each, domain)
            case Name() as fact_or_bit:
                return self._fact_or_bit(name, instance, fact_or_bit, data, each, domain)
        raise SpecError(f"{tree!r} has no place in the model")

    def _abstraction(self, tree: object) -> Guard | None:
        """What this world says instead."""
        if not self._instead or not isinstance(tree, (Is, Name, Positive)):
            return None
        return self._instead.get(replace(tree, instance="") if isinstance(tree, Name) and tree.instance == "each" else tree)

    def _free(self) -> Expr:
        states = tuple(self.place[full_name("request", number, "state")] for number in self.world.instances["request"])
        values = self.variables[states[0]].values
        holding = frozenset(values.index(state) for state in ("running", "retracting", "draining"))
        return Free(states, holding, self.world.capacity)

    def _quantified(self, name: str, instance: str, universal: bool, over: str, body: Guard, data: Mapping[str, str]) -> Expr:
        domain = "request" if over in ("member", "named") else over
        if domain not in self.world.instances:
            raise OutsideWorld(f"the {self.world.name} world has no {domain}, and nothing is said instead")
        parts = []
        for other in self.world.instances[domain]:
            if over == "named" and other != data["requests"]:
                continue
            inner = self._tree(name, instance, body, data, other, domain)
            if over == "member":
                member = self._is("request", other, f"member[{instance}]", ("yes",))
                inner = disj([neg(member), inner]) if universal else conj([member, inner])
            parts.append(inner)
        return conj(parts) if universal else disj(parts)

    def _is_one_of(
        self, name: str, instance: str, variable: Name, words: Sequence[str], data: Mapping[str, str], each: str, domain: str
    ) -> Expr:
        if variable.machine == "event":
            return Const(data[variable.name] in words)
        machine, other = (variable.machine, variable.instance) if variable.machine else (name, instance)
        if variable.instance == "each":
            machine, other = domain, each
        elif variable.instance == "this":
            other = instance
        if variable.name in DERIVED:
            value = {"place": ("older", "newer")[other == "1"], "tag": other, "oldest": "no"}[variable.name]
            return Const(value in words)
        slot = instance if variable.slot == "this" else variable.slot
        full = f"{variable.name}[{slot}]" if slot else variable.name
        return self._is(machine, other, full, words)

    def _fact_or_bit(self, name: str, instance: str, word: Name, data: Mapping[str, str], each: str, domain: str) -> Expr:
        fact = CATALOG.facts.get(word.name)
        if fact is None:
            return self._is_one_of(name, instance, word, ("yes",), data, each, domain)
        about = each if word.instance == "each" else word.instance if word.instance not in ("", "this") else instance
        return self._tree(fact.of or "engine", about if fact.of else "", parse_guard(fact.when), data)

    def _is(self, name: str, instance: str, variable: str, words: Sequence[str]) -> Expr:
        place = self.place.get(full_name(name, instance, variable))
        if place is None:
            raise OutsideWorld(
                f"{full_name(name, instance, variable)} is not in the {self.world.name} world, and nothing is said instead"
            )
        values = self.variables[place].values
        wanted = frozenset(values.index(word) for word in words if word in values)
        if "ended" in words and name == "request":
            wanted |= {values.index("absent")}
        if name == "step" and variable == "state" and {"retired", "dropped"} & set(words):
            wanted |= {values.index("empty")}
        return TRUE if len(wanted) == len(values) else In(place, wanted) if wanted else FALSE


def _is_of_each(tree: object) -> bool:
    return isinstance(tree, Name) and tree.instance == "each"


def full_name(machine: str, instance: str, variable: str) -> str:
    return f"{machine}[{instance}].{variable}" if instance else f"{machine}.{variable}"
