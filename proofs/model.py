"""The declaration as a finite model: variables with few values, and actions that read and write them. Everything else is made from it.

A *world* says which machines are in it and how many instances each has. Every row becomes actions, one for each instance and each
value of the event's data; quantifiers are written out, joint moves are folded in. A guard is a small tree (`Expr`), an action a guard
and assignments that all read the state before. Python, C, Promela and the solvers are printed from these trees and from nothing else.

What is left out, and why it is sound: the order and age of requests (`oldest` is never true of who is preempted, so that anybody may
be), numbers of blocks (one block to a request, `capacity` in all), tokens, versions and times. An ended request is an absent one, a
retired or dropped step an empty slot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from quiesce.proofs.expr import FALSE, TRUE, Expr, conj, disj, neg
from quiesce.proofs.guards import SAME, Reader, Variable, full_name
from quiesce.proofs.world import CARRIED, NARROWED, World
from quiesce.spec import CATALOG
from quiesce.spec.check import decided
from quiesce.spec.guards import Joint, Name, parse_effect, parse_joint, parse_update
from quiesce.spec.language import Event, Ignored, Machine, Owner, Refused, Row, SpecError
from quiesce.spec.vocabulary import TokenOwner

__all__ = ["Action", "Assign", "Builder", "Model", "Variable", "build", "is_patient"]


@dataclass(frozen=True, slots=True)
class Assign:
    """`variable := value` where `when` holds in the state before; `source` instead of a value copies another variable."""

    when: Expr
    variable: int
    value: int = 0
    source: int | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """One way in which an event can happen."""

    name: str
    """`request[0].abort`, `engine.sleep(mode=keep, weights=none, kv_cache=discard)`."""
    event: Event
    machine: str
    instance: str
    row: int
    """The row's place in its table; several for the same event are told apart by it. -1: a message that the tables ignore."""
    guard: Expr
    assigns: tuple[Assign, ...]
    effects: tuple[str, ...] = ()
    """With the instance that minted them: `request[0].free_blocks(drop)`."""
    request: str = ""
    """The request that the event names, where it names one: the step's `plan`, `strip_members`."""

    @property
    def fair_name(self) -> str:
        """Fairness belongs to the event of one instance; where the event names a request it is due to that request, in whatever slot."""
        return (
            f"{self.machine}.{self.event.name}({self.request})"
            if self.request
            else f"{self.machine}[{self.instance}].{self.event.name}"
        )


@dataclass(slots=True)
class Model:
    """Variables, actions and the initial state of one world."""

    name: str
    variables: list[Variable]
    initial: tuple[int, ...]
    actions: list[Action] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)

    def show(self, state: Sequence[int]) -> dict[str, str]:
        """What differs from the initial state."""
        return {
            variable.name: variable.values[value]
            for variable, value, began in zip(self.variables, state, self.initial, strict=True)
            if value != began
        }


class Builder(Reader):
    """Turns the tables into a model of one world."""

    def __init__(self, world: World, machines: Mapping[str, Machine] | None = None) -> None:
        super().__init__(world, machines)
        self.model = Model(world.name, self.variables, tuple(self.initial), place=self.place)
        declared = [CATALOG.machines[name] for name in self.machines if name in CATALOG.machines]  # a mutant may join less
        tables = (*self.machines.values(), *declared)
        joints = [joint for machine in tables for row in machine.rows for joint in map(parse_joint, row.also)]
        around = world.surroundings
        self._left_out = world.without | around.left_out
        own = {machine.name for machine in around.machines}
        joined = [parse_joint(text) for texts in (*around.joins.values(), around.messages.values()) for text in texts]
        self._joint_only = {(joint.machine, joint.event) for joint in (*joints, *(one for one in joined if one.machine in own))}

    def build(self) -> Model:
        for name, machine in self.machines.items():
            for event in machine.events:
                if (name, str(event.name)) in self._joint_only or f"{name}.{event.name}" in self._left_out:
                    continue
                for instance in self.world.instances[name]:
                    for data in self._data(event):
                        self.model.actions += self._actions(name, instance, event, data)
        return self.model

    # ---- rows to actions ----------------------------------------------------------------------------------------------------

    def _data(self, event: Event) -> Iterator[dict[str, str]]:
        choices = []
        for name in event.takes:
            if name == "owner":
                reserved = {owner.value for owner in TokenOwner if owner is not TokenOwner.caller}
                choices.append([owner for owner in self.world.instances["pause_token"] if owner not in reserved])
            elif name == "requests":
                choices.append(list(self.world.instances["request"]))
            else:
                choices.append(
                    [
                        str(value)
                        for value in self.world.carried.get(name) or NARROWED.get((str(event.name), name), CARRIED[name])
                    ]
                )
        for values in itertools.product(*choices):
            yield dict(zip(event.takes, values, strict=True))

    def _actions(self, name: str, instance: str, event: Event, data: Mapping[str, str]) -> Iterator[Action]:
        if f"{name}.{event.name}" in self.world.surroundings.patient:
            event = replace(event, owner=Owner.operator)
        carried = ", ".join(f"{key}={value}" for key, value in data.items())
        title = f"{full_name(name, instance, event.name)}({carried})" if carried else full_name(name, instance, event.name)
        for row, here in self._rows(name, instance, str(event.name), data):
            move = self._folded(name, instance, row, data, here)
            if move is None or move[0] == FALSE:
                continue
            guard, assigns, effects = move
            number = self.machines[name].rows.index(row)
            yield Action(title, event, name, instance, number, guard, tuple(assigns), tuple(effects), data.get("requests", ""))
        if f"{name}.{event.name}" in self.world.surroundings.messages:
            allowed, assigns, effects = self._joined(name, instance, [f"{name}.{event.name}"], data)
            thrown_away = conj([self._is_thrown_away(name, instance, str(event.name), data), *allowed])
            yield Action(f"{title} thrown away", event, name, instance, -1, thrown_away, tuple(assigns), tuple(effects))

    def _is_thrown_away(self, name: str, instance: str, event: str, data: Mapping[str, str]) -> Expr:
        """When no row is taken and the tables say why that is harmless."""
        states = [
            self._is(name, instance, "state", (state,))
            for state, entries in decided(self.machines[name], event).items()
            if (name, state) not in SAME and any(isinstance(entry, Ignored) for entry in entries)
        ]
        return conj([disj(states), neg(disj([here for _, here in self._rows(name, instance, event, data)]))])

    def misdirected(self, name: str, instance: str) -> Expr:
        """When there is a message for this instance that the tables refuse."""
        found = []
        for event in self.machines[name].events:
            if f"{name}.{event.name}" not in self.world.surroundings.messages:
                continue
            there, _, _ = self._joined(name, instance, [f"{name}.{event.name}"], {})
            for state, entries in decided(self.machines[name], str(event.name)).items():
                here = self._is(name, instance, "state", (state,))
                found += [
                    conj([here, *there, self.guard(name, instance, entry.when)])
                    for entry in entries
                    if isinstance(entry, Refused)
                ]
        return disj(found)

    def _rows(self, name: str, instance: str, event: str, data: Mapping[str, str]) -> Iterator[tuple[Row, Expr]]:
        """Each row of an event, and when it is the one taken: in its states, its guard holds and that of no earlier row does."""
        machine = self.machines[name]
        rows = [row for row in machine.rows if row.event == event]
        for row in rows:
            taken = []
            for state in row.source:
                if (name, str(state)) in SAME:
                    continue
                earlier = [
                    neg(self.guard(name, instance, other.when, data))
                    for other in rows[: rows.index(row)]
                    if state in other.source
                ]
                taken.append(conj([self._is(name, instance, "state", (str(state),)), *earlier]))
            yield row, conj([disj(taken), self.guard(name, instance, row.when, data)])

    def _folded(
        self, name: str, instance: str, row: Row, data: Mapping[str, str], guard: Expr
    ) -> tuple[Expr, list[Assign], list[str]] | None:
        """A row with all that moves with it: guard, assignments, effects."""
        words = [str(row.event), f"{row.event} > {row.target}", *(parse_effect(text).name for text in row.effects)]
        allowed, assigns, effects = self._joined(name, instance, [f"{name}.{word}" for word in words], data, row.also)
        own = [full_name(name, instance, text) for text in row.effects]
        possible = [guard, *allowed, *self._conditions(name, instance, str(row.event))]
        return conj(possible), self._assigns(name, instance, row, data) + assigns, own + effects

    def _conditions(self, name: str, instance: str, event: str) -> list[Expr]:
        """When this world lets an event of the tables happen."""
        conditions = self.world.surroundings.conditions
        keys = (f"{name}.{event}", full_name(name, instance, event))
        return [self.guard(name, instance, conditions[key][0]) for key in dict.fromkeys(keys) if key in conditions]

    def _joined(
        self, name: str, instance: str, keys: Sequence[str], data: Mapping[str, str], also: Sequence[str] = ()
    ) -> tuple[list[Expr], list[Assign], list[str]]:
        """What moves together with a row: when it may, what it writes, its effects."""
        guards: list[Expr] = []
        assigns: list[Assign] = []
        effects: list[str] = []
        around = self.world.surroundings
        joined = [text for key in keys for text in around.joins.get(key, ())]
        taken = [around.messages[key] for key in keys if key in around.messages]
        for text in (*also, *joined, *taken):
            joint = parse_joint(text)
            carried = {
                key: data[word.removeprefix("event.")] if word.startswith("event.") else word for key, word in joint.data
            }
            for other in self._instances(joint, instance, data):
                allowed, followed, minted = self._followers(joint.machine, other, joint.event, carried)
                guards.append(allowed)
                assigns += followed
                effects += minted
        return guards, assigns, effects

    def _followers(self, name: str, instance: str, event: str, data: Mapping[str, str]) -> tuple[Expr, list[Assign], list[str]]:
        """What a joint event does to one instance: when it is not refused, and what it writes under which condition."""
        assigns: list[Assign] = []
        effects: list[str] = []
        moved = []
        for row, here in self._rows(name, instance, event, data):
            folded = self._folded(name, instance, row, data, here)
            if folded is None:
                continue
            allowed, written, minted = folded
            moved.append((here, allowed))
            assigns += [Assign(conj([here, one.when]), one.variable, one.value, one.source) for one in written]
            effects += minted
        ignored = self._is_ignored(name, instance, event, data, [here for here, _ in moved])
        return disj([*(allowed for _, allowed in moved), ignored]), assigns, effects

    def _is_ignored(self, name: str, instance: str, event: str, data: Mapping[str, str], moves: Sequence[Expr]) -> Expr:
        """When no row is taken and the cell is not refused."""
        found = []
        for state, entries in decided(self.machines[name], event).items():
            if (name, state) in SAME:
                continue
            here = self._is(name, instance, "state", (state,))
            refusals = [self.guard(name, instance, entry.when, data) for entry in entries if isinstance(entry, Refused)]
            found.append(conj([here, neg(disj(refusals))]))
        return conj([disj(found), neg(disj(list(moves)))])

    def _instances(self, joint: Joint, instance: str, data: Mapping[str, str]) -> tuple[str, ...]:
        if joint.instance == "this":
            return (instance,)
        if joint.instance == "*":
            return self.world.instances[joint.machine]
        if joint.instance.startswith("event."):
            return (data[joint.instance.removeprefix("event.")],)
        return (joint.instance,)

    # ---- updates ------------------------------------------------------------------------------------------------------------

    def _assigns(self, name: str, instance: str, row: Row, data: Mapping[str, str]) -> list[Assign]:
        found = []
        if row.target is not None and not row.shifts:
            found.append(self._set(name, instance, "state", SAME.get((name, str(row.target)), str(row.target))))
        for text in row.sets:
            update = parse_update(text)
            variable = update.variable
            if not self._is_kept(name, variable):
                continue
            if variable.name == "member":
                found += self._member_updates(instance, update.variable, update.value, data)
            elif variable.instance == "*":
                for request in self.world.instances["request"]:
                    holds = self._tree("request", request, update.value, data, each=request)
                    place = self.place[full_name("request", request, variable.name)]
                    found += [Assign(holds, place, 1), Assign(neg(holds), place, 0)]
            else:
                if not isinstance(update.value, str):
                    raise SpecError(f"{text!r}: only an update over all requests computes a value")
                value = data[update.value.removeprefix("event.")] if update.value.startswith("event.") else update.value
                owner = (variable.machine, variable.instance) if variable.machine else (name, instance)
                found.append(self._set(*owner, variable.name, value))
        if row.shifts:
            found += self._shift(name, instance)
        return found

    def _is_kept(self, name: str, variable: Name) -> bool:
        slots = f"[{variable.slot}]" if variable.slot else ""
        return self.is_modelled(variable.machine or name, f"{variable.name}{slots}")

    def _member_updates(self, slot: str, variable: Name, value: object, data: Mapping[str, str]) -> list[Assign]:
        whom = [data["requests"]] if variable.machine == "named" else self.world.instances["request"]
        bit = "yes" if value == "yes" else "no"
        return [self._set("request", request, f"member[{slot}]", bit) for request in whom]

    def _shift(self, name: str, instance: str) -> list[Assign]:
        """Each later instance takes the place of the one before it; the newer step does so with its members."""
        chain = self.world.instances[name]
        chain = chain[chain.index(instance) :]
        words = ["state", *(word for word in self.machines[name].variables if self.is_modelled(name, word))]
        pairs = [(full_name(name, one, word), full_name(name, other, word)) for one, other in pairwise(chain) for word in words]
        last = [full_name(name, chain[-1], word) for word in words]
        if name == "step":
            pairs += [
                (f"request[{number}].member[0]", f"request[{number}].member[1]") for number in self.world.instances["request"]
            ]
            last += [f"request[{number}].member[1]" for number in self.world.instances["request"]]
        found = [Assign(TRUE, self.place[before], source=self.place[after]) for before, after in pairs]
        return found + [Assign(TRUE, self.place[full], self.initial[self.place[full]]) for full in last]

    def _set(self, name: str, instance: str, variable: str, value: str) -> Assign:
        place = self.place[full_name(name, instance, variable)]
        return Assign(TRUE, place, self.variables[place].values.index(value))


def build(world: World, machines: Mapping[str, Machine] | None = None) -> Model:
    """The model of a world; `machines` in place of the project's own tables, for mutants."""
    return Builder(world, machines).build()


def is_patient(action: Action) -> bool:
    """Whether it waits for boundary work (rule R1): what clients, operators, timers and the environment do, and the second half of
    the pass, in which the core starts, preempts, plans and launches."""
    owner = action.event.owner
    schedules = action.machine in ("request", "step") and owner is Owner.core and not action.event.boundary
    return schedules or owner in (Owner.client, Owner.operator, Owner.timer, Owner.environment)
