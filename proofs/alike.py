"""Whether a mutant differs from the tables for any number of requests: z3 is asked for a state that has the invariant, and in which some
action of the one can be taken and not of the other, leads elsewhere, or has other effects. If there is none, both have the same graph."""

from __future__ import annotations

from dataclasses import replace

import z3

from quiesce.proofs.difference import difference
from quiesce.proofs.expr import FALSE
from quiesce.proofs.induction import Prover
from quiesce.proofs.model import Model
from quiesce.proofs.mutants import Mutation


class AnyNumber:
    """One solver that holds the invariant of the tables."""

    def __init__(self) -> None:
        self.prover = Prover()
        for tree in self.prover.invariant.values():
            self.prover.solver.add(self.prover.world.formula(tree, self.prover.world.before))

    def is_alike(self, mutation: Mutation) -> bool:
        """Whether the mutant has the same graph for any number of requests. No, if the solver cannot say."""
        world, solver = self.prover.world, self.prover.solver
        apart = difference(world.model, self._model(mutation))
        if apart == FALSE:
            return True
        solver.push()
        solver.add(world.formula(apart, world.before))
        verdict = solver.check()
        solver.pop()
        return bool(verdict == z3.unsat)

    def _model(self, mutation: Mutation) -> Model:
        """The mutant, in the variables and bits of the tables."""
        builder, model = self.prover.world.builder, self.prover.world.model
        actions, machines = model.actions, builder.machines
        builder.machines = {name: mutation.tables[name] for name in machines}
        model.actions = []
        try:
            return replace(builder.build(), actions=model.actions)
        finally:
            builder.machines, model.actions = machines, actions
