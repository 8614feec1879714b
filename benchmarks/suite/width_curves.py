"""Time of width curves, compared with cutting, reconstructing and evaluating each width by itself.

A CIFAR-10 residual network, or one that was trained before. The plain way is to cut one group, reconstruct
the copy and run it on the held-back images; since that takes long, it is done for one cut of so many and
scaled, and counted twice: in whole, and the evaluations alone. The damages that both find are compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import Images, batches, data_path, draw, images, joined
from benchmarks.networks import published, trained
from benchmarks.tables import Table
from benchmarks.timing import timed
from secateur.plan import plan_from
from secateur.recovery.curves import ENOUGH, CurveOptions, diverge


class Options(benchmark.Options):
    """Options.

    Attributes:
        data: folder of images in the data folder, with ``train``.
        network: a residual network for CIFAR-10.
        weights: its file in the data folder.
        trained: a network that was trained before, instead.
        examples: images to measure on.
        every: make one cut of so many in the plain way.
    """

    threads: int = 2
    data: str = "cifar10"
    network: str = "resnet56"
    weights: str = "cifar10_resnet56-4bfd9763.th"
    trained: str = ""
    examples: int = 512
    every: int = 6


class Row(benchmark.Row):
    """One network; difference is the median relative difference of damages."""

    network: str
    threads: int
    examples: int
    cuts: int
    curves_seconds: float
    plain_seconds: float
    evaluation_seconds: float
    difference: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "resnet56": {},
    "vgg": {"data": "cats_dogs", "trained": "vgg", "examples": 400, "threads": 1, "every": 9},
}
QUICK: Mapping[str, Any] = {
    "network": "resnet20",
    "weights": "cifar10_resnet20-12fca82f.th",
    "examples": 64,
    "every": 30,
}


def run(options: Options) -> Iterator[Row]:
    """Measure all width curves, and some of their points in the plain way."""
    model, data = opened(options)
    graph = sec.trace(model, data[0][:2])
    scores = sec.score(model, graph, "magnitude")
    count = len(data[1])
    measuring = min(ENOUGH, count // 2)
    held_back = CurveOptions(held_back=measuring / count)
    found, ours = timed(lambda: sec.width_curves(model, graph, scores, batches(data, 64), held_back))
    fitting = batches((data[0][:-measuring], data[1][:-measuring]), 64)
    expected = outputs_of(model, data[0][-measuring:])
    points = [(name, width) for name, curve in found.items() for width in curve.widths[:-1]]
    cutting = evaluating = 0.0
    differences = []
    for name, width in points[:: options.every]:
        plan = plan_from(graph, {name: found[name].order[: graph[name].channels - width]})
        began = time.perf_counter()
        small = sec.apply_plan(model, plan)
        sec.reconstruct(model, small, plan, fitting, refit_downstream=False, correct_shortcut_error=False)
        cut = time.perf_counter()
        outputs = outputs_of(small, data[0][-measuring:])
        evaluating += time.perf_counter() - cut
        cutting += cut - began
        damage = found[name].damages[found[name].widths.index(width)]
        differences.append(abs(diverge([outputs], [expected], "kl") / damage - 1))
    scale = len(points) / len(points[:: options.every])
    yield Row(
        network=options.trained or options.network,
        threads=options.threads,
        examples=count,
        cuts=len(points),
        curves_seconds=ours,
        plain_seconds=scale * (cutting + evaluating),
        evaluation_seconds=scale * evaluating,
        difference=median(differences),
    )


def opened(options: Options) -> tuple[nn.Module, Images]:
    """Open the network, and images to measure it on."""
    if options.trained:
        network, data = trained(options.trained, options.data)
        return network.model, joined(draw(data, options.examples, options.seeds[0]))
    folder = data_path(options.data) / "train"
    model = published(options.network, options.weights)
    return model, images(folder, options.examples, options.seeds[0])


@torch.inference_mode()
def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the network's outputs, 64 images at a time."""
    return torch.cat([model(part) for part in x.split(64)])


def table(rows: Sequence[Row]) -> Table:
    """Show seconds and their ratios, a row for each network."""
    columns = (
        "network",
        "threads",
        "examples",
        "cuts",
        "curves, s",
        "each cut by itself, s",
        "evaluations alone, s",
        "times as fast",
        "damages differ by",
    )
    lines = [
        (
            row.network,
            str(row.threads),
            str(row.examples),
            str(row.cuts),
            f"{row.curves_seconds:.0f}",
            f"{row.plain_seconds:.0f}",
            f"{row.evaluation_seconds:.0f}",
            f"{row.plain_seconds / row.curves_seconds:.1f}",
            f"{row.difference:.1%}",
        )
        for row in rows
    ]
    return Table(columns, lines)
