"""How much accuracy is left after a cut and a few epochs of fine-tuning, for ways of cutting and training.

A CIFAR-10 residual network is first adapted to the pictures; that is the baseline. Each way cuts a copy to a
share of its MACs and trains it: same pictures, epochs, batches, augmentation, optimizer and schedule for all.

    python benchmarks/recovery.py --data cifar10 --weights resnet56.th --work runs/recovery
        [--network resnet56] [--shares 0.4] [--seeds 0 1 2] [--epochs 3] [--rates 0.03] [--only NAME ...]

Rows that ``WORK/rows.jsonl`` holds already are not run again. Accuracy is that of the last epoch on test
pictures; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar import Pictures, Setting, accuracy, batches, pictures, raw, training
from peer import torch_pruning
from torch import nn

import secateur as sec
from secateur.recovery import recalibrate
from secateur.training.devices import make_machine
from secateur.training.distillation import Teacher
from secateur.training.fit import Surroundings, fit
from secateur.training.seeds import seeded
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings

Cut = Callable[[Setting, float], nn.Module]


@dataclass(frozen=True)
class Way:
    """How a network is cut, and what is added to its training.

    Attributes:
        cut: makes the smaller network.
        distill: weight of the baseline's answers in the loss.
        temperature: of those answers.
        average: decay of the average of the weights.
    """

    cut: Cut
    distill: float = 0.0
    temperature: float = 4.0
    average: float = 0.0

    def teacher(self, model: nn.Module | None) -> Teacher | None:
        """The baseline, if it is to be learnt from."""
        if model is None or not self.distill:
            return None
        return Teacher(copy.deepcopy(model), self.distill, self.temperature)


@dataclass(frozen=True)
class Ours:
    """Scores, widths, repair.

    Attributes:
        criterion: gives the order of the channels in each group.
        allocate: ``curves``, ``uniform`` or ``global``.
        repair: refit consumers by least squares.
        recalibrated: measure batch-norm statistics anew instead.
    """

    criterion: str = "reconstruction"
    allocate: str = "curves"
    repair: bool = True
    recalibrated: bool = False

    def __call__(self, setting: Setting, share: float) -> nn.Module:
        """The smaller network."""
        model, graph = setting.model, setting.graph
        scores = sec.score(model, graph, self.criterion, setting.batches, F.cross_entropy)
        ranking: Any = scores
        if self.allocate == "curves":
            wanted = {name: scores[name] for name in scores if name not in setting.left_alone}
            ranking = sec.width_curves(model, graph, wanted, setting.batches)
        scope = "uniform" if self.allocate == "uniform" else "global"
        plan = sec.make_plan(graph, ranking, sec.Budget(macs=share), scope=scope, ignore=setting.left_alone)
        small = sec.apply_plan(model, plan)
        if self.repair:
            sec.reconstruct(model, small, plan, setting.batches)
        if self.recalibrated:
            recalibrate(small, setting.batches)
        return small


def from_scratch(setting: Setting, share: float) -> nn.Module:
    """The widths of the full way with fresh random weights."""
    small = Ours(repair=False)(setting, share)
    for module in small.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return small


def with_streams(setting: Setting, share: float) -> nn.Module:
    """The full way, free to cut the residual streams too."""
    return Ours()(replace(setting, inner=False), share)


FULL = Way(Ours(), distill=0.9, average=0.98)
WAYS: dict[str, Way] = {
    "full": FULL,
    "torch-pruning, taylor": Way(lambda setting, share: torch_pruning(setting, "taylor")(share)),
    "torch-pruning, group norm": Way(lambda setting, share: torch_pruning(setting, "group norm")(share)),
    "random": Way(Ours("random", "uniform", repair=False)),
    "from scratch": Way(from_scratch),
    "cut and repair only": Way(Ours()),
    "full, without curves": replace(FULL, cut=Ours(allocate="uniform")),
    "full, taylor order": replace(FULL, cut=Ours("taylor")),
    "full, without repair": replace(FULL, cut=Ours(repair=False)),
    "full, recalibrated": replace(FULL, cut=Ours(recalibrated=True)),
    "full, without distillation": replace(FULL, distill=0.0),
    "full, without average": replace(FULL, average=0.0),
    "full, with streams": replace(FULL, cut=with_streams),
    "taylor, global, cut only": Way(Ours("taylor", "global", repair=False)),
}


@dataclass
class Row:
    """One way, once.

    Attributes:
        way: its name.
        share: of the MACs asked for.
        seed: of the pictures looked at, and of the training.
        epochs: of fine-tuning.
        rate: peak learning rate.
        macs: share of the MACs that is left.
        params: share of the parameters that is left.
        cut: accuracy after the cut, in percent.
        curve: accuracy after each epoch.
        seconds: of cutting, and of training.
    """

    way: str
    share: float
    seed: int
    epochs: int
    rate: float
    macs: float = 0.0
    params: float = 0.0
    cut: float = 0.0
    curve: list[float] = field(default_factory=list)
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells rows apart."""
        return self.way, self.share, self.seed, self.epochs, self.rate


@dataclass
class Bench:
    """The data, and how everything is trained."""

    train: Pictures
    test: Pictures
    batch: int

    def tune(self, model: nn.Module, way: Way, teacher: nn.Module | None, row: Row) -> list[float]:
        """Trains in place; accuracy after each epoch."""
        settings = FitSettings(
            epochs=row.epochs,
            schedule="one-cycle",
            average=way.average,
            clip_norm=5.0,
            keep_best=False,
            optimizer=OptimizerSettings(learning_rate=row.rate, nesterov=True, weight_decay=5e-4),
        )
        around = Surroundings(make_machine(DeviceSettings(channels_last="yes")))
        with seeded(row.seed):
            done = fit(
                model,
                training(self.train, self.batch, row.seed),
                settings,
                validation=batches(self.test, 250),
                teacher=way.teacher(teacher),
                surroundings=around,
            )
        model.eval()
        return [100 * epoch.top1 for epoch in done.history if epoch.top1 is not None]

    def run(self, setting: Setting, way: Way, row: Row) -> None:
        """Cuts, trains, and fills in the row."""
        began = time.perf_counter()
        with seeded(row.seed):
            small = way.cut(setting, row.share).eval()
        cut = time.perf_counter()
        x = setting.pictures[0][:1]
        before, after = sec.cost(setting.model, x), sec.cost(small, x)
        row.macs, row.params = after.macs / before.macs, after.params / before.params
        row.cut = accuracy(small, self.test)
        start = time.perf_counter()
        row.curve = self.tune(small, way, setting.model, row)
        row.seconds = (cut - began, time.perf_counter() - start)


def baseline(bench: Bench, options: argparse.Namespace) -> nn.Module:
    """The network adapted to the pictures, kept in the work folder."""
    model = sec.build(f"secateur:{options.network}", weights=options.weights).eval()
    if options.baseline:
        return sec.load(options.baseline, model).eval()
    file = options.work / f"{options.network}-{options.adapt}x{len(bench.train[1])}.safetensors"
    if file.is_file():
        return sec.load(file, model).eval()
    row = Row("baseline", 1.0, 0, options.adapt, options.adapt_rate)
    row.cut = accuracy(model, bench.test)
    row.curve = bench.tune(model, Way(with_streams, average=0.98), None, row)
    print(
        f"baseline: {row.cut:.2f} as published, then {' '.join(f'{top:.2f}' for top in row.curve)}",
        flush=True,
    )
    sec.save(file, model)
    return model


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, help="checkpoint of the adapted network, made elsewhere")
    parser.add_argument("--network", default="resnet56")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[3])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.03])
    parser.add_argument("--adapt", type=int, default=5, help="epochs of adaptation before all else")
    parser.add_argument("--adapt-rate", type=float, default=0.02)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=2500)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="NAME")
    return parser.parse_args()


def main() -> None:
    """Runs what is not yet there, and prints all of it."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        raw(options.data / "train", options.train, 0),
        pictures(options.data / "test", options.test, 0),
        options.batch,
    )
    model = baseline(bench, options)
    print(f"baseline {accuracy(model, bench.test):.2f}", flush=True)
    graph = sec.trace(model, torch.zeros(1, 3, 32, 32))
    file = options.work / "rows.jsonl"
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []
    wanted = [
        Row(way, share, seed, epochs, rate)
        for share in options.shares
        for epochs in options.epochs
        for rate in options.rates
        for seed in options.seeds
        for way in options.only
    ]
    for row in wanted:
        if row.key in {other.key for other in rows}:
            continue
        shown = pictures(options.data / "train", options.pictures, row.seed)
        bench.run(Setting(model, graph, shown, inner=True), WAYS[row.way], row)
        rows.append(row)
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(row)) + "\n")
        print(f"{row.way:28} {row.share} seed {row.seed}: {row.cut:.2f} -> {row.curve[-1]:.2f}", flush=True)
    keys = {row.key for row in wanted}
    print(table([row for row in rows if row.key in keys]))


def table(rows: list[Row]) -> str:
    """Means and spreads over seeds, as Markdown."""
    lines = [
        "| MACs left | epochs | rate | way | parameters left | after the cut | after training | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row.share, row.epochs, row.rate, row.way) for row in rows):
        same = [row for row in rows if (row.share, row.epochs, row.rate, row.way) == key]
        last = [row.curve[-1] for row in same]
        spread = f" ± {statistics.stdev(last):.2f}" if len(last) > 1 else ""
        share, epochs, rate, way = key
        params, cut = (statistics.mean(getattr(row, name) for row in same) for name in ("params", "cut"))
        seconds = statistics.mean(sum(row.seconds) for row in same)
        lines.append(
            f"| {share:.3g} | {epochs} | {rate:g} | {way} | {params:.2f} | {cut:.2f} | "
            f"{statistics.mean(last):.2f}{spread} | {seconds:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
