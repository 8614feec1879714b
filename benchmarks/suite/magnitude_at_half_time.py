"""Magnitude kept at half the measured time, for ways of choosing widths.

Widths are chosen by time, by MACs, or as the same share of every group. A cell is the share of its magnitude
that a group is left with, as geometric mean over groups. Random weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import timed_network
from benchmarks.benchmark import Row as Base
from benchmarks.tables import Table
from benchmarks.timed_network import LatencyOptions, plans_at_half_the_time


class Options(LatencyOptions):
    """Options: those of all benchmarks of latency."""


class Row(Base):
    """One network and way; ``time`` and ``macs`` are shares of those of the whole network."""

    network: str
    batch: int
    by: str
    kept: float
    time: float
    macs: float


CASES: Mapping[str, Mapping[str, Any]] = {"batch-1": {"batches": (1,)}}
QUICK: Mapping[str, Any] = timed_network.QUICK


def run(options: Options) -> Iterator[Row]:
    """Bring each way to half the time, and compare what it keeps."""
    for batch in options.batches:
        for name in options.networks:
            if options.measured(network=name, batch=batch):
                continue
            network = options.network(name, batch)
            for way, (plan, share) in plans_at_half_the_time(network).items():
                macs = plan.cost_after.macs / plan.cost_before.macs
                kept = network.kept(plan)
                yield Row(network=name, batch=batch, by=way, kept=kept, time=share, macs=macs)


def table(rows: Sequence[Row]) -> Table:
    """Show what is kept, a row for each network and way."""
    lines = [
        (row.network, str(row.batch), row.by, f"{row.kept:.3f}", f"{row.time:.3f}", f"{row.macs:.0%}")
        for row in rows
    ]
    return Table(("network", "batch", "widths chosen by", "kept", "time left", "MACs left"), lines)
