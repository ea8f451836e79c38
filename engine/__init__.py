"""The control plane: torch-free, synchronous and single-threaded at its core."""
