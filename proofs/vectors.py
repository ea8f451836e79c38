"""The states of a world as columns of numbers: a predicate is asked of all of them at once (numpy).

A third way to search, printed from nothing: guards and assignments are read as they are, level by level. It keeps every state, so that
thousands of predicates can be asked of the same world, which is what a campaign of mutants does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from quiesce.proofs.expr import All, Any, Const, Expr, Free, In, Neg
from quiesce.proofs.model import Action, Model

Bits = NDArray[np.bool_]
Columns = NDArray[np.uint8]
"""One row for each variable, one column for each state."""


def holds(tree: Expr, columns: Columns, known: dict[Expr, Bits] | None = None) -> Bits:
    """In which states a tree holds. `known` remembers the tests of single variables that were asked of these columns before."""
    if known is not None and tree in known:
        return known[tree]
    match tree:
        case Const(value):
            found = np.full(columns.shape[1], value)
        case In(variable, values):
            chosen = np.zeros(256, np.bool_)
            chosen[list(values)] = True
            found = chosen[columns[variable]]
        case Free(states, holding, capacity):
            held = [np.isin(columns[state], list(holding)) for state in states]
            found = np.sum(held, axis=0) < capacity
        case Neg(part):
            found = ~holds(part, columns, known)
        case All(parts):
            found = reduce(np.logical_and, (holds(part, columns, known) for part in parts))
        case Any(parts):
            found = reduce(np.logical_or, (holds(part, columns, known) for part in parts))
    if known is not None and isinstance(tree, In):
        known[tree] = found
    return found


def taken(action: Action, columns: Columns) -> Columns:
    """The states after an action; all conditions and copies are read before it."""
    after = columns.copy()
    for one in action.assigns:
        when = holds(one.when, columns)
        after[one.variable, when] = columns[one.source, when] if one.source is not None else one.value
    return after


@dataclass(slots=True)
class Table:
    """Every state of a world, in the order of their distance from the initial one."""

    model: Model
    columns: Columns
    num_edges: int
    parent: NDArray[np.int64]
    by: NDArray[np.int64]
    """The action that led from `parent` here."""
    known: dict[Expr, Bits] = field(default_factory=dict)

    def where(self, tree: Expr) -> NDArray[np.int64]:
        """The states in which a tree holds, the nearest first."""
        return np.flatnonzero(holds(tree, self.columns, self.known))

    def way(self, state: int) -> list[int]:
        """The actions on a shortest way to a state."""
        found: list[int] = []
        while state:
            found.append(int(self.by[state]))
            state = int(self.parent[state])
        return found[::-1]


def explore(model: Model) -> Table:
    """Every reachable state, where everything may happen at any time.

    Raises:
        ValueError: a state does not fit 64 bits.
    """
    sizes = [len(variable.values) for variable in model.variables]
    if math.prod(sizes) >= 1 << 64:
        raise ValueError("a state of this world takes more than 64 bits")
    weights = np.array([math.prod(sizes[place + 1 :]) for place in range(len(sizes))], np.uint64)
    level: Columns = np.array(model.initial, np.uint8)[:, None]
    seen = _packed(level, weights)
    levels, parents, actions, edges, start = [level], [np.zeros(1, np.int64)], [np.full(1, -1)], 0, 0
    while level.shape[1]:
        keys, places, numbers = [], [], []
        known: dict[Expr, Bits] = {}
        for number, action in enumerate(model.actions):
            here = np.flatnonzero(holds(action.guard, level, known))
            edges += len(here)
            keys.append(_packed(taken(action, level[:, here]), weights))
            places.append(here + start)
            numbers.append(np.full(len(here), number))
        key, first = np.unique(np.concatenate(keys), return_index=True)
        new = ~np.isin(key, seen, assume_unique=True)
        key, first = key[new], first[new]
        seen = np.concatenate([seen, key])
        start += level.shape[1]
        level = _unpacked(key, sizes)
        levels.append(level)
        parents.append(np.concatenate(places)[first])
        actions.append(np.concatenate(numbers)[first])
    return Table(model, np.concatenate(levels, axis=1), edges, np.concatenate(parents), np.concatenate(actions))


def _packed(columns: Columns, weights: NDArray[np.uint64]) -> NDArray[np.uint64]:
    found = np.zeros(columns.shape[1], np.uint64)
    for column, weight in zip(columns, weights, strict=True):
        found += column.astype(np.uint64) * weight
    return found


def _unpacked(keys: NDArray[np.uint64], sizes: list[int]) -> Columns:
    columns = np.empty((len(sizes), len(keys)), np.uint8)
    rest = keys.copy()
    for place in range(len(sizes) - 1, -1, -1):
        rest, value = np.divmod(rest, np.uint64(sizes[place]))
        columns[place] = value
    return columns
