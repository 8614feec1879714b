"""How much accuracy a cut leaves, without any training, for ways of choosing and repairing.

A CIFAR-10 residual network, or one that was trained before, is cut to several shares of its MACs, and
evaluated on test pictures. Every way sees the same few pictures and is never trained:

- torch-pruning: global Taylor and group norm, as its own examples drive them;
- Taylor, global: ours, cut only, and with least-squares reconstruction;
- uniform widths by L1 norm, and by the reconstruction criterion, both reconstructed;
- width curves, reconstructed: in full, with single elements left out, and measured at
  more widths and on more pictures.

"inner" cuts only the channels inside residual blocks, "all" also the residual streams.

    python benchmarks/accuracy.py --data cifar10 --weights resnet20.th --out ROWS.jsonl
        [--network resnet20] [--pictures 512] [--test 2500] [--seeds 0 1 2]
    python benchmarks/accuracy.py --data cats_dogs --run RUN --shares 0.5 0.35 0.25 --out ROWS.jsonl

``--data`` is a folder with ``train`` and ``test``, in each a folder of pictures per class. Rows that the
file holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from cifar import Pictures, Setting, accuracy, joined, pictures
from criteria import draw
from peer import torch_pruning
from torch import nn
from trained import opened
from ways import Cut

import secateur as sec
from secateur.budget import Allocation
from secateur.recovery import CurveOptions, LeastSquares

SEVEN = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Shares of a group at which finer curves measure its damage."""


@dataclass(frozen=True)
class Task:
    """A network and its pictures.

    Attributes:
        model: in evaluation mode.
        test: pictures to judge by.
        shown: draws pictures to choose and repair with, given a seed.
    """

    model: nn.Module
    test: Pictures
    shown: Callable[[int], Pictures]

    @classmethod
    def of(cls, options: argparse.Namespace) -> Task:
        """What the command line names."""
        if options.run:
            network, data = opened(options.run, options.data)
            test = joined(data.test_batches())
            return cls(network.model, test, lambda seed: joined(draw(data, options.pictures, seed)))
        model = sec.build(f"secateur:{options.network}", weights=options.weights).eval()
        test = pictures(options.data / "test", options.test, 0)
        return cls(model, test, lambda seed: pictures(options.data / "train", options.pictures, seed))


def cut_by(setting: Setting, plan: sec.PruningPlan, repair: dict[str, bool] | None) -> nn.Module:
    """Applies a plan, and reconstructs if there are options for it."""
    small = sec.apply_plan(setting.model, plan)
    if repair is not None:
        sec.reconstruct(setting.model, small, plan, setting.batches, LeastSquares(), **repair)
    return small


def by_scores(
    setting: Setting, criterion: str, allocation: Allocation, repair: dict[str, bool] | None
) -> Cut:
    """Channels by score, over all groups together or the same share of each."""
    scores = sec.score(setting.model, setting.graph, criterion, setting.batches, F.cross_entropy)

    def cut(share: float) -> nn.Module:
        plan = sec.make_plan(
            setting.graph,
            scores,
            sec.Budget(macs=share),
            allocation=allocation,
            widths=sec.Widths(ignore=setting.left_alone),
        )
        return cut_by(setting, plan, repair)

    return cut


def by_curves(
    setting: Setting, criterion: str, repair: dict[str, bool] | None, options: CurveOptions | None = None
) -> Cut:
    """Widths by measured damage."""
    scores = sec.score(setting.model, setting.graph, criterion, setting.batches, F.cross_entropy)
    wanted = {name: scores[name] for name in scores if name not in setting.left_alone}
    curves = sec.width_curves(
        setting.model, setting.graph, wanted, setting.batches, CurveOptions() if options is None else options
    )

    def cut(share: float) -> nn.Module:
        plan = sec.make_plan(
            setting.graph, curves, sec.Budget(macs=share), widths=sec.Widths(ignore=setting.left_alone)
        )
        return cut_by(setting, plan, repair)

    return cut


def ways(setting: Setting) -> Iterable[tuple[str, Callable[[], Cut]]]:
    """All ways by name; nothing is computed before it is its turn."""
    full: dict[str, bool] = {}
    plain = {"refit_downstream": False, "correct_shortcut_error": False}
    yield "torch-pruning, global Taylor, cut only", lambda: torch_pruning(setting, "taylor")
    yield "torch-pruning, group norm, cut only", lambda: torch_pruning(setting, "group norm")
    yield "Taylor, global, cut only", lambda: by_scores(setting, "taylor", "global", None)
    yield "Taylor, global, reconstructed", lambda: by_scores(setting, "taylor", "global", full)
    yield "L1, uniform, reconstructed", lambda: by_scores(setting, "magnitude", "uniform", full)
    yield (
        "reconstruction, uniform, reconstructed",
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


def main() -> None:
    """Runs all ways and prints accuracies, and their share of the baseline's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--run", type=Path, help="a trained network instead, by its run folder")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.6, 0.5, 0.4])
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--test", type=int, default=2500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--streams", action="store_true", help="cut the residual streams too")
    parser.add_argument("--only", nargs="+", default=[""], help="ways whose name contains one of these")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    task, shares = Task.of(options), sorted(options.shares, reverse=True)
    graph = sec.trace(task.model, task.test[0][:1])
    baseline = accuracy(task.model, task.test)
    print(f"{len(task.test[1])} test pictures, {options.pictures} to choose and repair with")
    print(f"{'':48}" + "".join(f"{share:>8.0%}" for share in (1.0, *shares)) + "    seconds")
    rows = (
        [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    )
    for seed in options.seeds:
        setting = Setting(task.model, graph, task.shown(seed), inner=not options.streams)
        for name, way in ways(setting):
            wanted = any(part in name for part in options.only)
            if not wanted or (name, seed) in {(row["way"], row["seed"]) for row in rows}:
                continue
            start = time.perf_counter()
            cut = way()
            row = [accuracy(cut(share), task.test) for share in shares]
            rows.append({"way": name, "seed": seed, "accuracy": row, "seconds": time.perf_counter() - start})
            with options.out.open("a") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
            figures = "".join(f"{item:8.1f}" for item in (baseline, *row))
            print(f"{name:48}{figures}{rows[-1]['seconds']:11.0f}", flush=True)
    print(table(rows, baseline, shares))


def table(rows: list[dict[str, Any]], baseline: float, shares: list[float]) -> str:
    """What is kept of the baseline's accuracy, in percent: mean and, behind ±, deviation over seeds."""
    lines = ["| way | " + " | ".join(f"{share:.0%}" for share in shares) + " | seconds |"]
    lines.append("|---" * (len(shares) + 2) + "|")
    for name in dict.fromkeys(row["way"] for row in rows):
        same = [row for row in rows if row["way"] == name]
        cells = []
        for column in zip(*(row["accuracy"] for row in same), strict=True):
            kept = [100 * item / baseline for item in column]
            spread = f" ± {statistics.stdev(kept):.1f}" if len(kept) > 1 else ""
            cells.append(f"{statistics.mean(kept):.1f}{spread}")
        seconds = statistics.median(row["seconds"] for row in same)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
