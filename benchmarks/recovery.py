"""How much accuracy is left after a cut and a few epochs of fine-tuning, for ways of cutting and training.

A CIFAR-10 residual network is first adapted to the pictures; that is the baseline. Each way cuts a copy to a
share of its MACs and trains it: same pictures, epochs, batches, augmentation, optimizer and schedule for all.

    python benchmarks/recovery.py --data cifar10 --weights resnet56.th --work runs/recovery
        [--network resnet56] [--shares 0.4] [--seeds 0 1 2] [--epochs 3] [--rates 0.03] [--only NAME ...]

Rows that ``WORK/rows.jsonl`` holds already are not run again. Accuracy is that of the last epoch on test
pictures; nothing is chosen by them. Where there is a GPU, all of it runs there.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from cifar import Pictures, Setting, accuracy, batches, pictures, raw, training
from torch import nn
from ways import WAYS, Way, not_cut

import secateur as sec
from secateur.training.context import RunContext
from secateur.training.loop import fit
from secateur.training.random_state import seeded
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings


@dataclass
class Row:
    """One way, once.

    Attributes:
        way: its name.
        share: of the MACs asked for.
        seed: of the pictures looked at, and of the training.
        epochs: of fine-tuning.
        rate: peak learning rate.
        mixup: how training pictures are blended, 0 for not at all.
        macs: share of the MACs that is left.
        params: share of the parameters that is left.
        cut: accuracy after the cut, in percent.
        curve: accuracy after each epoch.
        seconds: of cutting (curves are counted with the first way of a run that uses them), and of training.
    """

    way: str
    share: float
    seed: int
    epochs: int
    rate: float
    mixup: float = 0.0
    macs: float = 0.0
    params: float = 0.0
    cut: float = 0.0
    curve: list[float] = field(default_factory=list)
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells rows apart."""
        return self.way, self.share, self.seed, self.epochs, self.rate, self.mixup


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
        context = RunContext(DeviceSettings(channels_last="yes"))
        with seeded(row.seed):
            done = fit(
                model,
                training(self.train, self.batch, row.seed, row.mixup),
                settings,
                validation=batches(self.test, 250),
                teacher=way.teacher(teacher),
                context=context,
            )
        model.eval()
        return [100 * epoch.top1 for epoch in done.history if epoch.top1 is not None]

    def run(self, setting: Setting, way: Way, rows: list[Row]) -> Iterator[Row]:
        """Cuts and trains for each row, all of one way and one draw of pictures, and fills them in."""
        began = time.perf_counter()
        with seeded(rows[0].seed):
            cut = way.cut(setting)
        looking = time.perf_counter() - began
        x = setting.pictures[0][:1]
        before = sec.cost(setting.model, x)
        cuts: dict[float, tuple[nn.Module, float]] = {}
        for row in rows:
            if row.share not in cuts:
                began = time.perf_counter()
                with seeded(row.seed):
                    cuts[row.share] = cut(row.share).eval(), time.perf_counter() - began
            small, cutting = copy.deepcopy(cuts[row.share][0]), cuts[row.share][1]
            after = sec.cost(small, x)
            row.macs, row.params = after.macs / before.macs, after.params / before.params
            row.cut = accuracy(small, self.test)
            start = time.perf_counter()
            row.curve = self.tune(small, way, setting.model, row)
            row.seconds = (looking + cutting, time.perf_counter() - start)
            yield row


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
    row.curve = bench.tune(model, Way(not_cut, average=0.98), None, row)
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
    parser.add_argument("--mixup", type=float, default=0.0)
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
    place = RunContext().device
    model = baseline(bench, options).to(place)
    print(f"baseline {accuracy(model, bench.test):.2f}", flush=True)
    graph = sec.trace(model, torch.randn(1, 3, 32, 32))
    file = options.work / "rows.jsonl"
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []
    held = {row.key for row in rows}
    for seed in options.seeds:
        shown, classes = pictures(options.data / "train", options.pictures, seed)
        setting = Setting(model, graph, (shown.to(place), classes.to(place)), inner=True)
        for way in options.only:
            wanted = [row for row in planned(options, seed, way) if row.key not in held]
            for row in bench.run(setting, WAYS[way], wanted) if wanted else ():
                rows.append(row)
                with file.open("a") as lines:
                    lines.write(json.dumps(asdict(row)) + "\n")
                print(f"{way:28} {row.share} seed {seed}: {row.cut:.2f} -> {row.curve[-1]:.2f}", flush=True)
    asked = [row.key for seed in options.seeds for way in options.only for row in planned(options, seed, way)]
    print(table([row for row in rows if row.key in asked]))


def planned(options: argparse.Namespace, seed: int, way: str) -> list[Row]:
    """What was asked for of one way and one draw of pictures, the largest networks first."""
    return [
        Row(way, share, seed, epochs, rate, options.mixup)
        for share in sorted(options.shares, reverse=True)
        for epochs in options.epochs
        for rate in options.rates
    ]


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
