"""Fitting and judging networks, and the folders that hold what came of it."""
