"""Model checking and proofs of the declaration.

    model       rows to actions over finite variables, one printer-neutral tree (expr)
    properties  what is promised of states, of moves, and leads-to
    search      the explorer to read, in Python; leads-to under fairness
    explorer    the exhaustive one, printed as C
    promela     a second judge: SPIN, from the same trees (promela_fair: leads-to)
    induction   the same promises for any number of requests: z3, with the lemmas that carry them (lemmas, changes, unbounded)
    prove       the command

Not here yet: the worlds of link, session and operations, Murphi, a second solver, the mutation campaign, replay on the real engine,
the report.
"""
