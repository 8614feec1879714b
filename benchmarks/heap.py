"""What it is worth that freed memory is kept: passes with and without, in processes of their own, in turn.

Without, the C library hands large blocks back to the system and gets them back page by page. Each line:
median milliseconds of a forward pass or a training step, and page faults in each, without and with
the command line's setting.

    python benchmarks/heap.py [--cases forward:mobilenet_v2:16:224 step:vgg16_bn:50:48 ...]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from secateur._torchvision import torchvision
from secateur.cli.memory import keep_freed_memory

CASES = (
    "forward:mobilenet_v2:1:224",
    "forward:mobilenet_v2:8:224",
    "forward:mobilenet_v2:16:224",
    "forward:resnet50:16:224",
    "step:vgg16_bn:50:48",
    "step:squeezenet1_1:32:160",
    "step:mobilenet_v2:32:96",
)
WARM_UP = 3
Run = Callable[[torch.Tensor, torch.Tensor], None]
"""A pass over inputs and their classes."""


def passes(case: str, kept: bool, runs: int) -> tuple[float, float]:
    """Median milliseconds and page faults of a pass, in this process."""
    kind, name, batch, side = case.split(":")
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    inputs, classes = (
        torch.randn(int(batch), 3, int(side), int(side)),
        torch.zeros(int(batch), dtype=torch.long),
    )
    run = step(model) if kind == "step" else forward(model)
    times = []
    if kept:
        keep_freed_memory()
    for number in range(WARM_UP + runs):
        if number == WARM_UP:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        run(inputs, classes)
        times.append(1e3 * (time.perf_counter() - began))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return statistics.median(times[WARM_UP:]), faults / runs


def forward(model: nn.Module) -> Run:
    """A forward pass in evaluation and inference mode."""
    model.eval()

    def run(inputs: torch.Tensor, _: torch.Tensor) -> None:
        with torch.inference_mode():
            model(inputs)

    return run


def step(model: nn.Module) -> Run:
    """A training step with SGD and momentum."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    def run(inputs: torch.Tensor, classes: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), classes).backward()
        optimizer.step()

    return run


def main() -> None:
    """A line for each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="KIND:NETWORK:BATCH:PIXELS")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--runs", type=int, default=6, help="in each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=["with", "without"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(passes(options.cases[0], options.child == "with", options.runs)))
        return
    for case in options.cases:
        found: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
        for _ in range(options.rounds):
            for kind, results in found.items():
                words = ["--cases", case, "--runs", str(options.runs), "--threads", str(options.threads)]
                command = [sys.executable, __file__, *words, "--child", kind]
                results.append(json.loads(subprocess.check_output(command)))
        (slow, many), (fast, few) = (
            tuple(statistics.median(column) for column in zip(*results, strict=True))
            for results in found.values()
        )
        print(
            f"{case:30} {slow:8.0f} -> {fast:8.0f} ms ({slow / fast:.2f}), {many:8.0f} -> {few:6.0f} faults",
            flush=True,
        )


if __name__ == "__main__":
    main()
