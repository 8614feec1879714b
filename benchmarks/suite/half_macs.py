"""Speed-up for half the MACs.

Any widths, and those that run well on this device (``multiple_of="auto"``); the same again with the time
limited too, and with the parameters limited. A cell is how many times as fast the network is. Random weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import secateur as sec
from benchmarks import timed_network
from benchmarks.benchmark import Row as Base
from benchmarks.tables import Table
from benchmarks.timed_network import HALF, LatencyOptions

ALONG: tuple[dict[str, float], ...] = ({}, {"latency": 0.53}, {"params": 0.25})
"""What may be limited along with half the MACs."""


class Options(LatencyOptions):
    """Options: those of all benchmarks of latency."""


class Row(Base):
    """One plan; ``reduction`` is the whole network's MACs over those left, ``kept`` the magnitude left."""

    network: str
    batch: int
    also: dict[str, float]
    multiple_of: int | str
    reduction: float
    speedup: float
    kept: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "batch-1": {"batches": (1,)},
    "batch-16": {"batches": (16,), "seconds": 2.0, "networks": ("resnet50", "vgg16")},
}
QUICK: Mapping[str, Any] = timed_network.QUICK


def run(options: Options) -> Iterator[Row]:
    """Plan, cut and measure."""
    multiples: tuple[int | Literal["auto"], ...] = (1, "auto")
    for batch in options.batches:
        for name in options.networks:
            network = options.network(name, batch)
            for also, multiple_of in itertools.product(ALONG, multiples):
                if options.measured(network=name, batch=batch, also=also, multiple_of=multiple_of):
                    continue
                plan = sec.make_plan(
                    network.graph,
                    network.curves,
                    sec.Budget(macs=HALF, **also),
                    latency=network.table,
                    widths=sec.Widths(multiple_of=multiple_of),
                )
                yield Row(
                    network=name,
                    batch=batch,
                    also=also,
                    multiple_of=multiple_of,
                    reduction=plan.cost_before.macs / plan.cost_after.macs,
                    speedup=1 / network.share(plan),
                    kept=network.kept(plan),
                )


def table(rows: Sequence[Row]) -> Table:
    """Show speed-ups, a row for each plan."""
    columns = ("network", "batch", "limited too", "widths", "MACs", "times as fast", "of the MACs", "kept")
    lines = [
        (
            row.network,
            str(row.batch),
            ", ".join(f"{name} {share:.0%}" for name, share in row.also.items()),
            "that run well" if row.multiple_of == "auto" else "any",
            f"÷{row.reduction:.2f}",
            f"{row.speedup:.2f}",
            f"{row.speedup / row.reduction:.2f}",
            f"{row.kept:.3f}",
        )
        for row in rows
    ]
    return Table(columns, lines)
