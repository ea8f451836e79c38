"""What every outside judge is tried on: a toy of two bits, and a small world in which requests, steps, updates and failures meet."""

from __future__ import annotations

from quiesce.proofs.explorer import MoveProperty
from quiesce.proofs.expr import FALSE, TRUE, Expr, In
from quiesce.proofs.model import Action, Assign, Model, Variable
from quiesce.proofs.world import World
from quiesce.spec import CATALOG
from quiesce.spec.language import Owner

SMALL = World.engine(1, callers=(), without=("engine.sleep", "engine.wake_up"))
"""Half of the actions of the world of one request, which are variants of `sleep`, are left out: a judge is compiled in a second."""

SWAP = (Assign(TRUE, 0, source=1), Assign(TRUE, 1, source=0))
LAST_WINS = (Assign(TRUE, 0, 1), Assign(In(1, frozenset({1})), 0, 0), Assign(FALSE, 1, 0), Assign(In(0, frozenset({1})), 1, 0))
NOBODY_READS_IT = (Assign(TRUE, 1, 0),)


def toy(*assigns: Assign) -> Model:
    """Two bits and one action, from (0, 1)."""
    event = next(event for event in CATALOG.machines["engine"].events if event.owner is Owner.core)
    variables = [Variable("a.state", ("no", "yes")), Variable("b[0].state", ("no", "yes"))]
    return Model("toy", variables, (0, 1), [Action("swap", event, "a", "", 0, TRUE, assigns)])


ALWAYS: dict[str, Expr] = {"a_is_no": In(0, frozenset({0})), "b_is_yes": In(1, frozenset({1})), "true": TRUE}
MOVES = [MoveProperty("never", "", {0: FALSE}), MoveProperty("about nothing", "", {})]
"""Of `toy(*SWAP)` one state breaks the first two, and the move can be made in both: four times something is broken."""
