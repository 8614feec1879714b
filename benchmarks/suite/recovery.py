"""Accuracy after a cut and a few epochs of fine-tuning.

A CIFAR-10 residual network is first adapted to the images; that is the baseline. Each way cuts a copy to a
share of its MACs and trains it: same images, epochs, batches, augmentation, optimizer and schedule for all.
Ways are ours, ours without single elements, torch-pruning 1.6.1, and controls: random channels, and the
widths of ours with new random weights.

Accuracy is that of the last epoch on test images; nothing is chosen by them. Where there is a GPU, all of
it runs there. Cells are means and standard deviations over draws of the images and of the training, in
percent.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import Images, accuracy, batches, data_path, images, raw, training
from benchmarks.networks import published
from benchmarks.setting import Setting
from benchmarks.tables import Table, spread
from benchmarks.ways import WAYS, Way, not_cut
from secateur.training.context import RunContext
from secateur.training.loop import FitOptions, fit
from secateur.training.random_state import seeded
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings


class AdaptedOptions(benchmark.Options):
    """Options of the benchmarks that start from an adapted network.

    Attributes:
        data: folder of images in the data folder, with ``train`` and ``test``.
        network: a residual network for CIFAR-10.
        weights: its file in the data folder.
        baseline: checkpoint of the adapted network in the data folder, if it was made before.
        work: folder where the adapted network is kept otherwise.
        adapt: epochs of adaptation.
        train: images to train on.
        test: images to evaluate on.
        shown: images to choose and reconstruct with.
        batch: images in a step.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "cifar10"
    network: str = "resnet56"
    weights: str = "cifar10_resnet56-4bfd9763.th"
    baseline: str = ""
    work: Path = Path("runs/benchmarks")
    adapt: int = 5
    train: int = 6000
    test: int = 2500
    shown: int = 512
    batch: int = 64


class Options(AdaptedOptions):
    """Options.

    Attributes:
        shares: of the MACs that are left.
        epochs: of fine-tuning.
        rates: peak learning rates; that of the way if empty.
        mixup: strength of mixing training images, 0 for not at all.
        adapt_rate: peak learning rate of the adaptation.
        only: names of ways.
    """

    shares: tuple[float, ...] = (0.4,)
    epochs: tuple[int, ...] = (3,)
    rates: tuple[float, ...] = ()
    mixup: float = 0.0
    adapt_rate: float = 0.02
    only: tuple[str, ...] = tuple(WAYS)


class Row(benchmark.Row):
    """One way, once.

    Attributes:
        way: its name.
        share: of the MACs asked for.
        seed: of the images shown, and of the training.
        epochs: of fine-tuning.
        rate: peak learning rate.
        macs: share of the MACs that is left.
        params: share of the parameters that is left.
        cut: accuracy after the cut, in percent.
        curve: accuracy after each epoch.
        cutting: seconds of cutting; curves are counted with the first way of a run that uses them.
        training: seconds of training.
    """

    way: str
    share: float
    seed: int
    epochs: int
    rate: float
    macs: float
    params: float
    cut: float
    curve: tuple[float, ...]
    cutting: float
    training: float


PAIR = ("ours", "torch-pruning 1.6.1, group norm")
CONTROLS = (
    "torch-pruning 1.6.1, Taylor",
    "random channels, uniform widths",
    "the widths of ours, from scratch",
)
ADAPTED = {"train": 50000, "test": 10000, "batch": 128, "adapt": 8, "adapt_rate": 0.04}
CASES: Mapping[str, Mapping[str, Any]] = {
    "resnet56": {"shares": (0.47619, 0.4, 0.25), "only": PAIR},
    "controls": {"baseline": "resnet56-adapted.safetensors", "test": 10000, "only": (*PAIR, *CONTROLS)},
    "quarter": {
        "baseline": "resnet56-adapted.safetensors",
        "test": 10000,
        "shares": (0.25,),
        "epochs": (1, 3),
        "only": PAIR,
    },
    "resnet20": {"network": "resnet20", "weights": "cifar10_resnet20-12fca82f.th", "epochs": (1, 3)},
    "nothing-lost": {
        **ADAPTED,
        "shares": (0.47619,),
        "rates": (0.04,),
        "epochs": (10,),
        "only": ("ours, flipped teacher", "ours"),
    },
}
QUICK: Mapping[str, Any] = {
    "seeds": (0,),
    "shares": (0.5,),
    "epochs": (1,),
    "rates": (0.01,),
    "adapt": 1,
    "train": 128,
    "test": 250,
    "shown": 64,
    "only": ("ours, without curves",),
}


@dataclass
class Training:
    """The data, and how everything is trained."""

    train: Images
    test: Images
    options: Options

    def tune(
        self, model: nn.Module, way: Way, teacher: nn.Module | None, epochs: int, rate: float, seed: int
    ) -> tuple[float, ...]:
        """Train in place; return the accuracy after each epoch, in percent."""
        settings = FitSettings(
            epochs=epochs,
            schedule="one-cycle",
            ema_decay=way.average,
            clip_norm=5.0,
            keep_best=False,
            optimizer=OptimizerSettings(learning_rate=rate, nesterov=True, weight_decay=5e-4),
        )
        context = RunContext(DeviceSettings(channels_last="yes"))
        with seeded(seed):
            done = fit(
                model,
                training(self.train, self.options.batch, seed, self.options.mixup),
                settings,
                FitOptions(validation=batches(self.test, 250), teacher=way.teacher(teacher), context=context),
            )
        model.eval()
        return tuple(100 * epoch.metric for epoch in done.history if epoch.metric is not None)


def adapted(bench: Training) -> nn.Module:
    """Adapt the network to the images, or load it where that was done before."""
    options = bench.options
    model = published(options.network, options.weights)
    if options.baseline:
        return sec.load(data_path(options.baseline), model).eval()
    file = options.work / f"{options.network}-{options.adapt}x{len(bench.train[1])}.safetensors"
    if file.is_file():
        return sec.load(file, model).eval()
    before = accuracy(model, bench.test)
    curve = bench.tune(model, Way(not_cut, average=0.98), None, options.adapt, options.adapt_rate, 0)
    print(f"baseline: {before:.2f} as published, then {' '.join(f'{top:.2f}' for top in curve)}", flush=True)
    sec.save(file, model)
    return model


def run(options: Options) -> Iterator[Row]:
    """Cut and train in every way, for each draw of images."""
    folder = data_path(options.data)
    bench = Training(
        raw(folder / "train", options.train, 0), images(folder / "test", options.test, 0), options
    )
    place = RunContext().device
    model = adapted(bench).to(place)
    print(f"baseline {accuracy(model, bench.test):.2f}", flush=True)
    graph = sec.trace(model, torch.randn(1, 3, 32, 32))
    for seed in options.seeds:
        shown, classes = images(folder / "train", options.shown, seed)
        setting = Setting(model, graph, (shown.to(place), classes.to(place)), inner=True)
        for way in options.only:
            yield from recovered(bench, setting, way, seed)


def recovered(bench: Training, setting: Setting, name: str, seed: int) -> Iterator[Row]:
    """Cut and train in one way with one draw of images, the largest networks first."""
    options, way = bench.options, WAYS[name]
    wanted = [
        (share, epochs, rate)
        for share in sorted(options.shares, reverse=True)
        for epochs in options.epochs
        for rate in options.rates or (way.rate,)
        if not options.measured(way=name, share=share, seed=seed, epochs=epochs, rate=rate)
    ]
    if not wanted:
        return
    began = time.perf_counter()
    with seeded(seed):
        cut = way.cut(setting)
    preparing = time.perf_counter() - began
    x = setting.images[0][:1]
    before = sec.cost(setting.model, x)
    cuts: dict[float, tuple[nn.Module, float]] = {}
    for share, epochs, rate in wanted:
        if share not in cuts:
            began = time.perf_counter()
            with seeded(seed):
                cuts[share] = cut(share).eval(), time.perf_counter() - began
        small, cutting = copy.deepcopy(cuts[share][0]), cuts[share][1]
        after, top1 = sec.cost(small, x), accuracy(small, bench.test)
        began = time.perf_counter()
        curve = bench.tune(small, way, setting.model, epochs, rate, seed)
        yield Row(
            way=name,
            share=share,
            seed=seed,
            epochs=epochs,
            rate=rate,
            macs=after.macs / before.macs,
            params=after.params / before.params,
            cut=top1,
            curve=curve,
            cutting=preparing + cutting,
            training=time.perf_counter() - began,
        )


def table(rows: Sequence[Row]) -> Table:
    """Show means and deviations over draws, a row for each way and kind of training."""
    columns = ("MACs", "epochs", "rate", "way", "parameters", "after the cut", "after training", "seconds")
    lines = []
    for key in dict.fromkeys((row.share, row.epochs, row.rate, row.way) for row in rows):
        same = [row for row in rows if (row.share, row.epochs, row.rate, row.way) == key]
        share, epochs, rate, way = key
        params = mean(row.params for row in same)
        seconds = mean(row.cutting + row.training for row in same)
        cut, last = spread([row.cut for row in same]), spread([row.curve[-1] for row in same], 2)
        lines.append(
            (f"{share:.3g}", str(epochs), f"{rate:g}", way, f"{params:.2f}", cut, last, f"{seconds:.0f}")
        )
    return Table(columns, lines)
