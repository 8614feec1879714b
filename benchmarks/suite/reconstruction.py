"""Time and memory of least-squares reconstruction.

A network of torchvision with random weights; every group is cut to half its channels at random, and its
consumers are fitted on random images. Memory is the most that the process has held, in GiB.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

import secateur as sec
from benchmarks import benchmark
from benchmarks.images import batches
from benchmarks.tables import Table
from benchmarks.timing import timed


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: of torchvision.
        size: side of the images in pixels.
        examples: images to fit on.
    """

    threads: int = 2
    networks: tuple[str, ...] = ("vgg16",)
    size: int = 224
    examples: int = 256


class Row(benchmark.Row):
    """One network; memory before and after reconstruction."""

    network: str
    size: int
    examples: int
    threads: int
    layers: int
    seconds: float
    memory_before: float
    memory: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"networks": ("squeezenet1_1",), "size": 64, "examples": 32}


def run(options: Options) -> Iterator[Row]:
    """Cut each network to half its widths and reconstruct it."""
    for name in options.networks:
        model = sec.build(f"torchvision:{name}").eval()
        x = torch.randn(options.examples, 3, options.size, options.size)
        graph = sec.trace(model, x[:2])
        scores = sec.score(model, graph, "random")
        channels = sum(group.channels for group in graph.prunable)
        plan = sec.make_plan(graph, scores, sec.Budget(channels=channels // 2), allocation="uniform")
        small = sec.apply_plan(model, plan)
        held, shown = most_memory(), batches((x, torch.zeros(len(x))), 32)
        fits, seconds = timed(partial(sec.reconstruct, model, small, plan, shown))
        yield Row(
            network=name,
            size=options.size,
            examples=options.examples,
            threads=options.threads,
            layers=len(fits),
            seconds=seconds,
            memory_before=held,
            memory=most_memory(),
        )


def most_memory() -> float:
    """Return the most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def table(rows: Sequence[Row]) -> Table:
    """Show seconds and memory, a row for each network."""
    columns = ("network", "pixels", "examples", "threads", "layers", "seconds", "most memory", "before it")
    lines = [
        (
            row.network,
            str(row.size),
            str(row.examples),
            str(row.threads),
            str(row.layers),
            f"{row.seconds:.1f}",
            f"{row.memory:.2f} GiB",
            f"{row.memory_before:.2f} GiB",
        )
        for row in rows
    ]
    return Table(columns, lines)
