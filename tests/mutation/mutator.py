"""Small wrong changes of a source file, one at a time: what a slip of the hand could have left there.

A mutant is one replaced node of the syntax tree. Left alone are annotations, docstrings, imports, texts of errors and of the log, and what
only a type checker runs.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Change = Callable[[Any], list[ast.AST]]
"""What a node of some type may become."""
N = TypeVar("N", bound=ast.AST)

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
SWAPPED = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "minimum": "maximum",
    "maximum": "minimum",
}
UNWRAPPED = ("reversed", "list", "sorted", "set", "tuple", "int", "bool", "dict")
"""Calls of one argument that may be taken off it."""
NEGATED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
"""Comparisons whose one replacement is their negation."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change. Its line moves when the file is edited; function, before, after and `nth` find it again."""

    file: str
    line: int
    function: str
    before: str
    after: str
    nth: int
    """Which of those that read alike in this function, from 0."""

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line} {self.before} -> {self.after}"

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        return self.file, self.function, self.before, self.after, self.nth


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a tree, and what else could stand there. `place` is None where the field holds one node."""

    owner: ast.AST
    field: str
    place: int | None
    node: ast.AST
    function: str
    replacement: ast.AST | None
    """None: taken out of the list."""

    def apply(self) -> None:
        if self.place is None:
            setattr(self.owner, self.field, self.replacement)
        elif self.replacement is None:
            del getattr(self.owner, self.field)[self.place]
        else:
            getattr(self.owner, self.field)[self.place] = self.replacement

    @property
    def words(self) -> tuple[str, str]:
        """The change as people read it."""
        sign = "@" if self.field == "decorator_list" else "if " if self.field == "ifs" else ""
        return sign + _text(self.node), "nothing" if self.replacement is None else _text(self.replacement)


def mutants_of(file: str, source: str) -> list[Mutant]:
    """All mutants of a file, from its top to its bottom."""
    return [mutant for mutant, _ in _with_sites(file, ast.parse(source))]


def mutated(mutant: Mutant, source: str) -> ast.Module:
    """The file with the change in it.

    Raises:
        LookupError: the source has no such place any more.
    """
    tree = ast.parse(source)
    for other, site in _with_sites(mutant.file, tree):
        if other.identity == mutant.identity:
            site.apply()
            return ast.fix_missing_locations(tree)
    raise LookupError(f"{mutant.name} is not there any more")


def _with_sites(file: str, tree: ast.Module) -> Iterator[tuple[Mutant, Site]]:
    seen = Counter[tuple[str, str, str]]()
    for site in list(_sites(tree, "", None)):
        before, after = site.words
        nth = seen[site.function, before, after]
        seen[site.function, before, after] += 1
        yield Mutant(file, site.node.lineno, site.function, before, after, nth), site  # type: ignore[attr-defined]


def _sites(owner: ast.AST, function: str, scope: ast.AST | None) -> Iterator[Site]:
    for field, value in ast.iter_fields(owner):
        if field in ("annotation", "returns", "bases", "type_comment"):
            continue
        nodes = [(place, node) for place, node in enumerate(value)] if isinstance(value, list) else [(None, value)]
        for place, node in nodes:
            if not isinstance(node, ast.AST) or _is_left_alone(node):
                continue
            for replacement in _changes(node, scope):
                yield Site(owner, field, place, node, function, replacement)
            if field in ("decorator_list", "ifs"):
                yield Site(owner, field, place, node, function, None)
            if field == "decorator_list" or isinstance(node, ast.Raise):
                continue
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield from _sites(node, f"{function}.{node.name}".lstrip("."), node)
            else:
                yield from _sites(node, function, scope)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _text(node).startswith("logger.")
    if isinstance(node, ast.Assign):  # a type's name
        return isinstance(node.value, ast.Subscript) and _text(node.value).startswith(("tuple[", "Callable["))
    return isinstance(node, ast.If) and _text(node.test) == "TYPE_CHECKING"


def _changes(node: ast.AST, scope: ast.AST | None) -> list[ast.AST]:
    found = _CHANGES[type(node)](node) if type(node) in _CHANGES else []
    if isinstance(node, (ast.If, ast.While, ast.IfExp)) and not _has_a_negation(node.test):
        found.append(_with(node, test=ast.UnaryOp(ast.Not(), node.test)))
    returns = scope.returns if isinstance(scope, ast.FunctionDef) else None
    if isinstance(node, ast.Return) and node.value is not None and returns is not None and _text(returns) == "bool":
        if not _has_a_negation(node.value):
            found.append(_with(node, value=ast.UnaryOp(ast.Not(), node.value)))
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        found.append(_with(node, value=ast.Constant(None)))
    return found


def _has_a_negation(test: ast.AST) -> bool:
    """Whether another mutant of this expression is its negation already."""
    return (
        isinstance(test, ast.Constant)
        or (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not))
        or (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], NEGATED))
    )


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _with(node: N, **fields: Any) -> N:
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _compare(node: ast.Compare) -> list[ast.AST]:
    return [
        _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])
        for place, op in enumerate(node.ops)
        for other in COMPARISONS[type(op)]
    ]


def _bool(node: ast.BoolOp) -> list[ast.AST]:
    found: list[ast.AST] = [_with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())]
    for place in range(len(node.values)):
        rest = node.values[:place] + node.values[place + 1 :]
        found.append(rest[0] if len(rest) == 1 else _with(node, values=rest))
    return found


def _arithmetic(node: ast.BinOp | ast.AugAssign) -> list[ast.AST]:
    found: list[ast.AST] = [_with(node, op=ARITHMETIC[type(node.op)]())] if type(node.op) in ARITHMETIC else []
    return [*found, ast.copy_location(ast.Pass(), node)] if isinstance(node, ast.AugAssign) else found


def _constant(node: ast.Constant) -> list[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        return [_with(node, value=not value)]
    if not isinstance(value, (int, float)):
        return []
    return [_with(node, value=value + 1), *([_with(node, value=value - 1)] if value else [])]


def _assign(node: ast.Assign | ast.AnnAssign) -> list[ast.AST]:
    """A lost assignment, where a name would not merely be missing."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    lost = node.value is not None and all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets)
    return [ast.copy_location(ast.Pass(), node)] if lost else []


def _call(node: ast.Call) -> list[ast.AST]:
    match node.func:
        case ast.Name(name) if name in UNWRAPPED and len(node.args) == 1 and not node.keywords:
            return [node.args[0]]
        case ast.Name(name) if name in SWAPPED:
            return [_with(node, func=ast.copy_location(ast.Name(SWAPPED[name], ast.Load()), node.func))]
        case ast.Attribute(attr=name) if name in SWAPPED:
            return [_with(node, func=_with(node.func, attr=SWAPPED[name]))]
    return []


_CHANGES: dict[type[ast.AST], Change] = {
    ast.Compare: _compare,
    ast.BoolOp: _bool,
    ast.UnaryOp: lambda node: [node.operand] if isinstance(node.op, (ast.Not, ast.USub)) else [],
    ast.BinOp: _arithmetic,
    ast.AugAssign: _arithmetic,
    ast.Constant: _constant,
    ast.Assign: _assign,
    ast.AnnAssign: _assign,
    ast.Call: _call,
    ast.Expr: lambda node: [ast.copy_location(ast.Pass(), node)] if isinstance(node.value, ast.Call) else [],
    ast.Delete: lambda node: [ast.copy_location(ast.Pass(), node)],
    ast.Raise: lambda node: [ast.copy_location(ast.Pass(), node)],
    ast.Break: lambda node: [ast.copy_location(ast.Continue(), node)],
    ast.Continue: lambda node: [ast.copy_location(ast.Break(), node)],
}


def _text(node: ast.AST) -> str:
    """A node in one line; of a statement with a body only its head."""
    if isinstance(node, (ast.If, ast.While)):
        return f"{type(node).__name__.lower()} {ast.unparse(ast.fix_missing_locations(node.test))}:"
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
