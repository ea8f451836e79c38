"""Guards and updates of the declaration, compiled to Python functions of (record, data).

`r` is the record the row is about, `w` its world, `a` the data of the event, `e` the record a quantifier ranges over. Facts are written
out in place; quantifiers over the two tags and the two step slots are unrolled. `source_of` shows what a guard became.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from quiesce.spec import CATALOG, MACHINES
from quiesce.spec.guards import And, Guard, Is, Name, Not, Or, Positive, Quantified, Truth, Update, parse_guard, parse_update
from quiesce.spec.language import BIT, SpecError
from quiesce.spec.vocabulary import Tag
from quiesce.statemachine.records import Record

Data = Mapping[str, Any]
Predicate = Callable[[Record, Data], bool]
Apply = Callable[[Record, Data], None]

SINGLE = ("engine", "weights", "link")
SLOTS = {"0": "w.older", "1": "w.newer", "this": "r"}
UNROLLED = {"memory": tuple(f"w.memory[{tag.value!r}]" for tag in Tag), "step": ("w.older", "w.newer")}
RANGES = {
    "request": "w.requests.values()",
    "member": "r.members.values()",
    "named": "a['requests']",
    "pause_token": "w.pause_token.values()",
    "stream": "w.streams.values()",
    "operation": "w.operations.values()",
}
CONSTANTS = {f"{machine.name}_{state}": state for machine in MACHINES for state in machine.states}
RECORDS = {"member": "request", "named": "request"}


@cache
def compile_guard(machine: str, text: str) -> Predicate | None:
    """The predicate of a guard on a record of this machine; None for `true`.

    Raises:
        SpecError: a name of the guard has no place at run time.
    """
    source = source_of(machine, text)
    return None if source == "True" else _function(f"def guard(r, a):\n    w = r.world\n    return {source}", "guard", text)


def compile_updates(machine: str, texts: tuple[str, ...]) -> Apply | None:
    """One function that applies all updates at once: every value is read before any is written.

    Raises:
        SpecError: a name of an update has no place at run time.
    """
    if not texts:
        return None
    reads, writes = [], []
    for number, update in enumerate(parse_update(text) for text in texts):
        read, write = _update(machine, update, f"v{number}")
        reads += read
        writes += write
    if machine == "request" or any("request[" in text for text in texts):
        writes.append("w.population += 1")
    body = "".join(f"\n    {line}" for line in [*reads, *writes])
    apply: Apply = _function(f"def apply(r, a):\n    w = r.world{body}", "apply", "; ".join(texts))
    return apply


def source_of(machine: str, text: str) -> str:
    """The Python expression a guard becomes."""
    return _expression(machine, parse_guard(text), each="", this="r")


def _function(source: str, name: str, text: str) -> Any:
    scope: dict[str, Any] = {**CONSTANTS, "each_runnable": each_runnable}
    exec(compile(source, f"<spec: {text}>", "exec"), scope)
    return scope[name]


def _expression(machine: str, tree: Guard, each: str, this: str) -> str:
    """`each` is the expression of the record a quantifier binds, `this` that of the record a bare name belongs to."""
    match tree:
        case Truth(value):
            return str(value)
        case Positive(counter):
            return f"w.{counter} > 0"
        case Not(part):
            return f"(not {_expression(machine, part, each, this)})"
        case And(parts):
            return "(" + " and ".join(_expression(machine, part, each, this) for part in parts) + ")"
        case Or(parts):
            return "(" + " or ".join(_expression(machine, part, each, this) for part in parts) + ")"
        case Quantified(universal, domain, body):
            return _quantified(machine, universal, domain, body, this)
        case Is(variable, words):
            return _comparison(machine, variable, words, each, this)
        case Name() as name:
            return _bit_or_fact(machine, name, each, this)
    raise SpecError(f"{tree!r} cannot be compiled")


def each_runnable(requests: Iterable[Record]) -> bool:
    """Whether the fact `runnable` holds for each. What the world remembers of a batch is the answer of this."""
    return bool(_each_runnable()(requests))


@cache
def _each_runnable() -> Callable[[Iterable[Record]], bool]:
    fact = CATALOG.facts["runnable"]
    text = _expression(fact.of, parse_guard(fact.when), each="", this="e")
    scope: dict[str, Any] = dict(CONSTANTS)
    exec(compile(f"def holds(requests):\n    return all({text} for e in requests)", f"<spec: {fact.when}>", "exec"), scope)
    found: Callable[[Iterable[Record]], bool] = scope["holds"]
    return found


def _quantified(machine: str, universal: bool, domain: str, body: Guard, this: str) -> str:
    if domain in UNROLLED:
        parts = [_expression(domain, _own(body), "", record) for record in UNROLLED[domain]]
        return "(" + (" and " if universal else " or ").join(parts) + ")"
    if universal and isinstance(body, Name) and body.name == "runnable" and domain in ("member", "named"):
        return f"w.all_runnable({RANGES[domain].removesuffix('.values()')}, each_runnable)"
    if isinstance(body, Truth):
        return f"bool({RANGES[domain].removesuffix('.values()')})"
    inner = _expression(RECORDS.get(domain, domain), _own(body), "", "e") if this == "r" and not _mentions_this(body) else None
    inner = inner or _expression(machine, body, "e", this)
    return f"{'all' if universal else 'any'}({inner} for e in {RANGES[domain]})"


def _own(tree: Guard) -> Guard:
    """The body of a quantifier, read as a guard about the record it ranges over: `each.x` becomes `x`."""
    match tree:
        case Not(part):
            return Not(_own(part))
        case And(parts):
            return And(tuple(_own(part) for part in parts))
        case Or(parts):
            return Or(tuple(_own(part) for part in parts))
        case Is(Name("", "each", name, slot), words):
            return Is(Name("", "", name, slot), words)
        case Name("each", "", name, slot) | Name("", "each", name, slot):
            return Name("", "", name, slot)
    return tree


def _mentions_this(tree: Guard) -> bool:
    """Whether the body speaks of the slot of the record the row is about (`each.member[this]`)."""
    match tree:
        case Not(part):
            return _mentions_this(part)
        case And(parts) | Or(parts):
            return any(_mentions_this(part) for part in parts)
        case Is(Name(slot=slot), _) | Name(slot=slot):
            return slot == "this"
    return False


def _comparison(machine: str, variable: Name, words: tuple[str, ...], each: str, this: str) -> str:
    if variable.name == "place" and len(words) == 1 and not variable.machine:
        return f"(w.newer is {'' if words == ('newer',) else 'not '}{this})"
    place = _place(machine, variable, each, this)
    if set(words) <= set(BIT) and _is_bit(machine, variable, each):
        return "True" if len(words) == 2 else place if words == ("yes",) else f"(not {place})"
    constants = [_constant(machine, variable, word) for word in words]
    return f"({place} == {constants[0]})" if len(words) == 1 else f"({place} in ({', '.join(constants)}))"


def _constant(machine: str, variable: Name, word: str) -> str:
    """The word as the state's own object, where it is one: comparing an object with itself is the fast case."""
    known = f"{variable.machine or machine}_{word}"
    return known if variable.name == "state" and known in CONSTANTS else repr(word)


def _bit_or_fact(machine: str, name: Name, each: str, this: str) -> str:
    fact = CATALOG.facts.get(name.name)
    if fact is None:
        return _place(machine, name, each, this)
    record = each if name.instance == "each" else this
    return _expression(fact.of or machine, parse_guard(fact.when), each="", this=record if fact.of else this)


def _is_bit(machine: str, variable: Name, each: str) -> bool:
    if variable.machine == "event":
        return False
    owner = "request" if variable.instance == "each" else variable.machine or machine
    values = CATALOG.values(owner, variable.name, variable.slot)
    return values is not None and set(values) == set(BIT)


def _place(machine: str, name: Name, each: str, this: str) -> str:
    """Where a variable lives at run time."""
    if name.machine == "event":
        return f"a[{name.name!r}]"
    if name.name == "member":
        record = each if name.instance == "each" else this
        return f"({record}.key in {SLOTS[name.slot]}.members)"
    if name.instance == "each":
        return f"{each}.{name.name}"
    if not name.machine:
        return f"{this}.{name.name}"
    if name.machine in SINGLE:
        return f"w.{name.machine}.{name.name}"
    if name.machine == "memory":
        return f"w.memory[{name.instance!r}].{name.name}"
    if name.machine == "step":
        return f"{SLOTS[name.instance]}.{name.name}"
    if name.machine == "pause_token":
        return f"w.pause_token[{name.instance!r}].{name.name}"
    raise SpecError(f"{name!r} has no place at run time")


def _update(machine: str, update: Update, value: str) -> tuple[list[str], list[str]]:
    """The lines that read the new value and those that write it."""
    name = update.variable
    if name.name == "member":
        return [], [_member_update(name, update)]
    if name.instance == "*":
        inner = _expression("request", update.value, "e", "e") if not isinstance(update.value, str) else repr(update.value)
        return [f"{value} = [(e, {inner}) for e in w.requests.values()]"], [f"for e, x in {value}: e.{name.name} = x"]
    target = _place(machine, name, "", "r")
    if not isinstance(update.value, str):
        raise SpecError(f"{update!r}: only an update over all requests computes a value")
    if update.value.startswith("event."):
        return [f"{value} = a[{update.value.removeprefix('event.')!r}]"], [f"{target} = {value}"]
    constant = update.value == "yes" if _is_bit(machine, name, "") else update.value
    return [], [f"{target} = {constant!r}"]


def _member_update(name: Name, update: Update) -> str:
    """Members live in the step: `named.member[this]` and `request[*].member[this]` in rows of a step."""
    if name.machine == "named":
        return f"r.{'add' if update.value == 'yes' else 'remove'}_members(a['requests'])"
    if name.instance == "*" and update.value == Truth(False):
        return "r.members = {}"
    raise SpecError(f"{update!r} has no place at run time")
