"""The tables for any number of requests, as z3 reads them: quantifiers stay quantifiers over a sort of which nothing is known.

The rows are read by the same `Builder` that makes the finite worlds, in a world with two names for requests: `this` is the one that an
action is about or names, `each` stands for every request and is always bound, by a quantifier or by an update of all requests. A
quantified guard becomes a bit whose definition is kept beside, so that the trees stay the ones that every printer reads.

No function leads back into the sort and no quantifier stands inside another, so every question put to the solver is effectively
propositional: it is decided, and a "no" comes with a finite world to read. Numbers of blocks and the order of requests are left out:
`free > 0` and `oldest` may be true or false at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import z3

from quiesce.proofs.expr import All, Any, Const, Expr, Free, In, Neg
from quiesce.proofs.model import Action, Assign, Builder, Model
from quiesce.proofs.world import World
from quiesce.spec.guards import Guard, Name
from quiesce.spec.language import Machine, SpecError

THIS, EACH = "this", "each"
OLDEST_OF_ANY = "oldest of any"
"""Stands in actions about the bound name, which are dropped; one bit could not speak for every request."""
Term: TypeAlias = z3.ExprRef
Function: TypeAlias = Callable[[Term], Term]
"""From a request to the value of one of its variables."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a bit stands for: every request, or some request, is such; or nothing (None): the bit is free."""

    universal: bool
    body: Expr | None
    name: str = ""


class UnboundedBuilder(Builder):
    """Turns the tables into actions about `this` request and rules about `each`."""

    def __init__(
        self,
        machines: Mapping[str, Machine] | None = None,
        callers: Sequence[str] = ("caller",),
        without: Collection[str] = (),
    ) -> None:
        world = World.engine(0, callers=callers, without=without)
        super().__init__(replace(world, instances={**world.instances, "request": (THIS, EACH)}), machines)
        self.definitions: dict[int, Definition] = {}
        self._bits: dict[Definition, int] = {}

    def build(self) -> Model:
        """All actions but those about the bound name, which is no request."""
        model = super().build()
        model.actions = [action for action in model.actions if EACH not in (action.instance, _named(action))]
        return model

    def own_rows(self) -> Iterator[tuple[str, int]]:
        """Rows whose events happen by themselves, not only jointly with others: machine and place in its table."""
        for name, machine in self.machines.items():
            for number, row in enumerate(machine.rows):
                if (name, str(row.event)) not in self._joint_only:
                    yield name, number

    def define(self, definition: Definition) -> Expr:
        """The bit that stands for this."""
        place = self._bits.setdefault(definition, len(self.variables) + len(self._bits))
        self.definitions[place] = definition
        return In(place, frozenset({1}))

    def every(self, body: Expr) -> Expr:
        """Every request is such."""
        return self.define(Definition(True, body))

    def _free(self) -> Expr:
        return self.define(Definition(False, None, "free"))

    def _quantified(self, name: str, instance: str, universal: bool, over: str, body: Guard, data: Mapping[str, str]) -> Expr:
        if over not in ("request", "member"):
            return super()._quantified(name, instance, universal, over, body, data)
        inner = self._tree(name, instance, body, data, EACH, "request")
        if over == "member":
            member = self._is("request", EACH, f"member[{instance}]", ("yes",))
            inner = Any((Neg(member), inner)) if universal else All((member, inner))
        return self.define(Definition(universal, inner))

    def _is_one_of(
        self, name: str, instance: str, variable: Name, words: Sequence[str], data: Mapping[str, str], each: str, domain: str
    ) -> Expr:
        if variable.name == "oldest":
            whose = each if variable.instance == "each" else instance
            bit = self.define(Definition(False, None, "oldest" if whose == THIS else OLDEST_OF_ANY))
            return bit if "yes" in words else Neg(bit)
        return super()._is_one_of(name, instance, variable, words, data, each, domain)


def _named(action: Action) -> str:
    """The request that the data of a step's event name: the title says it."""
    return EACH if f"requests={EACH}" in action.name else THIS


@dataclass(frozen=True, slots=True)
class State:
    """Values of all variables: of each global one a term, of each variable of requests a function."""

    globals: Mapping[int, Term]
    requests: Mapping[str, Function]


@dataclass(slots=True)
class Unbounded:
    """The world of any number of requests: its actions, and its guards as formulas over states."""

    builder: UnboundedBuilder
    sort: z3.SortRef = field(default_factory=lambda: z3.DeclareSort("Request"))
    """Of which nothing is known; a test puts a sort of two requests in its place."""
    model: Model = field(init=False)
    this: Term = field(init=False)
    before: State = field(init=False)
    """The state that every action leaves: constants and functions of which only the types are known."""
    typing: list[z3.BoolRef] = field(default_factory=list)
    """Every variable has one of its values."""
    _request_variable: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Place -> (`this` or `each`, name of the variable)."""

    def __post_init__(self) -> None:
        self.model = self.builder.build()
        self.this = z3.Const(THIS, self.sort)
        bound = z3.Const("any", self.sort)
        terms: dict[int, Term] = {}
        functions: dict[str, Function] = {}
        for place, variable in enumerate(self.model.variables):
            count = len(variable.values)
            if not variable.name.startswith("request["):
                terms[place] = _constant(variable.name, count)
                self.typing += _typed(terms[place], count)
                continue
            whose, _, short = variable.name.removeprefix("request[").partition("].")
            self._request_variable[place] = (whose, short)
            if whose == EACH:
                functions[short] = z3.Function(short, self.sort, _sort(count))
                self.typing += [z3.ForAll([bound], one) for one in _typed(functions[short](bound), count)]
        self.before = State(terms, functions)

    # ---- formulas ---------------------------------------------------------------------------------------------------------------

    def formula(self, tree: Expr, state: State, each: Term | None = None) -> z3.BoolRef:
        """What a guard says about a state; `each` is the request bound by what surrounds it."""
        match tree:
            case Const(value):
                return z3.BoolVal(value)
            case Neg(part):
                return z3.Not(self.formula(part, state, each))
            case All(parts):
                return all_of([self.formula(part, state, each) for part in parts])
            case Any(parts):
                return any_of([self.formula(part, state, each) for part in parts])
            case In(place, values) if place in self.builder.definitions:
                return self._defined(self.builder.definitions[place], values, state, each)
            case In(place, values):
                return _is_in(self._value(place, state, each), values)
            case Free():
                raise SpecError("a number of blocks has no place where the number of requests is open")

    def _defined(self, definition: Definition, values: frozenset[int], state: State, each: Term | None) -> z3.BoolRef:
        if definition.name == OLDEST_OF_ANY:
            raise SpecError("`oldest` may be asked of the request that the action is about, of no other")
        if definition.body is None:
            found = z3.Bool(definition.name)
        elif each is not None:
            raise SpecError("a quantifier inside a quantifier")
        else:
            bound = z3.Const("each", self.sort)
            body = self.formula(definition.body, state, bound)
            found = z3.ForAll([bound], body) if definition.universal else z3.Exists([bound], body)
        return found if values == {1} else z3.Not(found)

    def _value(self, place: int, state: State, each: Term | None) -> Term:
        if place not in self._request_variable:
            return state.globals[place]
        whose, short = self._request_variable[place]
        request = self.this if whose == THIS else each
        if request is None:
            raise SpecError(f"{self.model.variables[place].name} speaks of `each` where no quantifier binds it")
        return state.requests[short](request)

    def initial(self) -> list[z3.BoolRef]:
        """Nobody has called yet: every variable has its first value."""
        bound = z3.Const("any", self.sort)
        found = [_is_in(term, frozenset({self.model.initial[place]})) for place, term in self.before.globals.items()]
        for place, (whose, short) in self._request_variable.items():
            if whose == EACH:
                found.append(
                    z3.ForAll([bound], _is_in(self.before.requests[short](bound), frozenset({self.model.initial[place]})))
                )
        return found

    # ---- moves ------------------------------------------------------------------------------------------------------------------

    def key(self, place: int) -> str:
        """The same for `this` and `each`: writing the one may change what is said of the other."""
        return self._request_variable[place][1] if place in self._request_variable else str(place)

    def reads(self, tree: Expr) -> set[str]:
        """Variables on which a guard depends."""
        match tree:
            case Neg(part):
                return self.reads(part)
            case All(parts) | Any(parts):
                return set().union(*map(self.reads, parts))
            case In(place) if place in self.builder.definitions:
                body = self.builder.definitions[place].body
                return self.reads(body) if body is not None else set()
            case In(place):
                return {self.key(place)}
        return set()

    def is_free(self, tree: Expr) -> bool:
        """Whether it depends on a bit that may change at any moment, though no action writes it."""
        match tree:
            case Neg(part):
                return self.is_free(part)
            case All(parts) | Any(parts):
                return any(map(self.is_free, parts))
            case In(place) if place in self.builder.definitions:
                body = self.builder.definitions[place].body
                return body is None or self.is_free(body)
        return False

    def writes(self, action: Action) -> set[str]:
        return {self.key(one.variable) for one in action.assigns}

    def after(self, action: Action) -> State:
        """The state that the action leads to, in terms of the one it leaves."""
        by_place: dict[int, list[Assign]] = {}
        for one in action.assigns:
            by_place.setdefault(one.variable, []).append(one)
        terms = {
            place: self._written(term, by_place.get(place, []), place, None) for place, term in self.before.globals.items()
        }
        functions = dict(self.before.requests)
        for short in functions:
            mine, all_of_them = (by_place.get(self.builder.place[f"request[{whose}].{short}"], []) for whose in (THIS, EACH))
            if mine or all_of_them:
                functions[short] = self._function(short, mine, all_of_them)
        return State(terms, functions)

    def _function(self, short: str, mine: Sequence[Assign], all_of_them: Sequence[Assign]) -> Function:
        """After an action: what it wrote of `this`, and of every other what it wrote of all."""
        old = self.before.requests[short]
        place = self.builder.place[f"request[{EACH}].{short}"]
        new = self._written(old(self.this), mine, place, None)

        def value(request: Term) -> Term:
            if request.eq(self.this):
                return new
            return z3.If(request == self.this, new, self._written(old(request), all_of_them, place, request))

        return value

    def _written(self, term: Term, assigns: Sequence[Assign], place: int, each: Term | None) -> Term:
        """The value after assignments, the last one wins; all conditions and copies are read in the state before."""
        count = len(self.model.variables[place].values)
        for one in assigns:
            value = _literal(one.value, count) if one.source is None else self._value(one.source, self.before, each)
            when = self.formula(one.when, self.before, each)
            term = value if z3.is_true(when) else z3.If(when, value, term)
        return term


def _sort(count: int) -> z3.SortRef:
    return z3.BoolSort() if count == 2 else z3.BitVecSort((count - 1).bit_length())


def _constant(name: str, count: int) -> Term:
    return z3.Const(name, _sort(count))


def _literal(value: int, count: int) -> Term:
    return z3.BoolVal(bool(value)) if count == 2 else z3.BitVecVal(value, (count - 1).bit_length())


def _typed(term: Term, count: int) -> list[z3.BoolRef]:
    return [] if count == 1 << (count - 1).bit_length() else [z3.ULT(term, count)]


def _is_in(term: Term, values: frozenset[int]) -> z3.BoolRef:
    if z3.is_bool(term):
        return z3.BoolVal(True) if len(values) == 2 else term if 1 in values else z3.Not(term)
    return any_of([term == value for value in sorted(values)])


def all_of(parts: Sequence[z3.BoolRef]) -> z3.BoolRef:
    """SMT-LIB knows no `and` of fewer than two."""
    return z3.BoolVal(True) if not parts else parts[0] if len(parts) == 1 else z3.And(parts)


def any_of(parts: Sequence[z3.BoolRef]) -> z3.BoolRef:
    return z3.BoolVal(False) if not parts else parts[0] if len(parts) == 1 else z3.Or(parts)
