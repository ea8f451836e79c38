"""The closed grammar of guards and updates. One tree is compiled to Python, drawn on diagrams and handed to the checkers.

    guard    := true | false | not guard | guard and guard | guard or guard | fact | bit
              | variable == word | variable != word | variable in (word, ...) | free > 0
              | all_requests(guard) | any_request(guard)        likewise tokens, tags, steps, streams, operations, members and named; never nested
    variable := name | machine.name | machine[instance].name | each.name | name[slot] | event.name
    update   := variable := word | variable := event.name | request[*].name := guard over each
    joint    := machine[instance].event | machine.event | machine[*].event, optionally with (name=word) or (name=event.name)
    effect   := name | name(word)

`each` is the record a quantifier ranges over; a bare name belongs to the record the row is about; `members` are the requests that a
step names. There is no arithmetic but the one test that a counter is positive, no nesting and no function back into requests: that
is what keeps the proof for any number of requests decidable. Anything else is refused at import.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache

from quiesce.spec.language import SpecError

QUANTIFIERS: dict[str, tuple[bool, str]] = {
    "all_requests": (True, "request"),
    "any_request": (False, "request"),
    "all_members": (True, "member"),
    "any_member": (False, "member"),
    "all_named": (True, "named"),
    "all_tokens": (True, "pause_token"),
    "any_token": (False, "pause_token"),
    "all_tags": (True, "memory"),
    "any_tag": (False, "memory"),
    "all_steps": (True, "step"),
    "any_step": (False, "step"),
    "all_streams": (True, "stream"),
    "any_stream": (False, "stream"),
    "all_operations": (True, "operation"),
    "any_operation": (False, "operation"),
}
"""Quantifier -> (universal, domain). `member` ranges over the requests that the step of the row names, `named` over those that the
event names: a checker lets the event name one request at a time, the engine fires it once for a whole batch."""


@dataclass(frozen=True, slots=True)
class Truth:
    value: bool


@dataclass(frozen=True, slots=True)
class Name:
    """A variable or a fact, as written; `spec/check.py` decides which. `instance`: "" own or only one, "each", a word, or "event.x"."""

    machine: str
    instance: str
    name: str
    slot: str = ""


@dataclass(frozen=True, slots=True)
class Is:
    """The variable has one of these values."""

    variable: Name
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Positive:
    """The counter is above zero."""

    counter: str


@dataclass(frozen=True, slots=True)
class Not:
    part: Guard


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Guard, ...]


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Guard, ...]


@dataclass(frozen=True, slots=True)
class Quantified:
    universal: bool
    domain: str
    body: Guard


Guard = Truth | Name | Is | Positive | Not | And | Or | Quantified
"""A `Name` standing alone as a guard is a fact or a bit."""


@dataclass(frozen=True, slots=True)
class Update:
    """`variable := value`; `value` is a word, an `event.x` name, or (for `request[*]`) a guard over `each`."""

    variable: Name
    value: str | Guard


@dataclass(frozen=True, slots=True)
class Joint:
    """An event of another machine that happens in the same instant."""

    machine: str
    instance: str
    event: str
    data: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class EffectName:
    name: str
    detail: str = ""


@cache
def parse_guard(text: str) -> Guard:
    """The tree of a guard.

    Raises:
        SpecError: the text is not in the grammar.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise SpecError(f"{text!r} is not a guard: {error.msg}") from error
    return _guard(tree, text, quantified=False)


def _guard(node: ast.expr, text: str, quantified: bool) -> Guard:
    match node:
        case ast.Name(id="true" | "false" as word):
            return Truth(word == "true")
        case ast.Name() | ast.Attribute() | ast.Subscript():
            return _name(node, text)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return Not(_guard(part, text, quantified))
        case ast.BoolOp(op=ast.And(), values=parts):
            return And(tuple(_guard(part, text, quantified) for part in parts))
        case ast.BoolOp(op=ast.Or(), values=parts):
            return Or(tuple(_guard(part, text, quantified) for part in parts))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _comparison(left, op, right, text)
        case ast.Call(func=ast.Name(id=quantifier), args=[body], keywords=[]) if quantifier in QUANTIFIERS:
            if quantified:
                raise SpecError(f"{text!r}: a quantifier inside a quantifier")
            universal, domain = QUANTIFIERS[quantifier]
            return Quantified(universal, domain, _guard(body, text, quantified=True))
    raise SpecError(f"{text!r}: {ast.unparse(node)!r} is not in the grammar")


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> Guard:
    match op, right:
        case ast.Gt(), ast.Constant(value=0) if isinstance(left, ast.Name):
            return Positive(left.id)
        case ast.Eq(), ast.Name(id=word):
            return Is(_name(left, text), (word,))
        case ast.NotEq(), ast.Name(id=word):
            return Not(Is(_name(left, text), (word,)))
        case ast.In(), ast.Tuple(elts=words) if words and all(isinstance(word, ast.Name) for word in words):
            return Is(_name(left, text), tuple(word.id for word in words if isinstance(word, ast.Name)))
    raise SpecError(f"{text!r}: compare a variable with a word, or a counter with 0")


def _name(node: ast.expr, text: str) -> Name:
    match node:
        case ast.Name(id=name):
            return Name("", "", name)
        case ast.Subscript(value=ast.Name(id=name), slice=slot):
            return Name("", "", name, _index(slot, text))
        case ast.Attribute(value=ast.Name(id="each"), attr=name):
            return Name("", "each", name)
        case ast.Subscript(value=ast.Attribute(value=ast.Name(id="each"), attr=name), slice=slot):
            return Name("", "each", name, _index(slot, text))
        case ast.Attribute(value=ast.Name(id=machine), attr=name):
            return Name(machine, "", name)
        case ast.Subscript(value=ast.Attribute(value=ast.Name(id=machine), attr=name), slice=slot):
            return Name(machine, "", name, _index(slot, text))
        case ast.Attribute(value=ast.Subscript(value=ast.Name(id=machine), slice=instance), attr=name):
            return Name(machine, _index(instance, text), name)
        case ast.Subscript(value=ast.Attribute(value=ast.Subscript(value=ast.Name(id=machine), slice=instance), attr=name), slice=slot):
            return Name(machine, _index(instance, text), name, _index(slot, text))
    raise SpecError(f"{text!r}: {ast.unparse(node)!r} names nothing")


def _index(node: ast.expr, text: str) -> str:
    match node:
        case ast.Name(id=word):
            return word
        case ast.Constant(value=int(number)):
            return str(number)
        case ast.Attribute(value=ast.Name(id="event"), attr=name):
            return f"event.{name}"
    raise SpecError(f"{text!r}: {ast.unparse(node)!r} is not an instance")


_UPDATE = re.compile(r"(?P<all>request\[\*\]\.)?(?P<variable>.+?) := (?P<value>.+)")
_JOINT = re.compile(r"(?P<machine>\w+)(\[(?P<instance>[\w.*]+)\])?\.(?P<event>\w+)(\((?P<name>\w+)=(?P<word>[\w.]+)\))?")
_EFFECT = re.compile(r"(?P<name>\w+)(\((?P<detail>\w+)\))?")


def parse_update(text: str) -> Update:
    """The update a text says.

    Raises:
        SpecError: the text is not in the grammar.
    """
    found = _UPDATE.fullmatch(text)
    if not found:
        raise SpecError(f"{text!r} is not an update: write `variable := value`")
    variable = parse_guard(found["variable"])
    if not isinstance(variable, Name):
        raise SpecError(f"{text!r}: {found['variable']!r} is not a variable")
    value = found["value"]
    if found["all"]:
        return Update(Name("request", "*", variable.name, variable.slot), parse_guard(value))
    if not re.fullmatch(r"(event\.)?\w+", value):
        raise SpecError(f"{text!r}: {value!r} is neither a word nor data of the event")
    return Update(variable, value)


def parse_joint(text: str) -> Joint:
    """The joint move a text says.

    Raises:
        SpecError: the text is not in the grammar.
    """
    found = _JOINT.fullmatch(text)
    if not found:
        raise SpecError(f"{text!r} is not a joint move: write `machine[instance].event`")
    data = ((found["name"], found["word"]),) if found["name"] else ()
    return Joint(found["machine"], found["instance"] or "", found["event"], data)


def parse_effect(text: str) -> EffectName:
    """The effect a text names.

    Raises:
        SpecError: the text is not in the grammar.
    """
    found = _EFFECT.fullmatch(text)
    if not found:
        raise SpecError(f"{text!r} is not an effect: write `name` or `name(word)`")
    return EffectName(found["name"], found["detail"] or "")
