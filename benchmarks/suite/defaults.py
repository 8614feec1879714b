"""Defaults of training and pruning: found rates compared with a grid, fine-tuning with the cut network.

Published weights are trained on a few images with all defaults, and with given peak rates. The network of the
defaults is then pruned, once without fine-tuning and once with all defaults. Other images are drawn for each
seed; nothing is chosen by the test images.

Accuracy is that on the test images, in percent; cells are means and standard deviations over draws. The last
column is the largest fall from the cut network to the fine-tuned one, in standard errors of the test images.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import benchmark
from benchmarks.images import data_path
from benchmarks.tables import Table, spread
from secateur.jobs.prune import prune
from secateur.jobs.settings import PruneJob, TrainJob
from secateur.jobs.train import train
from secateur.recipes import Recipe

WEIGHTS = {
    "torchvision:squeezenet1_1": "squeezenet1_1_imagenet_features_only.pth",
    "torchvision:mobilenet_v2": "mobilenet_v2_imagenet_features_only.pth",
    "timm:tf_efficientnet_lite0": "tf_efficientnet_lite0_imagenet.pth",
    "secateur:resnet20": "cifar10_resnet20-12fca82f.th",
    "secateur:resnet56": "cifar10_resnet56-4bfd9763.th",
}
"""Weights in the data folder; other networks are trained from nothing."""


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: by name.
        data: folder of images in the data folder, with ``train`` and ``test``; or ``digits``.
        images: numbers of training images, validation included.
        test: largest number of test images.
        size: side of the images in pixels; 0 for that of the network.
        shares: of the MACs that are left.
        rates: peak rates that training with the found rate is compared with.
        work: folder of runs and of the drawn images.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    networks: tuple[str, ...] = ("torchvision:squeezenet1_1",)
    data: str = "cats_dogs"
    images: tuple[int, ...] = (100, 400, 1800)
    test: int = 2000
    size: int = 0
    shares: tuple[float, ...] = (0.5, 0.333)
    rates: tuple[float, ...] = ()
    work: Path = Path("runs/benchmarks/defaults")


class Row(benchmark.Row):
    """One training or pruning.

    Attributes:
        network: by name.
        images: for training, validation included.
        seed: of the draw of images, and of the training.
        what: ``train``, or the share of the MACs that is left.
        rate: peak learning rate.
        found: whether the rate was found.
        before: accuracy before the cut, in percent; of a training, of the network before it on the validation
            images.
        cut: accuracy after the cut, before fine-tuning; that of a training is ``before``.
        after: accuracy at the end.
        error: standard error of ``after``, in points.
        kept: number of the epoch that was kept.
        seconds: of the command.
    """

    network: str
    images: int
    seed: int
    what: str
    rate: float
    found: bool
    before: float
    cut: float
    after: float
    error: float
    kept: int
    seconds: float


PHOTOGRAPHS = ("torchvision:squeezenet1_1", "torchvision:mobilenet_v2", "timm:tf_efficientnet_lite0")
SQUEEZENET = PHOTOGRAPHS[:1]
CIFAR = {"data": "cifar10", "images": (500, 5000, 50000), "test": 10000}
CASES: Mapping[str, Mapping[str, Any]] = {
    "photographs": {"networks": PHOTOGRAPHS},
    "cifar10": {"networks": ("secateur:resnet20", "secateur:resnet56"), **CIFAR},
    "digits": {"networks": ("secateur:digits",), "data": "digits", "images": (0,)},
    "rates": {"networks": PHOTOGRAPHS, "shares": (), "rates": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)},
}
QUICK: Mapping[str, Any] = {
    "seeds": (0,),
    "networks": SQUEEZENET,
    "images": (40,),
    "test": 20,
    "size": 32,
    "shares": (0.5,),
    "rates": (1e-3,),
}


def drawn(options: Options, count: int, seed: int) -> str:
    """Make a folder with links to images that are drawn at random, equally many of each class."""
    if options.data == "digits":
        return "digits"
    source = data_path(options.data)
    folder = options.work.absolute() / f"{source.name}-{count}-{options.test}-{seed}"
    for split, wanted in (("train", count), ("test", options.test)):
        classes = sorted(path for path in (source / split).iterdir() if path.is_dir())
        for path in classes:
            files = sorted(path.iterdir())
            chosen = random.Random(seed).sample(files, min(wanted // len(classes), len(files)))
            (folder / split / path.name).mkdir(parents=True, exist_ok=True)
            for file in chosen:
                link = folder / split / path.name / file.name
                if not link.is_symlink():
                    link.symlink_to(file.absolute())
    return str(folder)


def run(options: Options) -> Iterator[Row]:
    """Train and prune with all defaults, for each network, number of images and draw."""
    for network in options.networks:
        for count in options.images:
            for seed in options.seeds:
                last = f"{options.shares[-1]:g}" if options.shares else "train"
                if not options.measured(network=network, images=count, seed=seed, what=last, found=True):
                    yield from one(options, network, count, seed)


def one(options: Options, network: str, count: int, seed: int) -> Iterator[Row]:
    """Train and prune one network on one draw of images."""
    data = {"source": drawn(options, count, seed)}
    name = f"{network.partition(':')[2]}-{count}-{seed}"
    choice: dict[str, Any] = {"source": network, "weights": "none"}
    if network in WEIGHTS:
        choice["weights"] = str(data_path(WEIGHTS[network]))
    if options.size:
        choice["size"] = options.size
    about = {"network": network, "images": count, "seed": seed}
    for rate in (*options.rates, None):  # the found rate last: its network is pruned
        out = options.work / f"{name}-train"
        fit: dict[str, Any] = {} if rate is None else {"optimizer": {"learning_rate": rate}}
        began = time.perf_counter()
        summary = train(
            TrainJob(
                network=choice,
                data=data,
                out=out,
                overwrite=True,
                seed=seed,
                latency_seconds=0,
                fit=fit,
            )
        )
        start = 100 * summary["training"]["start"]["top1"]
        after = 100 * summary["network"]["top1"]
        yield _row(about, "train", summary, start, start, after, rate is None, time.perf_counter() - began)
    for share in options.shares:
        found = {}
        for kind, recipe in (("cut", Recipe(finetune={"epochs": 0})), ("tuned", Recipe())):
            began = time.perf_counter()
            found[kind] = prune(
                PruneJob(
                    network={"source": str(out)},
                    data=data,
                    out=options.work / f"{name}-{kind}",
                    overwrite=True,
                    seed=seed,
                    latency_seconds=0,
                    budget={"macs": share},
                    recipe=recipe,
                    measured=options.work / f"{name}-cut" if kind == "tuned" else None,
                )
            )
            seconds = time.perf_counter() - began
        before, cut, after = (
            100 * found[kind][side]["top1"]
            for kind, side in (("cut", "baseline"), ("cut", "pruned"), ("tuned", "pruned"))
        )
        yield _row(about, f"{share:g}", found["tuned"], before, cut, after, True, seconds)


def _row(
    about: Mapping[str, Any],
    what: str,
    summary: Mapping[str, Any],
    before: float,
    cut: float,
    after: float,
    found: bool,
    seconds: float,
) -> Row:
    tests = summary["start"]["images"]["test"]
    share = (after / 100 * tests + 1) / (tests + 2)
    return Row(
        **about,
        what=what,
        rate=summary["training"]["learning_rate"],
        found=found,
        before=before,
        cut=cut,
        after=after,
        error=100 * (share * (1 - share) / (tests + 2)) ** 0.5,
        kept=summary["training"]["kept_epoch"],
        seconds=seconds,
    )


def table(rows: Sequence[Row]) -> Table:
    """Show means and deviations over draws, a row for each network, number of images and task."""
    columns = ("network", "images", "task", "rates", "before", "after the cut", "at the end", "worst fall")
    lines = []
    keys = dict.fromkeys((row.network, row.images, row.what, row.found or f"{row.rate:g}") for row in rows)
    for network, images, what, rate in keys:
        same = [
            row
            for row in rows
            if (row.network, row.images, row.what, row.found or f"{row.rate:g}")
            == (network, images, what, rate)
        ]
        rates = sorted({row.rate for row in same})
        shown = f"{rates[0]:.2g} to {rates[-1]:.2g}" if len(rates) > 1 else f"{rates[0]:.2g}"
        worst = max((row.cut - row.after) / row.error for row in same)
        cut = "" if what == "train" else spread([row.cut for row in same], 2)
        lines.append(
            (
                network,
                f"{images:,}",
                what if what == "train" else f"{what} of the MACs",
                f"{shown} (found)" if rate is True else shown,
                spread([row.before for row in same], 2),
                cut,
                spread([row.after for row in same], 2),
                "" if what == "train" else f"{worst:.1f}",
            )
        )
    return Table(columns, lines)
