"""At half the time by the clock, which widths keep the most accuracy: chosen by time, by MACs, or all alike.

A trained network is cut three ways to half its latency on this device: with width curves and a limit of the
time; with the same curves and as many MACs as take that time; with the same share of every group. Each is
repaired by least squares on the same pictures and judged on test pictures, without any training. Three draws
of the pictures. Lines that FILE holds are not made again.

    python benchmarks/intime.py RUN --data DIR --out FILE.jsonl [--batches 1] [--examples 512] [--seeds 0 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from criteria import Batch, draw
from latency import Bench, kept
from torch import Tensor, nn
from trained import opened

import secateur as sec
from secateur.budget import WidthCurves
from secateur.cli.memory import keep_freed_memory
from secateur.criteria import Scores
from secateur.data import ImageData
from secateur.jobs.networks import Network
from secateur.training.evaluate import evaluate


@dataclass(frozen=True, eq=False)
class Trained(Bench):
    """A trained network, judged by its accuracy.

    Attributes:
        network: the network and what it is called with.
        data: its pictures.
        shown: those to choose and repair with.
    """

    network: Network
    data: ImageData
    shown: Sequence[Batch]

    @cached_property
    def model(self) -> nn.Module:
        """The network."""
        return self.network.model.eval()

    @cached_property
    def inputs(self) -> Tensor:
        """Pictures."""
        return self.shown[0][0][: self.batch]

    @cached_property
    def scores(self) -> Scores:
        """The order in which channels go, of all ways alike."""
        return sec.score(self.model, self.graph, "reconstruction", self.shown, F.cross_entropy)

    @cached_property
    def curves(self) -> WidthCurves:
        """Damage by width, measured."""
        return sec.width_curves(self.model, self.graph, self.scores, self.shown)

    def kept(self, plan: sec.PruningPlan) -> float:
        """Accuracy after the cut and its repair, in percent."""
        small = sec.apply_plan(self.model, plan)
        sec.reconstruct(self.model, small, plan, self.shown)
        return 100 * evaluate(small, self.data.test_batches()).metric


def main() -> None:
    """Runs what is not there yet, and prints means over draws."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=0.6, help="spent on timing each network")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    network, data = opened(options.network, options.data)
    print(f"before: {100 * evaluate(network.model, data.test_batches()).metric:.2f}", flush=True)
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for batch in options.batches:
        for seed in options.seeds:
            if any((row["batch"], row["seed"]) == (batch, seed) for row in rows):
                continue
            shown = draw(data, options.examples, seed)
            bench = Trained(Path(options.network).name, batch, options, network, data, shown)
            rows += [{"batch": batch, "seed": seed, **row} for row in kept(bench)]
            options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(*rows[-3:], sep="\n", flush=True)
    print(table(rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means and deviations over draws, as Markdown."""
    lines = ["| examples | widths chosen by | top-1 | time left | MACs left |", "|---|---|---|---|---|"]
    for batch, way in dict.fromkeys((row["batch"], row["way"]) for row in rows):
        same = [row for row in rows if (row["batch"], row["way"]) == (batch, way)]
        top1 = [row["kept"] for row in same]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        time, macs = (statistics.mean(row[name] for row in same) for name in ("share", "macs"))
        lines.append(
            f"| {batch} | {way} | {statistics.mean(top1):.2f}{spread} | {time:.3f} | {100 * macs:.0f}% |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
