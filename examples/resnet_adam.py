"""Cut a ResNet in place several times, while the same Adam optimizer continues to train it."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sec
from secateur.criteria import watch
from secateur.data import DataSettings, open_data
from secateur.inputs import InputSpec


def accuracy(model: nn.Module, batches: list) -> float:
    """Compute the share of correct answers."""
    model.eval()
    with torch.inference_mode():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def main() -> None:
    """Make three cuts to 70% of the MACs each; parameters keep their identity, moments are cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--cuts", type=int, default=3)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = sec.build(options.model, classes=10)
    shape = InputSpec((3, options.size, options.size))
    data = open_data("digits", shape, DataSettings(batch_size=64))
    training, test = data.training_batches(), list(data.test_batches())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def epoch() -> None:
        model.train()
        for x, y in training:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()

    def show(name: str) -> None:
        need = graph.cost()
        print(f"{name:14}{accuracy(model, test):>10.1%}{need.params:>14,}{need.macs:>14,}")

    graph = sec.trace(model, test[0][0][:2])
    print(f"{'':14}{'accuracy':>10}{'parameters':>14}{'MACs':>14}")
    for _ in range(options.epochs - 1):
        epoch()
    for number in range(1, options.cuts + 1):
        with watch(model, graph, "taylor") as watched:
            epoch()
        show("before" if number == 1 else f"cut {number - 1}")
        plan = sec.make_plan(graph, watched.scores(), sec.Budget(macs=0.7))
        sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
        graph = graph.after(plan)  # nothing is traced again
    for _ in range(options.epochs):
        epoch()
    show(f"cut {options.cuts}")


if __name__ == "__main__":
    main()
