"""The declaration: every lifecycle, once, as data. Importing it checks it.

Read in this order: `vocabulary` (the words), `language` and `guards` (what a row may say), `request`, `step`, `engine` (the heart),
`pause_token`, `operation`, `memory`, `weights`, `stream`, `link`, `session`, `coupling` (what they share), `properties` (what must hold).
"""

from quiesce.spec import engine, link, memory, operation, pause_token, request, session, step, stream, weights
from quiesce.spec.check import Catalog, check
from quiesce.spec.coupling import FACTS, HELD_MODE_POLICIES, PASS_ORDER
from quiesce.spec.language import Machine
from quiesce.spec.properties import PROPERTIES

MACHINES: tuple[Machine, ...] = (
    engine.MACHINE,
    pause_token.MACHINE,
    operation.MACHINE,
    memory.MACHINE,
    weights.MACHINE,
    request.MACHINE,
    step.MACHINE,
    stream.MACHINE,
    session.MACHINE,
    link.MACHINE,
)
check(MACHINES, FACTS, PROPERTIES)

CATALOG = Catalog({machine.name: machine for machine in MACHINES}, {fact.name: fact for fact in FACTS})

__all__ = ["CATALOG", "FACTS", "HELD_MODE_POLICIES", "MACHINES", "PASS_ORDER", "PROPERTIES"]
