"""What holds after an action, said of the state before it (the weakest precondition; Dijkstra, "A Discipline of Programming", 1976)."""

from __future__ import annotations

from quiesce.proofs.expr import FALSE, TRUE, All, Any, Const, Expr, Free, In, Neg, conj, disj, neg
from quiesce.proofs.model import Action, Assign


def after(action: Action, tree: Expr) -> Expr:
    """`tree` in the state the action leads to. A tree without quantifiers whose bits are defined apart (`proofs/unbounded.py`).

    Raises:
        ValueError: the tree counts blocks.
    """
    match tree:
        case Const():
            return tree
        case In(variable, values):
            found: Expr = tree
            for one in action.assigns:
                if one.variable == variable:
                    found = either(one.when, _lands_in(one, values), found)
            return found
        case Neg(part):
            return neg(after(action, part))
        case All(parts):
            return conj([after(action, part) for part in parts])
        case Any(parts):
            return disj([after(action, part) for part in parts])
        case Free():
            raise ValueError("a number of blocks is not said of the state after")


def _lands_in(one: Assign, values: frozenset[int]) -> Expr:
    return In(one.source, values) if one.source is not None else Const(one.value in values)


def either(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`yes` where the condition holds, else `no`."""
    if condition == TRUE or yes == no:
        return yes
    return no if condition == FALSE else disj([conj([condition, yes]), conj([neg(condition), no])])


def same(left: Expr, right: Expr) -> Expr:
    """Both hold or neither."""
    return TRUE if left == right else either(left, right, neg(right))


def implies(condition: Expr, claim: Expr) -> Expr:
    return disj([neg(condition), claim])
