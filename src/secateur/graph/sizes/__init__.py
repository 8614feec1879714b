"""Sizes in a program: where they come from, and what they must be after a cut."""
