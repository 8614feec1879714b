"""Accuracy kept at half the measured time, for ways of choosing widths.

A trained network is cut in three ways to half its latency on this device: with width curves and a limit of
the time; with the same curves and as many MACs as take that time; with the same share of every group. Each is
reconstructed on the same images and evaluated on test images, without any training. Cells are means and
standard deviations over draws of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from benchmarks.benchmark import Row as Base
from benchmarks.images import Images, draw
from benchmarks.networks import trained
from benchmarks.tables import Table, spread
from benchmarks.timed_network import LatencyOptions, TimedNetwork, plans_at_half_the_time
from secateur.budget import WidthCurves
from secateur.criteria import Scores
from secateur.jobs.networks import Network
from secateur.training.evaluate import evaluate


class Options(LatencyOptions):
    """Options.

    Attributes:
        data: folder of images in the data folder.
        examples: images to choose and reconstruct with.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    networks: tuple[str, ...] = ("resnet20",)
    batches: tuple[int, ...] = (1,)
    data: str = "cifar10k"
    examples: int = 512


class Row(Base):
    """One network, draw and way; ``time`` and ``macs`` are shares of those of the whole network."""

    network: str
    batch: int
    seed: int
    by: str
    top1: float
    time: float
    macs: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "resnet20": {},
    "squeezenet": {"networks": ("squeezenet",), "data": "cats_dogs"},
}
QUICK: Mapping[str, Any] = {"seeds": (0,), "examples": 64, "seconds": 0.1, "timings": ""}


@dataclass(frozen=True, eq=False)
class TrainedNetwork(TimedNetwork):
    """A trained network whose time is measured.

    Attributes:
        network: the network and what it is called with.
        shown: images to choose and reconstruct with.
    """

    network: Network | None = None
    shown: Sequence[Images] = ()

    @cached_property
    def model(self) -> nn.Module:
        """The network."""
        assert self.network is not None
        return self.network.model

    @cached_property
    def inputs(self) -> Tensor:
        """Images."""
        return self.shown[0][0][: self.batch]

    @cached_property
    def graph(self) -> sec.ChannelGraph:
        """The channel graph."""
        return sec.trace(self.model, self.shown[0][0][:2])

    @cached_property
    def scores(self) -> Scores:
        """The order in which channels are removed, the same for all ways."""
        return sec.score(self.model, self.graph, "reconstruction", self.shown, F.cross_entropy)

    @cached_property
    def curves(self) -> WidthCurves:
        """Measured width curves."""
        return sec.width_curves(self.model, self.graph, self.scores, self.shown)


def run(options: Options) -> Iterator[Row]:
    """Bring each way to half the time, reconstruct and evaluate, for each draw of images."""
    for name in options.networks:
        network, data = trained(name, options.data)
        for batch in options.batches:
            for seed in options.seeds:
                if options.measured(network=name, batch=batch, seed=seed):
                    continue
                shown = draw(data, options.examples, seed)
                timed = TrainedNetwork(name, batch, 0, options.seconds, options.timings, network, shown)
                for way, (plan, share) in plans_at_half_the_time(timed).items():
                    small = sec.apply_plan(timed.model, plan)
                    sec.reconstruct(timed.model, small, plan, shown)
                    yield Row(
                        network=name,
                        batch=batch,
                        seed=seed,
                        by=way,
                        top1=100 * evaluate(small, data.test_batches()).metric,
                        time=share,
                        macs=plan.cost_after.macs / plan.cost_before.macs,
                    )


def table(rows: Sequence[Row]) -> Table:
    """Show means and deviations over draws, a row for each network and way."""
    lines = []
    for key in dict.fromkeys((row.network, row.batch, row.by) for row in rows):
        same = [row for row in rows if (row.network, row.batch, row.by) == key]
        name, batch, way = key
        time, macs = mean(row.time for row in same), mean(row.macs for row in same)
        lines.append(
            (name, str(batch), way, spread([row.top1 for row in same]), f"{time:.3f}", f"{macs:.0%}")
        )
    return Table(("network", "batch", "widths chosen by", "top-1", "time left", "MACs left"), lines)
