"""Throughput of training in several processes against one: examples in a second.

Run with ``python benchmarks/ranks.py``; ``--help`` lists the options. Each line is a run of its own: the
processes have one thread each, and the last line is one process with as many threads as processes before. The
batch is the same in all: each process has its part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.models import ModelSpec
from secateur.training.context import launch
from secateur.training.events import EpochDone, Progress, TrainingCallback
from secateur.training.loop import fit
from secateur.training.settings import DeviceSettings, FitSettings

WARM_UP = 3


def network(name: str, side: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network with ten classes, and one picture of noise of its size."""
    torch.manual_seed(0)
    spec = ModelSpec.parse(name, classes=10)
    return spec.build(), [(torch.randn(1, spec.input.size[0], side, side), torch.zeros(1, dtype=torch.int64))]


class StepTimes(TrainingCallback):
    """When each step and each epoch was over."""

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def on_progress(self, progress: Progress) -> None:
        """After a step."""
        self.times.append(time.perf_counter())

    def on_epoch_end(self, epoch: EpochDone) -> None:
        """After an epoch."""
        self.times.append(time.perf_counter())


def measure(name: str, side: int, batch: int, steps: int, threads: int) -> float:
    """Examples in a second of the steps after the first few."""
    torch.set_num_threads(threads)
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with launch(DeviceSettings(devices=count, precision="float32", accelerator="cpu")) as context:
        model, [(picture, _)] = network(name, side)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(batch, *picture.shape[1:], generator=generator)
        targets = torch.randint(10, (batch,), generator=generator)
        times: list[float] = []
        context = replace(context, callbacks=[StepTimes(times)])
        settings = FitSettings(epochs=1, keep_best=False)
        fit(model, [(inputs, targets)] * (WARM_UP + steps), settings, context=context)
    # One time a step, and one at the end of the epoch.
    return batch * steps / (times[WARM_UP + steps - 1] - times[WARM_UP - 1])


def run(arguments: argparse.Namespace, name: str, processes: int, threads: int) -> float:
    """One measurement in processes of its own."""
    words = [__file__, "--networks", name, "--threads", str(threads)]
    for option in ("side", "batch", "steps"):
        words += [f"--{option}", str(getattr(arguments, option))]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *launcher, *words], check=True, env=environment, capture_output=True, text=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """One line for each network and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["secateur:resnet20", "torchvision:squeezenet1_1"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=64, help="of the square pictures, in pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, help="measure here, in this process")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        speed = measure(
            arguments.networks[0], arguments.side, arguments.batch, arguments.steps, arguments.threads
        )
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(speed), flush=True)
        return
    print(f"{os.cpu_count()} cores, batch {arguments.batch}, {arguments.side} pixels, {torch.__version__}")
    for name in arguments.networks:
        ways = [(count, 1) for count in arguments.processes] + [(1, max(arguments.processes))]
        speeds = [run(arguments, name, *way) for way in ways]
        for (count, threads), speed in zip(ways, speeds, strict=True):
            pace = f"{speed:.1f} pictures/s, {speed / speeds[0]:.2f}"
            print(f"{name}: {count} processes of {threads} threads: {pace}")


if __name__ == "__main__":
    main()
