"""Accuracy after a cut by each criterion and a short training.

The channels with the lowest scores are cut, over all groups together, and the network is trained for a little
while, the same for all. Controls: channels drawn at random, and the widths that Taylor chose with new random
weights. Cells are means and standard deviations over draws of the images that criteria see, in percent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import Images, draw
from benchmarks.networks import renew, trained
from benchmarks.tables import Table, spread
from secateur.criteria import Criterion, Random, criterion_names
from secateur.data import ImageData
from secateur.jobs.networks import Network
from secateur.training.evaluate import evaluate
from secateur.training.loop import fit
from secateur.training.random_state import seeded
from secateur.training.settings import FitSettings, OptimizerSettings

SCRATCH = "from scratch"


class Options(benchmark.Options):
    """Options.

    Attributes:
        trained: the network.
        data: folder of images in the data folder.
        examples: images that criteria see.
        shares: of the MACs that are left.
        epochs: of training after the cut.
        criteria: names; ``from scratch`` is the control with new weights.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    trained: str = "resnet20"
    data: str = "cifar2k"
    examples: int = 128
    shares: tuple[float, ...] = (0.6, 0.4)
    epochs: int = 2
    criteria: tuple[str, ...] = (*criterion_names(), SCRATCH)


class Row(benchmark.Row):
    """One criterion, share of the MACs and draw: accuracy after the cut and after training, in percent."""

    criterion: str
    share: float
    seed: int
    cut: float
    top1: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {
    "seeds": (0,),
    "examples": 32,
    "shares": (0.6,),
    "epochs": 1,
    "criteria": ("magnitude",),
}


def run(options: Options) -> Iterator[Row]:
    """Cut by every criterion, and train."""
    network, data = trained(options.trained, options.data)
    for seed in options.seeds:
        batches = draw(data, options.examples, seed)
        for share in options.shares:
            for criterion in options.criteria:
                if not options.measured(criterion=criterion, share=share, seed=seed):
                    cut, top1 = recovered(network, data, batches, criterion, share, options.epochs, seed)
                    yield Row(criterion=criterion, share=share, seed=seed, cut=100 * cut, top1=100 * top1)


def recovered(
    network: Network,
    data: ImageData,
    batches: Sequence[Images],
    criterion: str,
    share: float,
    epochs: int,
    seed: int,
) -> tuple[float, float]:
    """Cut to a share of the MACs by one criterion and train; return both accuracies."""
    model = copy.deepcopy(network.model)
    graph = sec.trace(model, network.example())
    with seeded(seed):
        by: str | Criterion = "taylor" if criterion == SCRATCH else criterion
        if criterion == "random":
            by = Random(seed)
        scores = sec.score(model, graph, by, batches, F.cross_entropy)
        plan = sec.make_plan(graph, scores, sec.Budget(macs=share), widths=sec.Widths(min_channels=2))
        small = sec.apply_plan(model, plan)
        if criterion == SCRATCH:
            renew(small)
        cut = evaluate(small, data.test_batches()).metric
        settings = FitSettings(
            epochs=epochs,
            schedule="one-cycle",
            clip_norm=5.0,
            keep_best=False,
            optimizer=OptimizerSettings(learning_rate=0.02, nesterov=True, weight_decay=5e-4),
        )
        fit(small, data.training_batches(), settings)
    return cut, evaluate(small, data.test_batches()).metric


def table(rows: Sequence[Row]) -> Table:
    """Show means and deviations over draws, a row for each criterion."""
    shares = tuple(dict.fromkeys(row.share for row in rows))
    columns = [text for share in shares for text in (f"{share:.0%}: after the cut", f"{share:.0%}: trained")]
    lines = []
    for name in dict.fromkeys(row.criterion for row in rows):
        cells = []
        for share in shares:
            same = [row for row in rows if (row.criterion, row.share) == (name, share)]
            cells += [spread([row.cut for row in same]), spread([row.top1 for row in same])]
        lines.append((f"`{name}`", *cells))
    return Table(("criterion", *columns), lines)
