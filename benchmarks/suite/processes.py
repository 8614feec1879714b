"""Throughput of training in several processes, compared with one.

Each row is a run in processes started for it, with one thread each; the last is one process with as many
threads as there were processes. The batch is the same in all: each process has its part of it. Cells are
images a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks import benchmark
from benchmarks.results import ROOT
from benchmarks.tables import Table
from secateur.models import ModelSpec
from secateur.training.context import launch
from secateur.training.events import EpochDone, Progress, TrainingCallback
from secateur.training.loop import FitOptions, fit
from secateur.training.settings import DeviceSettings, FitSettings

WARM_UP = 3


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: with ten classes.
        processes: how many; all but the last row have one thread each.
        size: side of the images in pixels.
        batch: images in a step, over all processes.
        steps: that count.
    """

    networks: tuple[str, ...] = ("secateur:resnet20", "torchvision:squeezenet1_1")
    processes: tuple[int, ...] = (1, 2)
    size: int = 64
    batch: int = 64
    steps: int = 12


class Row(benchmark.Row):
    """One network, number of processes and of their threads."""

    network: str
    processes: int
    threads: int
    images_per_second: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"networks": ("secateur:resnet20",), "size": 32, "batch": 16, "steps": 2}


def run(options: Options) -> Iterator[Row]:
    """Measure each network in each number of processes."""
    for network in options.networks:
        for count, threads in [*((count, 1) for count in options.processes), (1, max(options.processes))]:
            if not options.measured(network=network, processes=count, threads=threads):
                speed = measured(options, network, count, threads)
                yield Row(network=network, processes=count, threads=threads, images_per_second=speed)


def measured(options: Options, network: str, processes: int, threads: int) -> float:
    """Start processes that train; return images a second."""
    task = {"network": network, "size": options.size, "batch": options.batch, "steps": options.steps}
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "benchmarks.suite.processes", json.dumps({**task, "threads": threads})]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *command], check=True, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


class StepTimes(TrainingCallback):
    """Records when each step and each epoch was over."""

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def on_progress(self, progress: Progress) -> None:
        """Record the end of a step."""
        self.times.append(time.perf_counter())

    def on_epoch_end(self, epoch: EpochDone) -> None:
        """Record the end of an epoch."""
        self.times.append(time.perf_counter())


def train(network: str, size: int, batch: int, steps: int, threads: int) -> float:
    """Train in this process of a group; return images a second over all, without the first few steps."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with launch(DeviceSettings(devices=count, precision="float32", accelerator="cpu")) as context:
        spec = ModelSpec.parse(network, classes=10)
        model = spec.build()
        inputs = torch.randn(
            batch, spec.input.size[0], size, size, generator=torch.Generator().manual_seed(1)
        )
        targets = torch.randint(10, (batch,), generator=torch.Generator().manual_seed(2))
        times: list[float] = []
        timed = replace(context, callbacks=[StepTimes(times)])
        settings = FitSettings(epochs=1, keep_best=False)
        fit(
            model,
            [(inputs, targets)] * (WARM_UP + steps),
            settings,
            FitOptions(context=timed),
        )
    # One time a step, and one at the end of the epoch.
    return batch * steps / (times[WARM_UP + steps - 1] - times[WARM_UP - 1])


def table(rows: Sequence[Row]) -> Table:
    """Show images a second and the gain over the first row of each network."""
    first: dict[str, float] = {}
    for row in rows:
        first.setdefault(row.network, row.images_per_second)
    lines = [
        (
            row.network,
            str(row.processes),
            str(row.threads),
            f"{row.images_per_second:.1f}",
            f"{row.images_per_second / first[row.network]:.2f}",
        )
        for row in rows
    ]
    return Table(("network", "processes", "threads each", "images a second", "times as fast"), lines)


if __name__ == "__main__":  # one of the processes
    speed = train(**json.loads(sys.argv[1]))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(speed), flush=True)
