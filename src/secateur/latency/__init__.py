"""Latency: how long a network takes, measured, and foretold for any widths of its groups.

``measure`` times whole networks in one of several ``runtimes``, in ``turns``, and makes a ``comparison``.
``build`` makes a latency ``table``: it finds the ``operators`` of a network, times ``calls`` of them with a
``stopwatch``, keeps the ``timings``, and lays a ``surface`` through them.
"""

from __future__ import annotations

from secateur.latency.build import latency_table
from secateur.latency.comparison import Comparison, Latency
from secateur.latency.measure import compare_latency, measure_latency
from secateur.latency.running import widths_that_run_well
from secateur.latency.runtimes import RUNTIMES, InPyTorch, Runtime, Session
from secateur.latency.table import LatencyModel, LatencyTable
from secateur.latency.timings import Timings
from secateur.latency.turns import Turns, take_turns

__all__ = [
    "RUNTIMES",
    "Comparison",
    "InPyTorch",
    "Latency",
    "LatencyModel",
    "LatencyTable",
    "Runtime",
    "Session",
    "Timings",
    "Turns",
    "compare_latency",
    "latency_table",
    "measure_latency",
    "take_turns",
    "widths_that_run_well",
]
