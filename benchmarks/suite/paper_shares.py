"""Speed-up at the shares of maps of the first paper.

AlexNet with 41% of its maps, VGG16 with 66% and 52% (Molchanov et al., arXiv 1611.06440), the same share of
every layer. The paper spread its shares over layers by Taylor scores, so the comparison is only of the order
of size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import secateur as sec
from benchmarks.benchmark import Row as Base
from benchmarks.tables import Table
from benchmarks.timed_network import LatencyOptions

PAPER = {("alexnet", 0.41): 1.9, ("vgg16", 0.66): 1.7, ("vgg16", 0.52): 2.1}
"""Speed-ups of the paper on a CPU, by network and share of its maps."""


class Options(LatencyOptions):
    """Options: those of all benchmarks of latency."""

    networks: tuple[str, ...] = ("alexnet", "vgg16")
    batches: tuple[int, ...] = (16,)


class Row(Base):
    """One network and share of its maps."""

    network: str
    batch: int
    maps: float
    speedup: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"networks": ("alexnet",), "batches": (1,), "seconds": 0.1}


def run(options: Options) -> Iterator[Row]:
    """Cut to the shares of the paper, and measure."""
    for batch in options.batches:
        for name, share in PAPER:
            if name not in options.networks or options.measured(network=name, batch=batch, maps=share):
                continue
            network = options.network(name, batch)
            filters = [g.name for g in network.graph.prunable if g.name.startswith("features")]
            plan = sec.make_plan(
                network.graph,
                network.scores,
                sec.Budget(channels=share),
                allocation="uniform",
                widths=sec.Widths(only=filters),
            )
            yield Row(network=name, batch=batch, maps=share, speedup=1 / network.share(plan))


def table(rows: Sequence[Row]) -> Table:
    """Show speed-ups beside those of the paper."""
    lines = [
        (
            row.network,
            str(row.batch),
            f"{row.maps:.0%}",
            f"{row.speedup:.2f}",
            str(PAPER[row.network, row.maps]),
        )
        for row in rows
    ]
    return Table(("network", "batch", "maps left", "times as fast", "paper, CPU"), lines)
