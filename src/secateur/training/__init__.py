"""Train and evaluate networks, and keep what a run produces in its folder."""
