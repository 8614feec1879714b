"""Throughput of fine-tuning against the plain float32 loop: examples in a second, in turn in one process.

The plain loop is what is written by hand: forward, loss, backward, step, contiguous, float32. Beside it
stands ``fit`` with what it chooses for this device, and with each choice forced, so that it is seen whether
it chooses well: the channel innermost, bfloat16, both. All take the same steps, round after round, with SGD
and momentum; medians over rounds.

    python benchmarks/throughput.py [--networks secateur:resnet56:32 ...] [--batch 64] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import dataclass

import torch
from heap import step
from torch import Tensor, nn

from secateur.models import ModelSpec
from secateur.training.context import RunContext
from secateur.training.loop import fit
from secateur.training.process_group import uses_bf16
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings

NETWORKS = (
    "secateur:resnet56:32",
    "torchvision:vgg16_bn:48",
    "torchvision:resnet18:96",
    "torchvision:squeezenet1_1:96",
    "torchvision:mobilenet_v2:96",
)
CHOICES = {
    "fit, as it chooses": DeviceSettings(),
    "fit, contiguous": DeviceSettings(precision="float32", channels_last="no"),
    "fit, channel innermost": DeviceSettings(precision="float32", channels_last="yes"),
    "fit, bfloat16 and channel innermost": DeviceSettings(precision="bf16", channels_last="yes"),
}
PLAIN = "plain loop"
OPTIMIZER = OptimizerSettings(learning_rate=1e-4, momentum=0.9)


@dataclass(frozen=True)
class Contest:
    """The same steps for all.

    Attributes:
        model: copied for each.
        batches: of inputs and classes.
    """

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]

    def plain(self) -> float:
        """Seconds of the loop written by hand."""
        run = step(copy.deepcopy(self.model))
        began = time.perf_counter()
        for inputs, classes in self.batches:
            run(inputs, classes)
        return time.perf_counter() - began

    def fitted(self, context: RunContext) -> float:
        """Seconds of ``fit``."""
        model = copy.deepcopy(self.model)
        settings = FitSettings(epochs=1, schedule="constant", keep_best=False, optimizer=OPTIMIZER)
        began = time.perf_counter()
        fit(model, self.batches, settings, context=context)
        return time.perf_counter() - began


def contest(name: str, options: argparse.Namespace) -> Contest:
    """A network of ten classes with random weights, and noise of its size."""
    spec, side = name.rsplit(":", 1)
    torch.manual_seed(0)
    model = ModelSpec.parse(spec, classes=10).build()
    inputs = torch.randn(options.batch, 3, int(side), int(side))
    return Contest(model, [(inputs, torch.randint(10, (options.batch,)))] * options.steps)


def main() -> None:
    """A line for each network and loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="LIBRARY:NAME:PIXELS")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contexts = {name: RunContext(choice) for name, choice in CHOICES.items()}
    chosen = contexts["fit, as it chooses"]
    precision = "bfloat16" if uses_bf16(chosen.settings, chosen.device) else "float32"
    print(
        f"{torch.__version__}, {chosen.device}, {options.threads} threads, batch {options.batch}: {precision}"
    )
    for name in options.networks:
        work = contest(name, options)
        seconds: dict[str, list[float]] = {PLAIN: [], **{choice: [] for choice in CHOICES}}
        for _ in range(options.rounds):
            seconds[PLAIN].append(work.plain())
            for choice, context in contexts.items():
                seconds[choice].append(work.fitted(context))
        base = statistics.median(seconds[PLAIN])
        layout = "channels last" if chosen.uses_channels_last(work.model) else "contiguous"
        print(f"{name}, chosen: {layout}")
        for way, found in seconds.items():
            middle = statistics.median(found)
            pace = options.batch * options.steps / middle
            print(f"  {way:36} {pace:8.1f} examples/s  {base / middle:.2f}", flush=True)


if __name__ == "__main__":
    main()
