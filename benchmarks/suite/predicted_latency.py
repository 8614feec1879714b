"""Predicted latency, compared with measured latency.

Random plans of a network with random weights: what the latency table says, against what is measured, both as
shares of the whole network, which runs in alternation with them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import secateur as sec
from benchmarks import timed_network
from benchmarks.benchmark import Row as Base
from benchmarks.tables import Table
from benchmarks.timed_network import LatencyOptions


class Options(LatencyOptions):
    """Options.

    Attributes:
        plans: random plans of each network.
        without: share of the residual branches that a plan removes, about; each plan draws its own.
    """

    plans: int = 50
    without: float = 0.0


class Row(Base):
    """One network and number of examples; errors are relative, one for each plan."""

    network: str
    batch: int
    errors: tuple[float, ...]
    table_seconds: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "batch-1": {"batches": (1,)},
    "branches": {
        "batches": (1,),
        "networks": ("resnet50", "mobilenet_v2", "efficientnet_b0", "vit_b_16", "convnext_tiny"),
        "plans": 20,
        "without": 0.4,
    },
}
QUICK: Mapping[str, Any] = {**timed_network.QUICK, "plans": 3}


def run(options: Options) -> Iterator[Row]:
    """Predict and measure random plans."""
    for batch in options.batches:
        for name in options.networks:
            if options.measured(network=name, batch=batch):
                continue
            network = options.network(name, batch)
            began = time.perf_counter()
            whole = network.predicted_ms
            seconds = time.perf_counter() - began
            print(f"{name}, batch {batch}: {whole:.1f} ms predicted for the whole network", flush=True)
            rng = np.random.default_rng(options.seeds[0] + 1)
            errors = []
            for _ in range(options.plans):
                plan = random_plan(network.graph, rng, options.without)
                errors.append(network.predicted_share(plan) / network.share(plan) - 1)
            yield Row(network=name, batch=batch, errors=tuple(errors), table_seconds=seconds)


def random_plan(graph: sec.ChannelGraph, rng: np.random.Generator, without: float = 0.0) -> sec.PruningPlan:
    """Draw a share for the network, and one around it for each group; and which branches to remove."""
    mean = rng.uniform(0.3, 1.0)
    keep = {
        group.name: tuple(range(round(group.channels * share) or 1))
        for group in graph.prunable
        for share in [float(np.clip(rng.normal(mean, 0.25), 0.05, 1))]
    }
    absent = [branch.name for branch in graph.branches if branch.prunable and rng.random() < without]
    return sec.PruningPlan(graph, keep, tuple(absent))


def table(rows: Sequence[Row]) -> Table:
    """Show the median, worst and mean error, a row for each network."""
    lines = []
    for row in rows:
        sizes = np.abs(row.errors)
        figures = f"{np.median(sizes):.1%}", f"{sizes.max():.1%}", f"{np.mean(row.errors):.1%}"
        lines.append((row.network, str(row.batch), *figures, f"{row.table_seconds:.0f} s"))
    return Table(("network", "batch", "median", "worst", "mean", "table built in"), lines)
