"""Channel graph: what hangs together in a network, and what may be cut."""
