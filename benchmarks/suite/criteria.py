"""Rank correlation of criteria with leave-one-out ablation.

Every channel of a network is masked alone on a few training images, and each criterion, scored on the same
images, is compared with the changes of the loss. Cells are Spearman correlations, means over draws of the
images: within groups, over all groups, and over all groups with scores normalised by their L2 norm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import torch.nn.functional as F

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import draw
from benchmarks.networks import trained
from benchmarks.tables import Table, spread
from benchmarks.timing import timed
from secateur.ablation import Ablation, ablate, compare_ranking
from secateur.criteria import criterion_names


class Options(benchmark.Options):
    """Options.

    Attributes:
        trained: the network.
        data: folder of images in the data folder.
        examples: images that every channel is masked for.
        work: folder where ablations are kept on the way.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    trained: str = "resnet20"
    data: str = "cifar10k"
    examples: int = 64
    work: Path = Path("runs/benchmarks")


class Row(benchmark.Row):
    """One criterion with one draw of images; seconds are those of its scores."""

    criterion: str
    seed: int
    seconds: float
    within_groups: float
    all_groups: float
    normalized: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "resnet20": {"examples": 128},
    "resnet56": {"trained": "resnet56"},
    "squeezenet": {"trained": "squeezenet", "data": "cats_dogs"},
    "vgg11": {"trained": "vgg11", "data": "cats_dogs"},
}
QUICK: Mapping[str, Any] = {"seeds": (0,), "examples": 8}


def run(options: Options) -> Iterator[Row]:
    """Mask every channel, and compare each criterion with the changes of the loss."""
    network, data = trained(options.trained, options.data)
    model = network.model
    graph = sec.trace(model, network.example())
    for seed in options.seeds:
        batches = draw(data, options.examples, seed)
        file = options.work / f"ablation-{options.trained}-{options.examples}-{seed}.json"
        resume = Ablation.from_dict(json.loads(file.read_text())) if file.is_file() else None
        changes = ablate(model, graph, batches, F.cross_entropy, resume=resume)
        file.write_text(json.dumps(changes.to_dict()))
        for name in criterion_names():
            if options.measured(criterion=name, seed=seed):
                continue
            try:
                scores, seconds = timed(partial(sec.score, model, graph, name, batches, F.cross_entropy))
            except sec.UsageError as error:  # such as the batch-norm scale where there is no batch norm
                print(error)
                continue
            found = compare_ranking(changes, scores)
            yield Row(
                criterion=name,
                seed=seed,
                seconds=seconds,
                within_groups=found.per_group,
                all_groups=found.raw,
                normalized=found.normalized,
            )


def table(rows: Sequence[Row]) -> Table:
    """Show means over draws, a row for each criterion."""
    lines = []
    for name in dict.fromkeys(row.criterion for row in rows):
        same = [row for row in rows if row.criterion == name]
        columns = zip(*((row.within_groups, row.all_groups, row.normalized) for row in same), strict=True)
        lines.append((f"`{name}`", *(spread([v for v in values if not isnan(v)], 2) for values in columns)))
    return Table(("criterion", "within groups", "all groups", "all groups, normalised"), lines)
