"""How long it takes to choose the widths of a whole network.

Damages stand in for measured width curves: of each group, the logarithm of the share of its magnitude that
is left.

    python benchmarks/planning.py [--networks densenet121 ...] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from latency import NETWORKS, Bench

import secateur as sec

BUDGETS = (sec.Budget(macs=0.5), sec.Budget(macs=0.5, params=0.5))


def main() -> None:
    """A row for each network: how many groups, and the median of some rounds for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | groups | half the MACs | half the MACs and parameters |\n|---|---|---|---|")
    for name in args.networks:
        bench = Bench(name, 1, args)
        graph, curves, took = bench.graph, bench.curves, []
        for budget in BUDGETS:
            rounds = []
            for _ in range(args.rounds):
                began = time.perf_counter()
                sec.make_plan(graph, curves, budget)
                rounds.append(time.perf_counter() - began)
            took.append(f"{statistics.median(rounds):.1f} s")
        print(f"| {name} | {len(graph.prunable)} | {' | '.join(took)} |", flush=True)


if __name__ == "__main__":
    main()
