"""Prune a network for another task: segmentation of bright discs, with its own loss and metric."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.recipes import Training


def discs(count: int, side: int = 24) -> tuple[Tensor, Tensor]:
    """Draw noisy images of one disc each, and masks of the discs; shapes (count, 1, side, side)."""
    grid, radius = torch.arange(side).float(), torch.rand(count, 1, 1) * 4 + 3
    middle = torch.rand(2, count, 1, 1) * (side - 8) + 4
    inside = ((grid[:, None] - middle[0]) ** 2 + (grid - middle[1]) ** 2 < radius**2).float()[:, None]
    return inside + torch.randn_like(inside), inside


def dice(logits: Tensor, inside: Tensor) -> Tensor:
    """Compute one minus the overlap, averaged over the batch."""
    found = logits.sigmoid()
    both, either = (found * inside).sum((1, 2, 3)), (found + inside).sum((1, 2, 3))
    return (1 - 2 * both / (either + 1)).mean() + F.binary_cross_entropy_with_logits(logits, inside)


class Hourglass(nn.Module):
    """A network that reduces and restores the resolution, with a concatenated shortcut."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.deep = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        deep = F.relu(self.deep(F.relu(self.down(first))))
        return self.last(torch.cat([first, F.relu(self.up(deep))], dim=1))


def main() -> None:
    """Train, cut to 30% of the MACs in three steps, show the overlap before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    batches, (x, inside) = [discs(32) for _ in range(16)], discs(256)

    def overlap(model: nn.Module) -> float:
        with torch.inference_mode():
            found = model.eval()(x) > 0
        return ((found & (inside > 0)).sum() / (found | (inside > 0)).sum()).item()

    def train(model: nn.Module, _: object = None) -> None:
        optimizer = torch.optim.Adam(model.train().parameters(), lr=2e-3)
        for images, where in batches * epochs:
            optimizer.zero_grad()
            dice(model(images), where).backward()
            optimizer.step()

    train(model := Hourglass())
    before = overlap(model)
    training, recipe = Training(batches, metric=overlap, train=train), sec.Recipe.preset("default", steps=3)
    result = sec.prune(model, x[:2], sec.Budget(macs=0.3), None, training, dice, recipe)
    rows = {"before": (before, result.cost_before), "after": (overlap(result.model), result.cost_after)}
    print(f"{'':10}{'overlap':>10}{'parameters':>14}{'MACs':>14}")
    for name, (score, need) in rows.items():
        print(f"{name:10}{score:>10.3f}{need.params:>14,}{need.macs:>14,}")


if __name__ == "__main__":
    main()
