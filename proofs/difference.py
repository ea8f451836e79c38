"""Where two models of the same variables do different things: a predicate on the states of the one.

If it holds in no state that the one can reach, both have the same graph: they start in the same state, and from every state they reach
together they go on by the same actions to the same states, with the same effects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quiesce.proofs.after import after, same
from quiesce.proofs.expr import Expr, In, conj, disj, neg
from quiesce.proofs.model import Action, Model

BOUND = "request[each]"
"""Where the number of requests is open, what is written of every request is written of `this` one, which may be any."""


def difference(one: Model, other: Model) -> Expr:
    """Holds where an action of one name can be taken in one of them only, leads elsewhere, or has other effects."""
    parts: list[Expr] = []
    left, right = _by_name(one.actions), _by_name(other.actions)
    for name in {**left, **right}:
        ours, theirs = left.get(name, []), right.get(name, [])
        if [_told(action) for action in ours] == [_told(action) for action in theirs]:
            continue
        taken, also = (disj([action.guard for action in actions]) for actions in (ours, theirs))
        parts.append(neg(same(taken, also)))
        parts += [_apart(one, mine, yours) for mine in ours for yours in theirs]
    return disj(parts)


def _told(action: Action) -> tuple[object, ...]:
    return action.guard, action.assigns, action.effects


def _by_name(actions: Sequence[Action]) -> dict[str, list[Action]]:
    found: dict[str, list[Action]] = {}
    for action in actions:
        found.setdefault(action.name, []).append(action)
    return found


def _apart(model: Model, one: Action, other: Action) -> Expr:
    """Both can be taken, and do not do the same."""
    both = conj([one.guard, other.guard])
    return both if sorted(one.effects) != sorted(other.effects) else conj([both, disj(list(_elsewhere(model, one, other)))])


def _elsewhere(model: Model, one: Action, other: Action) -> Iterator[Expr]:
    for variable in sorted({assign.variable for action in (one, other) for assign in action.assigns}):
        if model.variables[variable].name.startswith(BOUND):
            continue
        for value in range(len(model.variables[variable].values)):
            here = In(variable, frozenset({value}))
            ours, theirs = after(one, here), after(other, here)
            if ours != theirs:
                yield conj([ours, neg(theirs)])


def changed_actions(one: Model, other: Model) -> list[int]:
    """Actions of the other that the one does not have just so."""
    known: dict[str, list[tuple[object, ...]]] = {
        name: [_told(action) for action in actions] for name, actions in _by_name(one.actions).items()
    }
    return [number for number, action in enumerate(other.actions) if _told(action) not in known.get(action.name, [])]
