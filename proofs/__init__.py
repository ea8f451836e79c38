"""Model checking and proofs of the declaration: the place for them; nothing is proved here yet."""
