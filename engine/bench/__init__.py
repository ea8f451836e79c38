"""Measurements: `quiesce bench` (throughput and latency of one model) and `quiesce bench --suite` (the rows of figures to reach)."""
