"""What watching costs: training steps with and without it, in turn, in one process.

Run with ``python benchmarks/watching.py``; ``--help`` lists the options. The last column is
the ratio of the median times, less one.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur._torchvision import torchvision
from secateur.criteria import watch


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet20() -> nn.Module:
    """The small residual network of CIFAR-10 (He et al., 2016)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        for number in range(3):
            layers.append(Block(inputs, outputs, stride if number == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    "vgg16_bn": lambda: torchvision.models.vgg16_bn(num_classes=10),
}


def measure(model: str, criterion: str, bf16: bool, batch: int, size: int, rounds: int, device: str) -> str:
    """One line: median seconds of a step without and with watching, and the ratio."""
    torch.manual_seed(0)
    net: Any = MODELS[model]()  # torch declares ``to`` without a layout
    net = net.to(device, memory_format=torch.channels_last).train()
    inputs = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (batch,), device=device)
    graph = secateur.trace(net, inputs[:2])
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def step() -> float:
        begin = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            outputs = net(inputs)
        F.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    watching = watch(net, graph, criterion)
    step()
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * rounds):  # step by step in turn: a busy machine slows both alike
        watched = number % 2 == 1
        with watching if watched else contextlib.nullcontext():
            times[watched].append(step())
    alone, together = (statistics.median(times[watched]) for watched in times)
    precision = "bf16" if bf16 else "float32"
    return (
        f"{model:<9} {criterion:<15} {precision:<8} batch {batch:>3} {size:>4} px"
        f" {alone * 1e3:9.1f} ms {together * 1e3:9.1f} ms {together / alone - 1:+7.1%}"
    )


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--criteria", nargs="+", default=["taylor"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bf16"], default=["float32"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    for model in options.models:
        for precision in options.precisions:
            for criterion in options.criteria:
                print(
                    measure(
                        model,
                        criterion,
                        precision == "bf16",
                        options.batch,
                        options.size,
                        options.rounds,
                        options.device,
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
