"""Compiles the declaration into sealed `transitions` machines, and is the only code that writes a `.state`."""
