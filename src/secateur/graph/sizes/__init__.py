"""Find where the sizes in a program come from, and what they must be after a cut."""
