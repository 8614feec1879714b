"""Prune your own network in your own loop: scores are collected during training, the optimizer stays."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sec
from secateur.criteria import watch


class Net(nn.Module):
    """Two convolutions around a shortcut, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.deep = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + F.relu(self.deep(x))
        return self.head(F.max_pool2d(x, 2).flatten(1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, epochs: int) -> None:
    """Train in an ordinary loop."""
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def show(name: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Print a row of the table."""
    with torch.inference_mode():
        accuracy = (model.eval()(x).argmax(1) == y).float().mean().item()
    need = sec.cost(model, x[:1])
    print(f"{name:12}{accuracy:>10.1%}{need.params:>14,}{need.macs:>14,}")


def main() -> None:
    """Train, cut to 40% of the MACs, continue training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = (images.float() / 16).reshape(-1, 1, 8, 8)
    loader = DataLoader(TensorDataset(images[:1347], labels[:1347]), batch_size=64, shuffle=True)
    test = images[1347:], labels[1347:]

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    graph = sec.trace(model, test[0][:2])
    train(model, optimizer, loader, epochs - 1)
    with watch(model, graph, "taylor") as watched:
        train(model, optimizer, loader, 1)
    print(f"{'':12}{'accuracy':>10}{'parameters':>14}{'MACs':>14}")
    show("before", model, *test)
    plan = sec.make_plan(graph, watched.scores(), sec.Budget(macs=0.4))
    small = sec.apply_plan(model, plan, optimizer=optimizer)
    print(f"# {sec.verify(model, small, plan, test[0])}")
    show("cut", small, *test)
    train(small, optimizer, loader, epochs // 2)
    show("trained on", small, *test)


if __name__ == "__main__":
    main()
