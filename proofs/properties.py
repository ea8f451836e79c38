"""The properties of `spec/properties.py` as the explorers judge them: predicates on states, witnesses, leads-to. Promises on moves are
`proofs/moves.py`'s.

A property belongs to a world if all that it names is there, or something is said there instead of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from quiesce.proofs.expr import Expr, neg
from quiesce.proofs.guards import OutsideWorld
from quiesce.proofs.lemmas import LEMMAS
from quiesce.proofs.model import Builder
from quiesce.proofs.offers import offers
from quiesce.proofs.world import World
from quiesce.spec import PROPERTIES
from quiesce.spec.language import Judge, Modality, Property

EXPECTED = "S4b_answers_are_expected"
"""The one predicate that is made from the refused cells of a table."""


def of(world: World, modality: Modality) -> list[Property]:
    """Properties that a model judges, the world's own among them."""
    return [
        prop
        for prop in (*PROPERTIES, *world.surroundings.properties)
        if prop.modality is modality and Judge.model in prop.judges
    ]


def instances_of(builder: Builder, prop: Property) -> tuple[str, ...]:
    return builder.world.instances.get(prop.machine, ()) if prop.machine else ("",)


def _read(builder: Builder, prop: Property) -> Iterator[tuple[str, Expr, Expr]]:
    """For each instance: name, `when`, `then`; nothing where the world leaves out what they name. A witness is seen, never said instead."""
    read = builder.exactly if prop.modality is Modality.sometimes else builder.guard
    stand_for_all = builder.world.surroundings.judged.get(prop.machine) if prop.modality is Modality.eventually else None
    for instance in stand_for_all or instances_of(builder, prop):
        name, machine = f"{prop.name}[{instance}]" if instance else prop.name, prop.machine or "engine"
        try:
            yield name, read(machine, instance, prop.when), read(machine, instance, prop.then or "true")
        except OutsideWorld:
            return


def always(builder: Builder) -> dict[str, Expr]:
    """Every `always` property that is a predicate, what must be possible, and the lemmas of the proof for any number."""
    properties = of(builder.world, Modality.always)
    found = {name: when for prop in properties if prop.when for name, when, _ in _read(builder, prop)}
    for prop in properties:
        if prop.name == EXPECTED:
            for instance in instances_of(builder, prop):
                found[f"{prop.name}[{instance}]"] = neg(builder.misdirected(prop.machine, instance))
    found |= offers(builder)
    if "step" in builder.world.instances:
        found |= {f"lemma: {lemma.name}": builder.guard("engine", "", lemma.when) for lemma in LEMMAS}
    return found


def sometimes(builder: Builder) -> dict[str, Expr]:
    """States that must be reachable, so that what is said of them is not said of nothing."""
    return {name: when for prop in of(builder.world, Modality.sometimes) for name, when, _ in _read(builder, prop)}


def eventually(builder: Builder) -> Iterator[tuple[str, Expr, Expr]]:
    """Leads-to: name, trigger, goal; one for each instance."""
    for prop in of(builder.world, Modality.eventually):
        yield from _read(builder, prop)
