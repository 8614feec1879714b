"""Run a cut network and its masked original, and compare them."""
