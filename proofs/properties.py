"""The properties of `spec/properties.py` as the explorers judge them: predicates on states, witnesses, leads-to. Promises on moves are
`proofs/moves.py`'s."""

from __future__ import annotations

from collections.abc import Iterator

from quiesce.proofs.expr import Expr
from quiesce.proofs.model import Builder
from quiesce.spec import PROPERTIES
from quiesce.spec.language import Judge, Modality, Property


def instances_of(builder: Builder, prop: Property) -> tuple[str, ...]:
    return builder.world.instances[prop.machine] if prop.machine else ("",)


def always(builder: Builder) -> dict[str, Expr]:
    """Every `always` property that is a predicate."""
    found = {}
    for prop in PROPERTIES:
        if prop.modality is Modality.always and prop.when and Judge.model in prop.judges:
            for instance in instances_of(builder, prop):
                name = f"{prop.name}[{instance}]" if instance else prop.name
                found[name] = builder.guard(prop.machine or "engine", instance, prop.when)
    return found


def sometimes(builder: Builder) -> dict[str, Expr]:
    """States that must be reachable, so that what is said of them is not said of nothing."""
    named = [prop for prop in PROPERTIES if prop.modality is Modality.sometimes and Judge.model in prop.judges]
    return {prop.name: builder.guard(prop.machine or "engine", "", prop.when) for prop in named}


def eventually(builder: Builder) -> Iterator[tuple[str, Expr, Expr]]:
    """Leads-to: name, trigger, goal; one for each instance."""
    for prop in PROPERTIES:
        if prop.modality is Modality.eventually and Judge.model in prop.judges:
            for instance in instances_of(builder, prop):
                name = f"{prop.name}[{instance}]" if instance else prop.name
                machine = prop.machine or "engine"
                yield name, builder.guard(machine, instance, prop.when), builder.guard(machine, instance, prop.then)
