"""Accuracy that a cut leaves, without any training.

A CIFAR-10 residual network, or one that was trained before, is cut to several shares of its MACs and
evaluated on test images. Every way of choosing and reconstructing sees the same few images and is never
trained:

- torch-pruning 1.6.1: global Taylor and group norm, as its own examples run them;
- Taylor, global: ours, cut only, and with least-squares reconstruction;
- uniform widths by L1 norm, and by the reconstruction criterion, both reconstructed;
- width curves, reconstructed: in full, without single elements, and measured at more widths on more images.

Cells are shares of the baseline's accuracy in percent: mean and standard deviation over draws of the
images. Seconds are those of all cuts of one draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch.nn.functional as F
from torch import nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import Images, accuracy, data_path, draw, images, joined
from benchmarks.networks import published, trained
from benchmarks.peer import torch_pruning
from benchmarks.setting import Setting
from benchmarks.tables import Table, spread
from benchmarks.ways import Cut
from secateur.budget import Allocation
from secateur.recovery import CurveOptions, LeastSquares

SEVEN = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Shares of a group at which finer curves measure its damage."""


class Options(benchmark.Options):
    """Options.

    Attributes:
        data: folder of images in the data folder, with ``train`` and ``test``.
        network: a residual network for CIFAR-10.
        weights: its file in the data folder.
        trained: a network that was trained before, instead.
        shares: of the MACs that are left.
        shown: images to choose and reconstruct with.
        test: images to evaluate on.
        streams: cut the residual streams too.
        only: ways whose name contains one of these.
    """

    data: str = "cifar10"
    network: str = "resnet20"
    weights: str = "cifar10_resnet20-12fca82f.th"
    trained: str = ""
    shares: tuple[float, ...] = (0.75, 0.6, 0.5, 0.4)
    shown: int = 512
    test: int = 2500
    streams: bool = False
    only: tuple[str, ...] = ("",)


class Row(benchmark.Row):
    """One way with one draw of images; accuracies are in percent, one for each share of the MACs."""

    way: str
    seed: int
    shares: tuple[float, ...]
    baseline: float
    accuracy: tuple[float, ...]
    seconds: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "resnet20": {"seeds": (0, 1, 2)},
    "resnet56": {
        "network": "resnet56",
        "weights": "cifar10_resnet56-4bfd9763.th",
        "seeds": (0, 1, 2),
        "only": ("width curves, reconstructed", "width curves, Taylor", "torch-pruning"),
    },
    "resnet56-half": {
        "network": "resnet56",
        "weights": "cifar10_resnet56-4bfd9763.th",
        "shares": (0.5,),
        "seeds": (0, 1, 2),
        "only": ("width curves, Taylor order", "torch-pruning"),
    },
    "squeezenet": {
        "data": "cats_dogs",
        "trained": "squeezenet",
        "shares": (0.5, 0.35, 0.25),
        "seeds": (0, 1, 2),
        "streams": True,
    },
}
QUICK: Mapping[str, Any] = {"seeds": (0,), "shares": (0.5,), "shown": 64, "test": 250, "only": ("L1",)}


@dataclass(frozen=True)
class Task:
    """A network and its images.

    Attributes:
        model: in evaluation mode.
        test: images to evaluate on.
        shown: draws images to choose and reconstruct with, given a seed.
    """

    model: nn.Module
    test: Images
    shown: Callable[[int], Images]


def opened(options: Options) -> Task:
    """Open the network and the images."""
    if options.trained:
        network, data = trained(options.trained, options.data)
        test = joined(data.test_batches())
        return Task(network.model, test, lambda seed: joined(draw(data, options.shown, seed)))
    model, folder = published(options.network, options.weights), data_path(options.data)
    test = images(folder / "test", options.test, 0)
    return Task(model, test, lambda seed: images(folder / "train", options.shown, seed))


def reconstructed(setting: Setting, plan: sec.PruningPlan, refit: dict[str, bool] | None) -> nn.Module:
    """Apply a plan, and reconstruct if there are options for it."""
    small = sec.apply_plan(setting.model, plan)
    if refit is not None:
        sec.reconstruct(setting.model, small, plan, setting.batches, LeastSquares(), **refit)
    return small


def by_scores(setting: Setting, criterion: str, allocation: Allocation, refit: dict[str, bool] | None) -> Cut:
    """Cut by score, over all groups together or the same share of each."""
    scores = sec.score(setting.model, setting.graph, criterion, setting.batches, F.cross_entropy)

    def cut(share: float) -> nn.Module:
        plan = sec.make_plan(
            setting.graph,
            scores,
            sec.Budget(macs=share),
            allocation=allocation,
            widths=sec.Widths(ignore=setting.left_alone),
        )
        return reconstructed(setting, plan, refit)

    return cut


def by_curves(
    setting: Setting, criterion: str, refit: dict[str, bool] | None, measuring: CurveOptions | None = None
) -> Cut:
    """Cut to the widths of least measured damage."""
    scores = sec.score(setting.model, setting.graph, criterion, setting.batches, F.cross_entropy)
    wanted = {name: scores[name] for name in scores if name not in setting.left_alone}
    measuring = measuring or CurveOptions()
    curves = sec.width_curves(setting.model, setting.graph, wanted, setting.batches, measuring)

    def cut(share: float) -> nn.Module:
        plan = sec.make_plan(
            setting.graph, curves, sec.Budget(macs=share), widths=sec.Widths(ignore=setting.left_alone)
        )
        return reconstructed(setting, plan, refit)

    return cut


def ways(setting: Setting) -> Iterable[tuple[str, Callable[[], Cut]]]:
    """Yield all ways by name; nothing is computed before a way is called."""
    full: dict[str, bool] = {}
    plain = {"refit_downstream": False, "correct_shortcut_error": False}
    yield "torch-pruning 1.6.1, global Taylor", lambda: torch_pruning(setting, "taylor")
    yield "torch-pruning 1.6.1, group norm (needs no images)", lambda: torch_pruning(setting, "group norm")
    yield "Taylor, global, cut only", lambda: by_scores(setting, "taylor", "global", None)
    yield "Taylor, global, reconstructed", lambda: by_scores(setting, "taylor", "global", full)
    yield "L1, uniform widths, reconstructed", lambda: by_scores(setting, "magnitude", "uniform", full)
    yield (
        "`reconstruction`, uniform widths, reconstructed",
        lambda: by_scores(setting, "reconstruction", "uniform", full),
    )
    yield "width curves, cut only", lambda: by_curves(setting, "reconstruction", None)
    yield "width curves, plain least squares", lambda: by_curves(setting, "reconstruction", plain)
    yield "width curves, Taylor order, reconstructed", lambda: by_curves(setting, "taylor", full)
    yield "width curves, reconstructed", lambda: by_curves(setting, "reconstruction", full)
    yield (
        "finer width curves, Taylor order, reconstructed",
        lambda: by_curves(setting, "taylor", full, CurveOptions(SEVEN, held_back=0.5)),
    )


def run(options: Options) -> Iterator[Row]:
    """Cut in every way and evaluate, for each draw of images."""
    task, shares = opened(options), tuple(sorted(options.shares, reverse=True))
    graph = sec.trace(task.model, task.test[0][:1])
    baseline = accuracy(task.model, task.test)
    for seed in options.seeds:
        setting = Setting(task.model, graph, task.shown(seed), inner=not options.streams)
        for name, way in ways(setting):
            if not any(part in name for part in options.only) or options.measured(way=name, seed=seed):
                continue
            began = time.perf_counter()
            cut = way()
            left = tuple(accuracy(cut(share), task.test) for share in shares)
            seconds = time.perf_counter() - began
            yield Row(way=name, seed=seed, shares=shares, baseline=baseline, accuracy=left, seconds=seconds)


def table(rows: Sequence[Row]) -> Table:
    """Show what is kept of the baseline's accuracy, a row for each way."""
    shares = rows[0].shares
    lines = []
    for way in dict.fromkeys(row.way for row in rows):
        same = [row for row in rows if row.way == way]
        kept = [spread([100 * row.accuracy[n] / row.baseline for row in same]) for n in range(len(shares))]
        lines.append((way, *kept, f"{median(row.seconds for row in same):.0f}"))
    return Table(("way", *(f"{share:.0%}" for share in shares), "seconds"), lines)
