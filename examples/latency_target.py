"""Prune a network to half its time on this machine: measure, plan, cut, reconstruct, continue training."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sec
from secateur.latency import compare_latency


def network(width: int) -> nn.Sequential:
    """Build four convolutions and a classifier, for digits at four times their size."""
    layers: list[nn.Module] = [nn.Upsample(scale_factor=4)]
    for reads, writes in ((1, width), (width, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(reads, writes, 3, padding=1), nn.BatchNorm2d(writes), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if reads == writes else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def train(model: nn.Module, loader: DataLoader, epochs: int, rate: float) -> None:
    """Train in an ordinary loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def show(name: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Print a row of the table."""
    with torch.inference_mode():
        accuracy = (model.eval()(x).argmax(1) == y).float().mean().item()
    need = sec.cost(model, x[:1])
    print(f"{name:12}{accuracy:>10.1%}{need.params:>14,}{need.macs:>14,}")


def main() -> None:
    """Train, cut to a share of the time, continue training, and measure the time again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=32, help="channels of the first layer")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--latency", type=float, default=0.5, help="share of the time that may remain")
    parser.add_argument("--batch", type=int, default=16, help="images in the forward pass that is timed")
    options = parser.parse_args()

    torch.manual_seed(0)
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = (images.float() / 16).reshape(-1, 1, 8, 8)
    loader = DataLoader(TensorDataset(images[:1347], labels[:1347]), batch_size=64, shuffle=True)
    test, timed = (images[1347:], labels[1347:]), images[: options.batch]

    model = network(options.width)
    train(model, loader, options.epochs, 2e-3)
    print(f"{'':12}{'accuracy':>10}{'parameters':>14}{'MACs':>14}")
    show("before", model, *test)

    budget = sec.Budget(latency=options.latency)  # for a forward pass on `timed`
    recipe = sec.Recipe.preset("one-shot", allocation="curves", reconstruct=True)
    result = sec.prune(model, timed, budget, batches=loader, recipe=recipe)
    print(f"# {result.latency}\n# {result.verification}")
    show("cut", result.model, *test)
    train(result.model, loader, options.epochs, 1e-3)
    show("trained on", result.model, *test)

    again = compare_latency({"before": model, "after": result.model}, timed)
    print(*(f"# {line}" for line in str(again).splitlines()), sep="\n")


if __name__ == "__main__":
    main()
