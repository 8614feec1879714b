"""A network whose time is measured and predicted, for the benchmarks of latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import secateur as sec
from benchmarks import benchmark
from secateur.budget import Limits, WidthCurve, WidthCurves, plan_within
from secateur.criteria import Scores
from secateur.latency import Comparison, LatencyTable, Timings, compare_latency, latency_table
from secateur.recipes.latency_tuner import LatencyFit, LatencyTuner

NETWORKS = ("resnet50", "vgg16", "mobilenet_v2", "efficientnet_b0", "densenet121")
HALF = 0.5
CLOSE = 0.02  # how near to half the time plans are brought before they are compared


class LatencyOptions(benchmark.Options):
    """Options of the benchmarks of latency.

    Attributes:
        networks: of torchvision, with random weights.
        batches: examples in a forward pass.
        size: side of the images in pixels.
        seconds: spent on timing each network.
        timings: file of the times of single operators, which serve again; empty for none.
    """

    keep_memory: bool = True
    networks: tuple[str, ...] = NETWORKS
    batches: tuple[int, ...] = (1, 16)
    size: int = 224
    seconds: float = 0.6
    timings: str = "runs/benchmarks/timings.jsonl"

    def network(self, name: str, batch: int) -> TimedNetwork:
        """Prepare a network; nothing is measured yet."""
        return TimedNetwork(name, batch, self.size, self.seconds, self.timings)


QUICK: Mapping[str, Any] = {
    "networks": ("squeezenet1_1",),
    "batches": (1,),
    "size": 64,
    "seconds": 0.1,
    "timings": "",
}


@dataclass(frozen=True)
class TimedNetwork:
    """A network and a number of examples, with what was measured on it.

    Attributes:
        name: of a torchvision network.
        batch: number of examples.
        size: side of the images in pixels.
        seconds: spent on timing each network.
        timings: file of the times of single operators; empty for none.
    """

    name: str
    batch: int
    size: int
    seconds: float = 0.6
    timings: str = ""

    @cached_property
    def model(self) -> nn.Module:
        """The network, with the same random weights each time."""
        torch.manual_seed(0)
        return sec.build(f"torchvision:{self.name}", classes=1000).eval()

    @cached_property
    def inputs(self) -> Tensor:
        """Noise in the shape of images."""
        return torch.randn(self.batch, 3, self.size, self.size)

    @cached_property
    def graph(self) -> sec.ChannelGraph:
        """The channel graph."""
        return sec.trace(self.model, torch.randn(2, 3, self.size, self.size))

    @cached_property
    def table(self) -> LatencyTable:
        """The latency table, made with stored timings where there are any."""
        timings = Timings(Path(self.timings)) if self.timings else None
        return latency_table(self.model, self.graph, self.inputs, timings=timings)

    @cached_property
    def predicted_ms(self) -> float:
        """Predicted time of the whole network, in milliseconds."""
        return float(self.table.milliseconds(self.graph.widths))

    @cached_property
    def tuner(self) -> LatencyTuner:
        """The latency tuner."""
        return LatencyTuner(self.table, self.inputs, self.compare)

    @cached_property
    def scores(self) -> Scores:
        """Magnitudes of all channels."""
        return sec.score(self.model, self.graph, "magnitude")

    @cached_property
    def curves(self) -> WidthCurves:
        """Damage without data: of each group, the logarithm of the share of its magnitude that is left.

        The damages of layers add up, so their shares multiply, and no group is given up for the others.
        """
        found = {}
        for name, values in self.scores.items():
            order = torch.argsort(values, stable=True)
            left = torch.cumsum(values[order.flip(0)].double(), 0) / values.sum()
            damages = [*(-left[:-1].log()).tolist(), 0.0]
            widths = tuple(range(1, len(order) + 1))
            found[name] = WidthCurve(tuple(order.tolist()), widths, tuple(damages))
        return WidthCurves(found, "magnitude")

    def compare(self, models: Mapping[str, nn.Module], inputs: Any) -> Comparison:
        """Measure networks in alternation."""
        return compare_latency(models, inputs, min_seconds=self.seconds, min_runs=5, warmup=2)

    def share(self, plan: sec.PruningPlan) -> float:
        """Measure the time after a plan, as a share of that of the whole network."""
        small = sec.apply_plan(self.model, plan)
        return 1 / self.compare({"whole": self.model, "small": small}, self.inputs).speedup("small")

    def predicted_share(self, plan: sec.PruningPlan) -> float:
        """Predict the time after a plan, as a share of that of the whole network."""
        return float(self.table.milliseconds(plan.graph.after(plan).units)) / self.predicted_ms

    def kept(self, plan: sec.PruningPlan) -> float:
        """Compute the share of its magnitude that a group is left with, as geometric mean over groups."""
        lost = [float(self.curves[n].at(np.array([len(kept)]))[0]) for n, kept in plan.keep.items()]
        return float(np.exp(-sum(lost) / max(1, len(self.curves))))

    def in_half_the_time(self) -> LatencyFit:
        """Find the plan that keeps the most in half the time."""

        def plan_for(limits: Mapping[str, int]) -> sec.PruningPlan:
            return plan_within(self.graph, self.curves, Limits(limits), latency=self.table)

        limits = sec.Budget(latency=HALF).amounts(self.graph, self.table)
        return self.tuner.plan(HALF, limits, plan_for, self.model)


Plans = dict[str, tuple[sec.PruningPlan, float]]


def plans_at_half_the_time(network: TimedNetwork) -> Plans:
    """Find plans of three kinds that take half the measured time.

    Returns:
        By how widths are chosen (``time``, ``MACs``, ``the same share everywhere``): the plan, and the
        measured share of the time that it takes.
    """
    graph, found = network.graph, network.in_half_the_time()
    plans: Plans = {"time": (found.plan, found.measured_ms / found.allowed_ms * HALF)}
    plans["MACs"] = _bisected(
        network, lambda share: sec.make_plan(graph, network.curves, sec.Budget(macs=share))
    )
    plans["the same share everywhere"] = _bisected(
        network,
        lambda share: sec.make_plan(graph, network.scores, sec.Budget(channels=share), allocation="uniform"),
    )
    return plans


def _bisected(
    network: TimedNetwork, plan_for: Callable[[float], sec.PruningPlan]
) -> tuple[sec.PruningPlan, float]:
    """Find the plan of a kind that takes half the measured time, and the share that it takes."""
    target = HALF
    best: tuple[sec.PruningPlan, float] | None = None
    for _ in range(4):
        low, high = 0.02, 0.99
        for _ in range(8):
            middle = (low + high) / 2
            try:
                predicted = network.predicted_share(plan_for(middle))
            except sec.BudgetError:
                predicted = 0.0
            low, high = (middle, high) if predicted < target else (low, middle)
        plan = plan_for(high)
        share = network.share(plan)
        if best is None or abs(share - HALF) < abs(best[1] - HALF):
            best = (plan, share)
        if abs(share - HALF) < CLOSE * HALF:
            break
        target *= HALF / share
    assert best is not None
    return best
