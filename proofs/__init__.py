"""Model checking and proofs of the declaration.

    world       which machines: the engine; link and session with what surrounds them (environment); the queue (environment_queue)
    model       rows to actions over finite variables, one printer-neutral tree (expr); guards read in a world (guards)
    properties  what is promised of states, of moves, and leads-to
    search      the explorer to read, in Python; leads-to under fairness
    explorer    the exhaustive one, in C over packed states (explorer_source); requests that differ only in number, once (symmetry)
    lasso       leads-to in C, where Python is too slow; in worlds of several requests they have ages (aged)
    promela     a second judge: SPIN, from the same trees (promela_fair: leads-to)
    induction   the same promises for any number of requests: z3, with the lemmas that carry them (lemmas, changes, unbounded)
    prove       the command

Not here yet: Murphi, a second solver, the mutation campaign, replay on the real engine,
the report.
"""
