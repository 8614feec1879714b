"""Throughput of fine-tuning, compared with the plain float32 loop.

The plain loop is what is written by hand: forward, loss, backward, step, contiguous, float32. Beside it runs
``fit`` with what it chooses for this device, and with each choice forced, to see whether it chooses well:
channels last, bfloat16, both. All take the same steps, round after round in one process, with SGD and
momentum; cells are medians over rounds, in examples a second.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import benchmark
from benchmarks.tables import Table
from benchmarks.timing import interleaved, timed
from secateur.models import ModelSpec
from secateur.training.context import RunContext
from secateur.training.loop import FitOptions, fit
from secateur.training.process_group import uses_bf16
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings

CHOSEN, PLAIN = "`fit`, as it chooses", "plain float32"
CHOICES = {
    CHOSEN: DeviceSettings(),
    "`fit`, contiguous": DeviceSettings(precision="float32", channels_last="no"),
    "`fit`, channels last": DeviceSettings(precision="float32", channels_last="yes"),
    "`fit`, bfloat16, channels last": DeviceSettings(precision="bf16", channels_last="yes"),
}
OPTIMIZER = OptimizerSettings(learning_rate=1e-4, momentum=0.9)
Batches = list[tuple[Tensor, Tensor]]


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: library, name and side of the images in pixels.
        batch: examples in a step.
        steps: in each round.
        rounds: how often each loop runs.
    """

    networks: tuple[str, ...] = (
        "secateur:resnet56:32",
        "torchvision:vgg16_bn:48",
        "torchvision:resnet18:96",
        "torchvision:squeezenet1_1:96",
        "torchvision:mobilenet_v2:96",
    )
    batch: int = 64
    steps: int = 3
    rounds: int = 5


class Row(benchmark.Row):
    """One network and loop; ``chosen`` says what ``fit`` chose."""

    network: str
    loop: str
    chosen: str
    examples_per_second: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "small": {"networks": ("secateur:resnet56:32", "torchvision:squeezenet1_1:96"), "rounds": 3, "steps": 2}
}
QUICK: Mapping[str, Any] = {"networks": ("secateur:resnet20:32",), "batch": 16, "steps": 1, "rounds": 2}


def run(options: Options) -> Iterator[Row]:
    """Run all loops on each network."""
    contexts = {name: RunContext(choice) for name, choice in CHOICES.items()}
    for name in options.networks:
        if options.measured(network=name):
            continue
        spec, side = name.rsplit(":", 1)
        model = ModelSpec.parse(spec, classes=10).build()
        inputs = torch.randn(options.batch, 3, int(side), int(side))
        batches = [(inputs, torch.randint(10, (options.batch,)))] * options.steps
        loops: dict[str, Callable[[], float]] = {PLAIN: partial(plain, model, batches)}
        loops |= {choice: partial(fitted, model, batches, context) for choice, context in contexts.items()}
        seconds = interleaved(loops, options.rounds)
        for loop, median in seconds.items():
            yield Row(
                network=name,
                loop=loop,
                chosen=chosen(contexts[CHOSEN], model) if loop == CHOSEN else "",
                examples_per_second=options.batch * options.steps / median,
            )


def chosen(context: RunContext, model: nn.Module) -> str:
    """Describe what ``fit`` chooses for a network."""
    precision = "bfloat16" if uses_bf16(context.settings, context.device) else "float32"
    return f"{precision}, {'channels last' if context.uses_channels_last(model) else 'contiguous'}"


def plain(model: nn.Module, batches: Batches) -> float:
    """Run the loop written by hand; return its seconds."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    def steps() -> None:
        for inputs, classes in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), classes).backward()
            optimizer.step()

    return timed(steps)[1]


def fitted(model: nn.Module, batches: Batches, context: RunContext) -> float:
    """Run ``fit``; return its seconds."""
    model = copy.deepcopy(model)
    settings = FitSettings(epochs=1, schedule="constant", keep_best=False, optimizer=OPTIMIZER)
    return timed(lambda: fit(model, batches, settings, FitOptions(context=context)))[1]


def table(rows: Sequence[Row]) -> Table:
    """Show examples a second and the gain over the plain loop, a row for each network and loop."""
    base = {row.network: row.examples_per_second for row in rows if row.loop == PLAIN}
    lines = [
        (
            row.network,
            row.loop,
            row.chosen,
            f"{row.examples_per_second:.1f}",
            f"{row.examples_per_second / base[row.network]:.2f}",
        )
        for row in rows
    ]
    return Table(("network", "loop", "chosen", "examples a second", "times as fast"), lines)
