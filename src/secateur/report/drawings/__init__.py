"""The figures of a run, one a file: what of the records each shows, and how."""

from __future__ import annotations
