"""Which criterion to trust: rank correlation with ablation, and accuracy after a short recovery.

Correlation: every channel of a network is masked alone on a few training pictures, and each criterion,
scored on the same pictures, is compared with the changes of the loss. Three draws of pictures.

Recovery (``--recovery``): the channels that a criterion likes least are cut, over all groups together, and
the network is trained for a little while, the same for all; beside them channels drawn at random, and the
widths that Taylor chose with fresh weights.

    python benchmarks/criteria.py RUN --data DIR --out FILE.jsonl [--examples 128] [--seeds 3] [--recovery]

RUN is a run folder, a checkpoint, or a name with ``--weights``. Rows that FILE holds are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar import batches, joined
from networks import renew
from torch import Tensor

import secateur as sec
from secateur.ablation import Ablation, ablate, compare_ranking
from secateur.criteria import Criterion, Random, criterion_names
from secateur.data import ImageData
from secateur.jobs.networks import Network, input_of, open_network
from secateur.jobs.pictures import open_pictures
from secateur.jobs.settings import DataChoice, NetworkChoice
from secateur.training.evaluate import evaluate
from secateur.training.loop import fit
from secateur.training.random_state import seeded
from secateur.training.settings import FitSettings, OptimizerSettings

Batch = tuple[Tensor, Tensor]
SCRATCH = "from scratch"
SHARES = (0.6, 0.4)


def draw(data: ImageData, examples: int, seed: int, size: int = 64) -> list[Batch]:
    """Training pictures drawn at random, without augmentation."""
    x, y = joined(data.training_batches(augment=False))
    chosen = torch.tensor(random.Random(seed).sample(range(len(y)), min(examples, len(y))))
    return batches((x[chosen], y[chosen]), size)


def correlations(network: Network, batches: Sequence[Batch], known: Path) -> Iterator[dict[str, Any]]:
    """The leave-one-out ablation, stored in a file, and each criterion compared with it."""
    model = network.model.eval()
    graph = sec.trace(model, network.example())
    resume = Ablation.from_dict(json.loads(known.read_text())) if known.is_file() else None
    began = time.perf_counter()
    ablation = ablate(model, graph, batches, F.cross_entropy, resume=resume)
    known.write_text(json.dumps(ablation.to_dict()))
    seconds = time.perf_counter() - began
    yield {"criterion": "leave-one-out", "seconds": seconds, "channels": ablation.measured}
    for name in criterion_names():
        began = time.perf_counter()
        try:
            scores = sec.score(model, graph, name, batches, F.cross_entropy)
        except sec.UsageError as error:  # such as the batch-norm scale where there is no batch norm
            print(error)
            continue
        seconds = time.perf_counter() - began
        found = compare_ranking(ablation, scores)
        yield {
            "criterion": name,
            "seconds": seconds,
            "per_group": found.per_group,
            "raw": found.raw,
            "normalized": found.normalized,
        }


def recovered(
    network: Network, data: ImageData, batches: Sequence[Batch], criterion: str, share: float, seed: int
) -> dict[str, Any]:
    """A cut to a share of the MACs by one criterion, and what two epochs make of it."""
    model = copy.deepcopy(network.model).eval()
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
            epochs=2,
            schedule="one-cycle",
            clip_norm=5.0,
            keep_best=False,
            optimizer=OptimizerSettings(learning_rate=0.02, nesterov=True, weight_decay=5e-4),
        )
        fit(small, data.training_batches(), settings)
    top1 = evaluate(small, data.test_batches()).metric
    return {"criterion": criterion, "share": share, "cut": 100 * cut, "top1": 100 * top1}


def table(rows: list[dict[str, Any]], columns: Sequence[str], by: Sequence[str]) -> str:
    """Means and, behind ±, standard deviations over seeds, as Markdown."""
    lines = ["| " + " | ".join((*by, *columns)) + " |", "|---" * (len(by) + len(columns)) + "|"]
    for key in dict.fromkeys(tuple(row[name] for name in by) for row in rows):
        same = [row for row in rows if tuple(row[name] for name in by) == key]
        cells = []
        for column in columns:
            values = [row[column] for row in same if not math.isnan(row[column])]
            mean = f"{statistics.mean(values):.2f}" if values else "–"
            cells.append(mean + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""))
        lines.append("| " + " | ".join((*map(str, key), *cells)) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--weights")
    parser.add_argument("--model", help="file.py:function that builds the network of RUN")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--recovery", action="store_true")
    parser.add_argument("--criteria", nargs="+", default=[*criterion_names(), SCRATCH], help="for --recovery")
    return parser.parse_args()


def main() -> None:
    """Runs what is not yet there, and prints all of it."""
    options = parse()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    choice = NetworkChoice(source=options.network, weights=options.weights, builder=options.model)
    data = open_pictures(
        DataChoice(source=options.data, batch_size=options.batch_size), input_of(choice), seed=0
    )
    network = open_network(choice, data.classes)
    rows = (
        [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    )

    def add(row: dict[str, Any], seed: int) -> None:
        rows.append({**row, "seed": seed})
        with options.out.open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], flush=True)

    for seed in range(options.seeds):
        batches = draw(data, options.examples, seed)
        if not options.recovery:
            if not any(row["seed"] == seed for row in rows):
                known = options.out.with_suffix(f".oracle-{seed}.json")
                for row in list(correlations(network, batches, known)):
                    add(row, seed)
            continue
        for share in SHARES:
            for criterion in options.criteria:
                if not any(
                    (row["criterion"], row["share"], row["seed"]) == (criterion, share, seed) for row in rows
                ):
                    add(recovered(network, data, batches, criterion, share, seed), seed)
    if options.recovery:
        print(table(rows, ("cut", "top1"), ("share", "criterion")))
    else:
        compared = [row for row in rows if "raw" in row]
        print(table(compared, ("per_group", "raw", "normalized"), ("criterion",)))


if __name__ == "__main__":
    main()
