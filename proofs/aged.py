"""A model in which requests have an age, for leads-to in worlds of several requests.

Whoever arrived first is the oldest as long as it lasts, and the oldest that runs never yields its blocks (R23). Other models leave age
out: anybody may be preempted there. For safety that is more than enough, but two requests may then preempt each other for ever.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from quiesce.proofs.expr import TRUE, Expr, In, conj, disj
from quiesce.proofs.model import Action, Assign, Model, Variable

BIT = ("no", "yes")


def aged(model: Model) -> Model:
    """The model with a bit for each pair of requests, after all its variables: whether the first of the two arrived before the second.

    Beside an absent request one that is there is older; so the bit of a pair says nothing but what matters.
    """
    states = {
        name.removesuffix(".state"): place
        for name, place in model.place.items()
        if name.startswith("request[") and name.endswith("].state")
    }
    pairs = {pair: len(model.variables) + number for number, pair in enumerate(itertools.combinations(states, 2))}
    ages = [Variable(f"age.{first} before {second}", BIT) for first, second in pairs]
    absent = {request: model.variables[place].values.index("absent") for request, place in states.items()}
    running = {request: model.variables[place].values.index("running") for request, place in states.items()}

    def is_older(older: str, younger: str) -> Expr:
        return (
            In(pairs[older, younger], frozenset({1}))
            if (older, younger) in pairs
            else In(pairs[younger, older], frozenset({0}))
        )

    def becomes_older(older: str, younger: str, when: Expr) -> Assign:
        return Assign(when, pairs[older, younger], 1) if (older, younger) in pairs else Assign(when, pairs[younger, older], 0)

    def with_age(action: Action) -> Action:
        assigns = list(action.assigns)
        for one in action.assigns:
            for request, place in states.items():
                if one.variable == place and one.value == absent[request]:
                    assigns += [becomes_older(other, request, one.when) for other in states if other != request]
        me = f"request[{action.instance}]"
        others = [request for request in states if request != me]
        if action.machine == "request" and action.event.name == "submit":
            for other in others:
                gone = In(states[other], frozenset({absent[other]}))
                assigns += [becomes_older(other, me, TRUE), becomes_older(me, other, gone)]
        if action.machine == "request" and action.event.name == "preempt":
            yields = [conj([In(states[other], frozenset({running[other]})), is_older(other, me)]) for other in others]
            return replace(action, guard=conj([action.guard, disj(yields)]))
        return replace(action, assigns=tuple(assigns))

    place = {**model.place, **{variable.name: pairs[pair] for variable, pair in zip(ages, pairs, strict=True)}}
    variables, initial = [*model.variables, *ages], (*model.initial, *(0 for _ in ages))
    return Model(model.name, variables, initial, [with_age(action) for action in model.actions], place)
