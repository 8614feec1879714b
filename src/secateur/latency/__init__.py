"""Measure the latency of networks, and predict it for any widths of their groups.

- ``measure``: times whole networks, in one of the ``pytorch_runtimes``; several are run alternately.
- ``generation``: times how fast language models read a prompt and write a token.
- ``table``: predicts the time of a network from its group widths.
- ``build``: makes such a table. It finds the ``operators``, measures each with an ``operator_timer`` at a few
  sizes, interpolates between them (``piecewise_linear``), and calibrates the sum with runs of the network.
"""

from __future__ import annotations

from secateur.latency.build import NetworkTimer, latency_table
from secateur.latency.generation import Generation, compare_generation
from secateur.latency.measure import (
    Comparison,
    InterleavedTimes,
    Latency,
    compare_latency,
    interleaved_timing,
    measure_latency,
)
from secateur.latency.operator_timer import OperatorTimer, Timings
from secateur.latency.pytorch_runtimes import PYTORCH_RUNTIMES, PreparedNetwork, PyTorchRuntime
from secateur.latency.table import LatencyModel, LatencyTable, efficient_widths

__all__ = [
    "PYTORCH_RUNTIMES",
    "Comparison",
    "Generation",
    "InterleavedTimes",
    "Latency",
    "LatencyModel",
    "LatencyTable",
    "NetworkTimer",
    "OperatorTimer",
    "PreparedNetwork",
    "PyTorchRuntime",
    "Timings",
    "compare_generation",
    "compare_latency",
    "efficient_widths",
    "interleaved_timing",
    "latency_table",
    "measure_latency",
]
