"""Requests are interchangeable: nothing in the tables tells one from another. So a search need not tell them apart either.

That is not assumed: `Symmetry` renames requests throughout a model and looks whether the same model comes out. Then two states that
differ in the order of requests only have the same future up to that order, and one of them, the one with sorted requests, stands for
all (Clarke, Enders, Filkorn, Jha 1996). A promise that names a request is judged in the sorted state together with its namesakes for
the other requests: if it is broken somewhere, one of them is broken in the sorted state. Where they are not all there, `check`
refuses. What is found is told of real requests again (`stories`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Mapping, Sequence

from quiesce.proofs.expr import All, Any, Const, Expr, Free, In, Neg
from quiesce.proofs.model import Action, Model
from quiesce.proofs.search import compile_assigns

INDEXED = re.compile(r"\b(request|stream|session)\[(\d+)\]|\b(requests=)(\d+)")
"""How an instance of an interchangeable machine is written, in names of variables, actions, effects and properties."""
Renaming = tuple[int, ...]
"""For each request, the one that takes its place."""


class NotSymmetric(ValueError):
    """The world, or what is judged in it, tells requests apart."""


def renamed(text: str, renaming: Renaming) -> str:
    """A name with other requests in it."""

    def other(match: re.Match[str]) -> str:
        machine, number, argument, value = match.groups()
        return f"{machine}[{renaming[int(number)]}]" if machine else f"{argument}{renaming[int(value)]}"

    return INDEXED.sub(other, text)


def namesake(promise: str, renaming: Renaming) -> str:
    """The promise of the same name about another request: `L1_answered[1]` for `L1_answered[0]`."""
    return re.sub(r"\[(\d+)\]$", lambda match: f"[{renaming[int(match.group(1))]}]", promise)


def moved(tree: Expr, places: Sequence[int]) -> Hashable:
    """What a tree says with other variables in the places of its own; equal for trees that differ in the order of their parts."""
    match tree:
        case Const(value):
            return value
        case In(variable, values):
            return ("in", places[variable], values)
        case Free(states, holding, capacity):
            return ("free", frozenset(places[state] for state in states), holding, capacity)
        case Neg(part):
            return ("not", moved(part, places))
        case All(parts):
            return ("all", frozenset(moved(part, places) for part in parts))
        case Any(parts):
            return ("any", frozenset(moved(part, places) for part in parts))


class Symmetry:
    """A model that stays the same when its requests are renamed.

    Raises:
        NotSymmetric: renamed, it is another model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        columns: dict[int, list[int]] = {}
        for place, variable in enumerate(model.variables):
            if found := INDEXED.match(variable.name):
                columns.setdefault(int(found.group(2)), []).append(place)
        self._of_one: set[str] = set()
        """Names of promises that speak of one request."""
        self.columns = tuple(tuple(columns[number]) for number in sorted(columns))
        """The variables of each request, in the same order for each."""
        self.identity = tuple(range(len(self.columns)))
        numbers = {self._signature(action, self.identity): number for number, action in enumerate(model.actions)}
        self._swaps = [
            (*self.identity[:first], first + 1, first, *self.identity[first + 2 :]) for first in range(len(self.columns) - 1)
        ]
        """Neighbours exchanged: every renaming is made of these."""
        self._actions = [[numbers.get(self._signature(action, swap), -1) for action in model.actions] for swap in self._swaps]
        """For each swap, what each action becomes."""
        for swap, actions in zip(self._swaps, self._actions, strict=True):
            if any(model.initial[place] != model.initial[other] for place, other in enumerate(self.places(swap))):
                raise NotSymmetric(f"{model.name}: the initial state tells requests apart")
            if -1 in actions:
                raise NotSymmetric(f"{model.actions[actions.index(-1)].name}: no other request has the like")

    def places(self, renaming: Renaming) -> tuple[int, ...]:
        """For each variable, the one that takes its place."""
        found = list(range(len(self.model.variables)))
        for number, column in enumerate(self.columns):
            for mine, theirs in zip(column, self.columns[renaming[number]], strict=True):
                found[mine] = theirs
        return tuple(found)

    def _signature(self, action: Action, renaming: Renaming) -> Hashable:
        """All that matters of an action, with other requests in it."""
        places = self.places(renaming)
        assigns: dict[int, tuple[Hashable, ...]] = {}
        for one in action.assigns:
            place, source = places[one.variable], None if one.source is None else places[one.source]
            assigns[place] = (*assigns.get(place, ()), (moved(one.when, places), one.value, source))
        effects = tuple(sorted(renamed(text, renaming) for text in action.effects))
        return (renamed(action.name, renaming), action.row, moved(action.guard, places), frozenset(assigns.items()), effects)

    def check(self, always: Mapping[str, Expr], moves: Mapping[str, Mapping[int, Expr]]) -> None:
        """Looks whether what is said of one request is said of each, under the same name but for the number at its end.

        Raises:
            NotSymmetric: it is not.
        """
        here, everywhere = self.places(self.identity), -1
        trees = {**{name: {everywhere: tree} for name, tree in always.items()}, **moves}
        said = {name: {number: moved(tree, here) for number, tree in one.items()} for name, one in trees.items()}
        for swap, actions in zip(self._swaps, self._actions, strict=True):
            places = self.places(swap)
            for name, one in trees.items():
                other = {
                    number if number == everywhere else actions[number]: moved(tree, places) for number, tree in one.items()
                }
                if other != said[name]:
                    self._of_one.add(name)
                    if other != said.get(namesake(name, swap)):
                        raise NotSymmetric(f"{name}: is not said of every request")

    def stories(self, broken: str, actions: Sequence[int], of_move: bool) -> dict[str, tuple[str, ...]]:
        """A way through sorted states, told of real requests: for the broken promise and for each of its namesakes."""
        found: dict[str, tuple[str, ...]] = {}
        orders = self._orders(actions[:-1] if of_move else actions)
        for renaming in itertools.permutations(self.identity):
            real = [tuple(renaming[column] for column in order) for order in orders]
            story = tuple(renamed(self.model.actions[number].name, here) for number, here in zip(actions, real, strict=False))
            found.setdefault(namesake(broken, real[-1]) if broken in self._of_one else broken, story)
        return found

    def _orders(self, actions: Sequence[int]) -> list[Renaming]:
        """Before each action and after the last one: which request, by its number at the beginning, is in each place."""
        state, order = self.model.initial, self.identity
        found = [order]
        for number in actions:
            after = compile_assigns(self.model.actions[number].assigns)(state)
            columns = [tuple(after[place] for place in column) for column in self.columns]
            sorting = sorted(self.identity, key=lambda column, columns=columns: columns[column])  # type: ignore[misc]
            state = self._with([columns[column] for column in sorting], after)
            order = tuple(order[column] for column in sorting)
            found.append(order)
        return found

    def _with(self, columns: Sequence[Sequence[int]], state: Sequence[int]) -> tuple[int, ...]:
        found = list(state)
        for column, values in zip(self.columns, columns, strict=True):
            for place, value in zip(column, values, strict=True):
                found[place] = value
        return tuple(found)

    def evened(self, fired: Sequence[int]) -> tuple[int, ...]:
        """How often each action is taken in the whole graph, from how often in sorted states, each counted as often as it stands for.

        Renamings of an action share: a sorted state takes one of them where another order takes another.
        """
        kin = list(range(len(fired)))
        for _ in self.columns:
            for actions in self._actions:
                for number, other in enumerate(actions):
                    kin[number] = kin[other] = min(kin[number], kin[other])
        members: dict[int, list[int]] = {}
        for number, first in enumerate(kin):
            members.setdefault(first, []).append(number)
        return tuple(sum(fired[other] for other in members[first]) // len(members[first]) for first in kin)
