"""Draw the figures of a run; each file contains one figure."""

from __future__ import annotations
