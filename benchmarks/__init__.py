"""Benchmarks of Secateur: ``python -m benchmarks --help``; how to add one stands in ``CONTRIBUTING.md``."""
