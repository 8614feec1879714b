"""Measured latency where half of it was asked for.

The smaller network is timed beside the whole one in separate processes; the cell is the median of their
ratios, with the least and the most in brackets. Random weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import secateur as sec
from benchmarks import timed_network
from benchmarks.benchmark import Row as Base
from benchmarks.results import ROOT
from benchmarks.run import prepare
from benchmarks.tables import Table
from benchmarks.timed_network import LatencyOptions, TimedNetwork


class Options(LatencyOptions):
    """Options.

    Attributes:
        processes: that measure each network.
    """

    processes: int = 5


class Row(Base):
    """One network and number of examples; ``shares`` are the measured ones, one for each process."""

    network: str
    batch: int
    shares: tuple[float, ...]
    plans: int
    predicted: float
    macs: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "batch-1": {"batches": (1,)},
    "batch-16": {"batches": (16,), "seconds": 2.0},
}
QUICK: Mapping[str, Any] = {**timed_network.QUICK, "processes": 1}


def run(options: Options) -> Iterator[Row]:
    """Ask for half the latency, and measure in separate processes."""
    for batch in options.batches:
        for name in options.networks:
            if options.measured(network=name, batch=batch):
                continue
            network = options.network(name, batch)
            found = network.in_half_the_time()
            yield Row(
                network=name,
                batch=batch,
                shares=tuple(measured_apart(options, network, found.plan) for _ in range(options.processes)),
                plans=found.tries,
                predicted=found.predicted_ms / network.predicted_ms,
                macs=found.plan.cost_after.macs / found.plan.cost_before.macs,
            )


def measured_apart(options: Options, network: TimedNetwork, plan: sec.PruningPlan) -> float:
    """Measure the share of the time that a plan leaves, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        file.write_text(json.dumps(plan.to_dict()))
        task = [options.model_dump_json(), network.name, str(network.batch), str(file)]
        command = [sys.executable, "-m", "benchmarks.suite.half_latency", *task]
        return float(subprocess.check_output(command, cwd=ROOT))


def table(rows: Sequence[Row]) -> Table:
    """Show the measured shares, a row for each network."""
    lines = [
        (
            row.network,
            str(row.batch),
            f"{median(row.shares):.3f} ({min(row.shares):.3f} to {max(row.shares):.3f})",
            str(row.plans),
            f"{row.predicted:.3f}",
            f"{row.macs:.0%}",
        )
        for row in rows
    ]
    return Table(("network", "batch", "measured", "plans tried", "predicted", "MACs left"), lines)


if __name__ == "__main__":  # one of the processes
    given = Options.model_validate_json(sys.argv[1])
    prepare(given)
    subject = given.network(sys.argv[2], int(sys.argv[3]))
    stored = sec.PruningPlan.from_dict(subject.graph, json.loads(Path(sys.argv[4]).read_text()))
    print(subject.share(stored))
