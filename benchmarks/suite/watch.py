"""Cost of watching a criterion during training.

Training steps with and without watching alternate in one process. The last column is the ratio of the median
times, less one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

import secateur as sec
from benchmarks import benchmark
from benchmarks.tables import Table
from benchmarks.timing import interleaved
from secateur.criteria import watch


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: with ten classes.
        criteria: names.
        precision: of the forward pass.
        batch: images in a step.
        size: side of the images in pixels.
        rounds: steps of each kind.
        device: ``cpu`` or ``cuda``.
    """

    threads: int = 2
    networks: tuple[str, ...] = ("secateur:resnet20", "torchvision:vgg16_bn")
    criteria: tuple[str, ...] = ("taylor",)
    precision: Literal["float32", "bf16"] = "float32"
    batch: int = 32
    size: int = 64
    rounds: int = 20
    device: Literal["cpu", "cuda"] = "cpu"


class Row(benchmark.Row):
    """One network and criterion: milliseconds of a step without and with watching."""

    network: str
    criterion: str
    precision: str
    batch: int
    size: int
    without_ms: float
    with_ms: float


RESNET20 = {"networks": ("secateur:resnet20",), "rounds": 25}
VGG = {"networks": ("torchvision:vgg16_bn",)}
CASES: Mapping[str, Mapping[str, Any]] = {
    "resnet20": RESNET20,
    "resnet20-bf16": {**RESNET20, "precision": "bf16"},
    "vgg16_bn": {**VGG, "rounds": 7},
    "vgg16_bn-bf16": {**VGG, "precision": "bf16", "batch": 8, "rounds": 4},
}
QUICK: Mapping[str, Any] = {"networks": ("secateur:resnet20",), "batch": 8, "size": 32, "rounds": 3}


def run(options: Options) -> Iterator[Row]:
    """Measure every network with every criterion."""
    for network in options.networks:
        for criterion in options.criteria:
            if not options.measured(network=network, criterion=criterion):
                yield measured(network, criterion, options)


def measured(network: str, criterion: str, options: Options) -> Row:
    """Measure one network with one criterion."""
    model: Any = sec.build(network, classes=10)  # torch declares ``to`` without a layout
    model = model.to(options.device, memory_format=torch.channels_last).train()
    inputs = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (options.batch,), device=options.device)
    graph = sec.trace(model, inputs[:2])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    bf16 = options.precision == "bf16"

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(options.device, dtype=torch.bfloat16, enabled=bf16):
            outputs = model(inputs)
        F.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def within(context: Callable[[], contextlib.AbstractContextManager[Any]]) -> Callable[[], float]:
        def run_in() -> float:
            with context():
                return step()

        return run_in

    watching = watch(model, graph, criterion)
    step()
    ways = {"without": within(contextlib.nullcontext), "with": within(lambda: watching)}
    seconds = interleaved(ways, options.rounds)
    return Row(
        network=network,
        criterion=criterion,
        precision=options.precision,
        batch=options.batch,
        size=options.size,
        without_ms=1e3 * seconds["without"],
        with_ms=1e3 * seconds["with"],
    )


def table(rows: Sequence[Row]) -> Table:
    """Show how much longer a step takes, a row for each network and criterion."""
    columns = ("network", "criterion", "precision", "batch", "pixels", "without", "with", "longer by")
    lines = [
        (
            row.network,
            row.criterion,
            row.precision,
            str(row.batch),
            str(row.size),
            f"{row.without_ms:.1f} ms",
            f"{row.with_ms:.1f} ms",
            f"{row.with_ms / row.without_ms - 1:+.1%}",
        )
        for row in rows
    ]
    return Table(columns, lines)
