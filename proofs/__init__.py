"""Model checking of the declaration. Read in this order: `model` (rows to actions), `properties`, `search` (Python), `explorer` (C), `prove`.

Not here yet: SPIN and the solvers as second judges, mutants of the tables, the report.
"""
