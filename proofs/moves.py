"""Promises on moves: what must hold before an action is taken, so that it keeps what it promises. No state shows that one was broken.

A promise about the state after is said of the state before (`proofs/after.py`). Their sentences are in `spec/properties.py`.
"""

from __future__ import annotations

from collections.abc import Collection

from quiesce.proofs import claims_engine, claims_memory, claims_requests
from quiesce.proofs.claims import Promise, View
from quiesce.proofs.explorer import MoveProperty
from quiesce.proofs.expr import TRUE, neg
from quiesce.proofs.model import Builder, is_patient
from quiesce.proofs.offers import due
from quiesce.spec import PROPERTIES

PROMISES = (*claims_engine.PROMISES, *claims_memory.PROMISES, *claims_requests.PROMISES)
SENTENCES = {prop.name: prop.sentence for prop in PROPERTIES}


def on_moves(builder: Builder, of: Collection[int] | None = None) -> list[MoveProperty]:
    """What is promised of the moves of a world that has been built, or of some of its actions; of other worlds than the engine's, nothing."""
    if "step" not in builder.world.instances:
        return []
    view = View(builder)
    return [
        _judged(view, promise, instance, of) for promise in PROMISES for instance in builder.world.instances[promise.machine]
    ]


def calls_wait(builder: Builder) -> MoveProperty:
    """What only the one-pass rule keeps: clients, operators, timers and the environment wait for the core."""
    nothing_due = neg(due(builder))
    patient = {number: nothing_due for number, action in enumerate(builder.model.actions) if is_patient(action)}
    return MoveProperty("R1_calls_wait", SENTENCES["R1_calls_wait"], patient)


def _judged(view: View, promise: Promise, instance: str, of: Collection[int] | None) -> MoveProperty:
    actions = [(number, action) for number, action in enumerate(view.builder.model.actions) if of is None or number in of]
    claims = ((number, promise.claim(view, action, instance)) for number, action in actions)
    name = f"{promise.name}[{instance}]" if instance else promise.name
    return MoveProperty(name, SENTENCES[promise.name], {number: tree for number, tree in claims if tree != TRUE})
