"""Accuracy at half the measured time, by fewer channels, fewer residual branches, or both.

A published CIFAR-10 residual network is first adapted to the images, or a network is trained on them from
nothing; that is the baseline. One image is timed on one
thread. Each way measures the damage of what it may remove on the same images, plans half of the time with the
same table, and is corrected by measuring; then the network is reconstructed, and trained for a few updates,
the same for all. Accuracy is that on test images. Cells are means and standard deviations over draws of the
images and of the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import Images, accuracy, batches, data_path, images, raw, training
from benchmarks.networks import FROM_NOTHING
from benchmarks.suite import recovery
from benchmarks.tables import Table, spread
from secateur.budget import Limits, WidthCurves, plan_within
from secateur.data.loader import Loader
from secateur.latency import Comparison, LatencyTable, Timings, compare_latency, latency_table
from secateur.recipes.latency_tuner import LatencyFit, LatencyTuner
from secateur.recovery import CurveOptions
from secateur.training.context import RunContext
from secateur.training.loop import FitOptions, fit
from secateur.training.random_state import seeded
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings

HALF = 0.5
WAYS: Mapping[str, Literal["off", "auto", "only"]] = {"width": "off", "depth": "only", "both": "auto"}
"""What may be removed, and the setting of ``Widths.depth``."""


class Options(recovery.AdaptedOptions):
    """Options.

    Attributes:
        from_nothing: epochs with random weights at first, in place of adapting published weights.
        first_rate: peak learning rate of these epochs.
        optimizer: of these epochs and of fine-tuning.
        updates: of fine-tuning, with ``batch`` images each.
        rate: peak learning rate of fine-tuning.
        seconds: spent on timing each network.
        timings: file of the times of single operators, which serve again; empty for none.
        only: names of ways.
    """

    keep_memory: bool = True
    test: int = 10000
    from_nothing: int = 0
    first_rate: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    updates: int = 200
    rate: float = 0.02
    seconds: float = 1.0
    timings: str = "runs/benchmarks/timings.jsonl"
    only: tuple[str, ...] = tuple(WAYS)


class Row(benchmark.Row):
    """One way, once.

    Attributes:
        way: what may be removed.
        seed: of the images shown, and of the training.
        possible: whether what may be removed is enough for half of the time; otherwise the rest is zero.
        time: measured share of the time.
        predicted: share of the time as the table predicts it.
        macs: share of the MACs that is left.
        params: share of the parameters that is left.
        branches: number of residual branches removed.
        of: number of residual branches that could be removed.
        cut: accuracy after the cut and the reconstruction, in percent.
        updates: of fine-tuning.
        tuned: accuracy after it.
    """

    way: str
    seed: int
    possible: bool = True
    time: float = 0.0
    predicted: float = 0.0
    macs: float = 0.0
    params: float = 0.0
    branches: int = 0
    of: int
    cut: float = 0.0
    updates: int
    tuned: float = 0.0


THREE_EPOCHS = 279
"""Updates of three passes over 6,000 images in batches of 64."""

CASES: Mapping[str, Mapping[str, Any]] = {
    "resnet56": {"updates": THREE_EPOCHS, "test": 5000},
    "bottlenecks": {
        "network": "bottlenecks",
        "from_nothing": 8,
        "first_rate": 0.05,
        "updates": THREE_EPOCHS,
        "test": 5000,
        "shown": 256,
    },
    "vit": {
        "network": "vit",
        "from_nothing": 10,
        "first_rate": 1e-3,
        "optimizer": "adamw",
        "updates": THREE_EPOCHS,
        "rate": 5e-4,
        "test": 5000,
        "shown": 256,
    },
}
QUICK: Mapping[str, Any] = {
    "network": "resnet20",
    "weights": "cifar10_resnet20-12fca82f.th",
    "seeds": (0,),
    "adapt": 1,
    "train": 128,
    "test": 250,
    "shown": 64,
    "updates": 2,
    "seconds": 0.05,
    "timings": "",
}


@dataclass(frozen=True, eq=False)
class Subject:
    """The adapted network, and the times on this device.

    Attributes:
        model: the network, in evaluation mode.
        options: of the benchmark.
    """

    model: nn.Module
    options: Options

    @cached_property
    def graph(self) -> sec.ChannelGraph:
        """The channel graph."""
        return sec.trace(self.model, torch.randn(1, 3, 32, 32))

    @cached_property
    def table(self) -> LatencyTable:
        """The latency table for one image."""
        timings = Timings(Path(self.options.timings)) if self.options.timings else Timings()
        return latency_table(self.model, self.graph, torch.randn(1, 3, 32, 32), timings=timings)

    def at_half_the_time(self, curves: WidthCurves, depth: Literal["off", "auto", "only"]) -> LatencyFit:
        """Plan half of the measured time with the least damage."""

        def compare(models: Mapping[str, nn.Module], inputs: Any) -> Comparison:
            return compare_latency(models, inputs, min_seconds=self.options.seconds, min_runs=5)

        def plan_for(limits: Mapping[str, int]) -> sec.PruningPlan:
            most, widths = Limits(limits), sec.Widths(depth=depth)
            return plan_within(self.graph, curves, most, widths=widths, latency=self.table)

        tuner = LatencyTuner(self.table, torch.randn(1, 3, 32, 32), compare)
        limits = sec.Budget(latency=HALF).amounts(self.graph, self.table)
        return tuner.plan(HALF, limits, plan_for, self.model)


def run(options: Options) -> Iterator[Row]:
    """Halve the time in every way, for each draw of images."""
    folder = data_path(options.data)
    train = raw(folder / "train", options.train, 0)
    test = images(folder / "test", options.test, 0)
    model = _from_nothing(options, train) if options.from_nothing else _adapted(options, train, test)
    print(f"baseline {accuracy(model, test):.2f}", flush=True)
    subject = Subject(model, options)
    for seed in options.seeds:
        if all(options.measured(way=way, seed=seed) for way in options.only):
            continue
        shown = batches(images(folder / "train", options.shown, seed), 64)
        scores = sec.score(model, subject.graph, "taylor", shown, F.cross_entropy)
        curves = sec.width_curves(model, subject.graph, scores, shown, CurveOptions(branches=True))
        for way in options.only:
            if not options.measured(way=way, seed=seed):
                yield _halved(subject, way, seed, curves, shown, train, test)


def _adapted(options: Options, train: Images, test: Images) -> nn.Module:
    shared = {name: getattr(options, name) for name in recovery.AdaptedOptions.model_fields}
    return recovery.adapted(recovery.Training(train, test, recovery.Options(**shared)))


def _from_nothing(options: Options, train: Images) -> nn.Module:
    """Train a network, or load it where that was done before."""
    with seeded(0):
        model = FROM_NOTHING[options.network]()
    file = options.work / f"{options.network}-{options.from_nothing}x{len(train[1])}.safetensors"
    if file.is_file():
        return sec.load(file, model).eval()
    settings = _settings(options, options.first_rate, epochs=options.from_nothing)
    _train(model, training(train, options.batch, 0), settings, 0)
    sec.save(file, model)
    return model


def _settings(options: Options, rate: float, **length: int) -> FitSettings:
    optimizer = OptimizerSettings(
        name=options.optimizer,
        learning_rate=rate,
        nesterov=options.optimizer == "sgd",
        weight_decay=5e-4 if options.optimizer == "sgd" else 0.05,
    )
    return FitSettings(**length, schedule="one-cycle", clip_norm=5.0, keep_best=False, optimizer=optimizer)


def _train(model: nn.Module, batches: Loader, settings: FitSettings, seed: int) -> None:
    with seeded(seed):
        context = RunContext(DeviceSettings(channels_last="yes"))
        fit(model, batches, settings, FitOptions(context=context))
    model.eval()


def _halved(
    subject: Subject,
    way: str,
    seed: int,
    curves: WidthCurves,
    shown: Sequence[Images],
    train: Images,
    test: Images,
) -> Row:
    """Halve the time in one way, reconstruct, evaluate, train, and evaluate again."""
    options = subject.options
    of = len([branch for branch in subject.graph.branches if branch.prunable])
    try:
        found = subject.at_half_the_time(curves, WAYS[way])
    except sec.BudgetError:
        return Row(way=way, seed=seed, possible=False, of=of, updates=options.updates)
    plan = found.plan
    small = sec.apply_plan(subject.model, plan)
    sec.reconstruct(subject.model, small, plan, shown)
    cut = accuracy(small, test)
    settings = _settings(options, options.rate, epochs=0, updates=options.updates)
    _train(small, training(train, options.batch, seed), settings, seed)
    before, after = plan.cost_before, plan.cost_after
    return Row(
        way=way,
        seed=seed,
        time=found.measured_ms / found.allowed_ms * HALF,
        predicted=found.predicted_ms / float(subject.table.milliseconds(subject.graph.widths)),
        macs=after.macs / before.macs,
        params=after.params / before.params,
        branches=plan.branches_removed,
        of=of,
        cut=cut,
        updates=options.updates,
        tuned=accuracy(small, test),
    )


def table(rows: Sequence[Row]) -> Table:
    """Show means and deviations over draws, a row for each way."""
    lines = []
    for way in dict.fromkeys(row.way for row in rows):
        same = [row for row in rows if row.way == way and row.possible]
        if not same:
            lines.append((way, "not possible", *[""] * 5))
            continue
        lines.append(
            (
                way,
                f"{mean(row.time for row in same):.3f}",
                f"{mean(row.macs for row in same):.0%}",
                f"{mean(row.params for row in same):.0%}",
                f"{mean(row.branches for row in same):.1f} of {same[0].of}",
                spread([row.cut for row in same]),
                spread([row.tuned for row in same]),
            )
        )
    updates = sorted({row.updates for row in rows})
    trained = f"after {' or '.join(map(str, updates))} updates"
    columns = ("removed", "time left", "MACs left", "parameters left", "branches removed")
    return Table((*columns, "top-1 after the cut", f"top-1 {trained}"), lines)
