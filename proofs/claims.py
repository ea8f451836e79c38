"""What promises on moves are made of: guards of one world, the data and effects of an action, what holds after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from quiesce.proofs.after import after, implies
from quiesce.proofs.expr import TRUE, Expr, conj, neg
from quiesce.proofs.model import Action, Builder


@dataclass(slots=True)
class View:
    """One world, as promises see it."""

    builder: Builder
    _guards: dict[tuple[str, str, str], Expr] = field(default_factory=dict)

    def guard(self, text: str, machine: str = "engine", instance: str = "") -> Expr:
        """A guard in the words of the tables; a bare name belongs to this instance."""
        key = (text, machine, instance)
        if key not in self._guards:
            self._guards[key] = self.builder.guard(machine, instance, text)
        return self._guards[key]


Claim = Callable[[View, Action, str], Expr]
"""What must hold before an action, said of one instance; true of actions that it does not concern."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise on moves: its name in `spec/properties.py`, the machine whose instances it is about, and what it demands."""

    name: str
    machine: str
    claim: Claim


def carried(action: Action) -> dict[str, str]:
    """The data of an action's event: its name says them."""
    return dict(re.findall(r"(\w+)=(\w+)", action.name))


def effects(action: Action, word: str) -> int:
    """How many effects of an action begin with this word: `request[0].terminal`, `new_version` of whatever machine."""
    return sum(text.startswith(word) if "." in word else text.partition(".")[2].startswith(word) for text in action.effects)


def happens(action: Action, machine: str, *events: str) -> bool:
    """Whether the action is one of these events."""
    return action.machine == machine and action.event.name in events


def never(action: Action, before: Expr, then: Expr) -> Expr:
    """No move from where `before` holds, and `then` does not, to where `then` holds: true if the action writes nothing that `then` reads."""
    arrived = after(action, then)
    return TRUE if arrived == then else neg(conj([before, arrived]))


def only(view: View, action: Action, moves: Mapping[str, Collection[str]], machine: str, instance: str) -> Expr:
    """The state of an instance moves along these pairs."""
    claims = []
    for source, targets in moves.items():
        legal = view.guard(f"state in ({', '.join((source, *targets))},)", machine, instance)
        if after(action, legal) != legal:
            claims.append(implies(view.guard(f"state == {source}", machine, instance), after(action, legal)))
    return conj(claims)
