"""Whether milliseconds that are asked for are milliseconds that are measured, and what they are worth.

Sections, each a line of JSON per network, number of examples and case; lines that are there already are not
made again, so that an interrupted run goes on:

- ``half``: half the latency is asked for; the smaller network is then timed beside the whole one in separate
  processes, and the median of their ratios counts.
- ``foretold``: random plans, what the table says against what the clock says, both as shares of the whole
  network, which runs in turn with them.
- ``kept``: half the latency by the clock, once with widths chosen by time, once by MACs, once the same share
  of every group: the share of its magnitude that a group is left with (geometric mean).
- ``macs``: half the MACs, and the speed-up for it; the ideal is two. Any widths and those that run well; the
  same again with the time limited too, and with the parameters.
- ``paper``: AlexNet with 41% of its maps, VGG16 with 66% and 52% (arXiv 1611.06440), batch 16.

    python benchmarks/latency.py [SECTION ...] [--networks resnet18 ...] [--batches 1 16] [--out FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.budget import WidthCurve, WidthCurves, plan_within
from secateur.cli.memory import keep_freed_memory
from secateur.criteria import Scores
from secateur.latency import Comparison, LatencyTable, Timings, compare_latency, latency_table
from secateur.recipes.latency_tuner import LatencyFit, LatencyTuner

NETWORKS = ("resnet50", "vgg16", "mobilenet_v2", "efficientnet_b0", "densenet121")
PAPER = (("alexnet", 0.41), ("vgg16", 0.66), ("vgg16", 0.52))
PAPER_BATCH = 16
HALF = 0.5
ALONG: tuple[dict[str, float], ...] = ({}, {"latency": 0.53}, {"params": 0.25})
"""What may be limited along with half the MACs."""
CLOSE = 0.02  # how near to half the time plans are brought before they are compared
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """One network and a number of examples, with everything that was measured on it.

    Attributes:
        name: of a torchvision network.
        batch: number of examples.
        args: what was asked on the command line.
    """

    name: str
    batch: int
    args: argparse.Namespace

    @cached_property
    def model(self) -> nn.Module:
        """The network, with the same random weights each time."""
        torch.manual_seed(0)
        return sec.build(f"torchvision:{self.name}", classes=1000).eval()

    @cached_property
    def inputs(self) -> Tensor:
        """Noise in the shape of pictures."""
        return torch.randn(self.batch, 3, self.args.size, self.args.size)

    @cached_property
    def graph(self) -> sec.ChannelGraph:
        """The channel graph."""
        return sec.trace(self.model, self.inputs[:1])

    @cached_property
    def table(self) -> LatencyTable:
        """The latency table, from what was measured before where it was."""
        began = time.perf_counter()
        table = latency_table(self.model, self.graph, self.inputs, timings=timings(self.args))
        print(f"# {self.name}, batch {self.batch}: table in {time.perf_counter() - began:.0f} s", flush=True)
        return table

    @cached_property
    def tuner(self) -> LatencyTuner:
        """The table and the clock."""
        return LatencyTuner(self.table, self.inputs, self.clock)

    @cached_property
    def scores(self) -> Scores:
        """Magnitudes of all channels."""
        return sec.score(self.model, self.graph, "magnitude")

    @cached_property
    def curves(self) -> WidthCurves:
        """Damage without data: of each group, the logarithm of the share of its magnitude that is left.

        Layers work one on the other, so shares multiply, and no group is given up for the others.
        """
        found = {}
        for name, values in self.scores.items():
            order = torch.argsort(values, stable=True)
            left = torch.cumsum(values[order.flip(0)].double(), 0) / values.sum()
            damages = [*(-left[:-1].log()).tolist(), 0.0]
            widths = tuple(range(1, len(order) + 1))
            found[name] = WidthCurve(tuple(order.tolist()), widths, tuple(damages))
        return WidthCurves(found, "magnitude")

    def clock(self, models: Mapping[str, nn.Module], inputs: Any) -> Comparison:
        """Networks in turn."""
        return compare_latency(models, inputs, min_seconds=self.args.seconds, min_runs=5, warmup=2)

    def share(self, plan: sec.PruningPlan) -> float:
        """Time after a plan as a share of that of the whole network, run in turn."""
        small = sec.apply_plan(self.model, plan)
        return 1 / self.clock({"whole": self.model, "small": small}, self.inputs).speedup("small")

    def kept(self, plan: sec.PruningPlan) -> float:
        """Share of its magnitude that a group is left with, the geometric mean over groups."""
        lost = [float(self.curves[n].at(np.array([len(kept)]))[0]) for n, kept in plan.keep.items()]
        return float(np.exp(-sum(lost) / max(1, len(self.curves))))


def timings(args: argparse.Namespace) -> Timings:
    """What operators were found to take, kept beside the results."""
    return Timings(args.out.with_suffix(".timings.jsonl"))


def in_half_the_time(bench: Bench) -> LatencyFit:
    """The plan that keeps the most in half the time."""

    def plan_for(limits: Mapping[str, int]) -> sec.PruningPlan:
        return plan_within(bench.graph, bench.curves, limits, latency=bench.table)

    limits = sec.Budget(latency=HALF).amounts(bench.graph, bench.table)
    return bench.tuner.plan(HALF, limits, plan_for, bench.model)


def half(bench: Bench) -> Iterator[Row]:
    """Half the latency, timed in processes of their own."""
    found = in_half_the_time(bench)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keep.json"
        file.write_text(json.dumps(found.plan.to_dict()))
        command = [sys.executable, __file__, "--child", str(file), *same(bench.args, bench)]
        shares = [float(subprocess.check_output(command)) for _ in range(bench.args.processes)]
    yield {
        "share": statistics.median(shares),
        "shares": shares,
        "tries": found.tries,
        "foretold": found.predicted_ms / float(bench.table.milliseconds(bench.graph.widths)),
        "macs": found.plan.cost_after.macs / found.plan.cost_before.macs,
    }


def child(file: Path, bench: Bench) -> float:
    """One of those processes: the share of the time that a stored plan leaves."""
    return bench.share(sec.PruningPlan.from_dict(bench.graph, json.loads(file.read_text())))


def same(args: argparse.Namespace, bench: Bench) -> list[str]:
    """The options that make a process measure alike."""
    options = {"--networks": bench.name, "--batches": bench.batch, "--threads": args.threads}
    options |= {"--size": args.size, "--seconds": args.seconds, "--out": args.out}
    return [str(word) for pair in options.items() for word in pair]


def foretold(bench: Bench) -> Iterator[Row]:
    """Random plans: the table against the clock."""
    rng = np.random.default_rng(1)
    whole = float(bench.table.milliseconds(bench.graph.widths))
    shares, errors = [], []
    for _ in range(bench.args.plans):
        mean = rng.uniform(0.3, 1.0)
        keep = {
            group.name: tuple(range(round(group.channels * share) or 1))
            for group in bench.graph.prunable
            for share in [float(np.clip(rng.normal(mean, 0.25), 0.05, 1))]
        }
        plan = sec.PruningPlan(bench.graph, keep)
        said = float(bench.table.milliseconds(plan.widths)) / whole
        shares.append(bench.share(plan))
        errors.append(said / shares[-1] - 1)
    sizes = np.abs(errors)
    yield {
        "plans": len(errors),
        "median_error": float(np.median(sizes)),
        "worst_error": float(sizes.max()),
        "bias": float(np.mean(errors)),
        "errors": errors,
        "shares": shares,
    }


def kept(bench: Bench) -> Iterator[Row]:
    """What is left at half the time by the clock."""
    ways: dict[str, Callable[[float], sec.PruningPlan]] = {
        "macs": lambda share: sec.make_plan(bench.graph, bench.curves, sec.Budget(macs=share)),
        "uniform": lambda share: sec.make_plan(
            bench.graph, bench.scores, sec.Budget(channels=share), allocation="uniform"
        ),
    }
    found = in_half_the_time(bench)
    plans = {"latency": (found.plan, found.measured_ms / found.allowed_ms * HALF)}
    plans |= {way: at_half_the_time(bench, plan_for) for way, plan_for in ways.items()}
    for way, (plan, share) in plans.items():
        macs = plan.cost_after.macs / plan.cost_before.macs
        yield {"way": way, "kept": bench.kept(plan), "share": share, "macs": macs}


def at_half_the_time(
    bench: Bench, plan_for: Callable[[float], sec.PruningPlan]
) -> tuple[sec.PruningPlan, float]:
    """The plan of a kind that takes half the time by the clock, and what it takes."""
    whole = float(bench.table.milliseconds(bench.graph.widths))
    target = HALF
    best: tuple[sec.PruningPlan, float] | None = None
    for _ in range(4):
        low, high = 0.02, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            try:
                said = float(bench.table.milliseconds(plan_for(middle).widths)) / whole
            except sec.BudgetError:
                said = 0.0
            low, high = (middle, high) if said < target else (low, middle)
        plan = plan_for(high)
        share = bench.share(plan)
        if best is None or abs(share - HALF) < abs(best[1] - HALF):
            best = (plan, share)
        if abs(share - HALF) < CLOSE * HALF:
            break
        target *= HALF / share
    assert best is not None
    return best


def macs(bench: Bench) -> Iterator[Row]:
    """Half the MACs, in any widths and in those that run well; then with another limit as well."""
    multiples: tuple[int | Literal["auto"], ...] = (1, "auto")
    for also, multiple_of in itertools.product(ALONG, multiples):
        budget = sec.Budget(macs=HALF, **also)
        plan = sec.make_plan(
            bench.graph, bench.curves, budget, latency=bench.table, widths=sec.Widths(multiple_of=multiple_of)
        )
        reduction = plan.cost_before.macs / plan.cost_after.macs
        speedup = 1 / bench.share(plan)
        yield {
            "also": also,
            "multiple_of": multiple_of,
            "reduction": reduction,
            "speedup": speedup,
            "of_ideal": speedup / reduction,
            "kept": bench.kept(plan),
        }


def paper(bench: Bench) -> Iterator[Row]:
    """The shares of maps of the paper's table."""
    filters = [g.name for g in bench.graph.prunable if g.name.startswith("features")]
    for name, share in PAPER:
        if name == bench.name:
            plan = sec.make_plan(
                bench.graph,
                bench.scores,
                sec.Budget(channels=share),
                allocation="uniform",
                widths=sec.Widths(only=filters),
            )
            yield {"maps": share, "speedup": 1 / bench.share(plan)}


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "half": half,
    "foretold": foretold,
    "kept": kept,
    "macs": macs,
    "paper": paper,
}


def main() -> None:
    """Runs what is not there yet."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 16))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on timing each network")
    parser.add_argument("--out", type=Path, default=Path("runs/latency.jsonl"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(child(args.child, Bench(args.networks[0], args.batches[0], args)))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(row["section"], row["network"], row["batch"], row["threads"]) for row in map(json.loads, lines)}
    for section in args.sections or SECTIONS:
        pairs = [(name, batch) for name in args.networks for batch in args.batches]
        if section == "paper":
            pairs = [(name, PAPER_BATCH) for name in dict(PAPER)]
        for name, batch in pairs:
            if (section, name, batch, args.threads) in done:
                continue
            rows = [
                {"section": section, "network": name, "batch": batch, "threads": args.threads, **row}
                for row in SECTIONS[section](Bench(name, batch, args))
            ]
            with args.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            for row in rows:
                print({key: value for key, value in row.items() if not isinstance(value, list)}, flush=True)


if __name__ == "__main__":
    main()
