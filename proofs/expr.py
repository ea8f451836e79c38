"""Guards as small trees over numbered variables: what every printer (Python, C, Promela, solvers) reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Const:
    value: bool


@dataclass(frozen=True, slots=True)
class In:
    """The variable has one of these values (places in its list)."""

    variable: int
    values: frozenset[int]


@dataclass(frozen=True, slots=True)
class Free:
    """Fewer than `capacity` requests hold a block: these variables are their states, `holding` the places of the states that hold."""

    states: tuple[int, ...]
    holding: frozenset[int]
    capacity: int


@dataclass(frozen=True, slots=True)
class Neg:
    part: Expr


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Any:
    parts: tuple[Expr, ...]


Expr = Const | In | Free | Neg | All | Any
TRUE, FALSE = Const(True), Const(False)


def neg(part: Expr) -> Expr:
    match part:
        case Const(value):
            return Const(not value)
        case Neg(inner):
            return inner
    return Neg(part)


def conj(parts: Sequence[Expr]) -> Expr:
    kept = [part for part in parts if part != TRUE]
    if FALSE in kept:
        return FALSE
    return TRUE if not kept else kept[0] if len(kept) == 1 else All(tuple(kept))


def disj(parts: Sequence[Expr]) -> Expr:
    kept = [part for part in parts if part != FALSE]
    if TRUE in kept:
        return TRUE
    return FALSE if not kept else kept[0] if len(kept) == 1 else Any(tuple(kept))
