"""Time of choosing the widths of a whole network.

Damages stand in for measured width curves: of each group, the logarithm of the share of its magnitude that is
left. Cells are medians of several rounds, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import secateur as sec
from benchmarks import benchmark
from benchmarks.tables import Table
from benchmarks.timed_network import NETWORKS, TimedNetwork
from benchmarks.timing import timed


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: of torchvision, with random weights.
        size: side of the images in pixels.
        rounds: how often each plan is made.
    """

    networks: tuple[str, ...] = NETWORKS
    size: int = 224
    rounds: int = 3


class Row(benchmark.Row):
    """One network: seconds for half the MACs, and for half the MACs and half the parameters."""

    network: str
    groups: int
    macs: float
    macs_and_params: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"networks": ("squeezenet1_1",), "size": 64, "rounds": 2}


def run(options: Options) -> Iterator[Row]:
    """Plan for each network and budget."""
    for name in options.networks:
        if options.measured(network=name):
            continue
        network = TimedNetwork(name, 1, options.size)
        graph, curves = network.graph, network.curves

        def seconds(budget: sec.Budget, graph: Any = graph, curves: Any = curves) -> float:
            return median(
                timed(lambda: sec.make_plan(graph, curves, budget))[1] for _ in range(options.rounds)
            )

        yield Row(
            network=name,
            groups=len(graph.prunable),
            macs=seconds(sec.Budget(macs=0.5)),
            macs_and_params=seconds(sec.Budget(macs=0.5, params=0.5)),
        )


def table(rows: Sequence[Row]) -> Table:
    """Show seconds, a row for each network."""
    columns = ("network", "groups", "half the MACs", "half the MACs and parameters")
    lines = [
        (row.network, str(row.groups), f"{row.macs:.1f} s", f"{row.macs_and_params:.1f} s") for row in rows
    ]
    return Table(columns, lines)
