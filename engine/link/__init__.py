"""How a front end reaches a core."""
