"""Prune a Lightning-style module on Lightning Fabric: unwrap it for the cut, set it up again after it."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sec


class Digits(nn.Module):
    """A network with its own training step and optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = sec.build("secateur:digits")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the loss of a batch."""
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Create Adam for the present parameters."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def train(fabric: Fabric, module: Digits, loader: DataLoader, epochs: int) -> None:
    """Train like a trainer; the wrapper and the optimizer exist only during this call."""
    wrapped, optimizer = fabric.setup(module, module.configure_optimizers())
    wrapped.mark_forward_method("training_step")
    wrapped.train()
    for _ in range(epochs):
        for batch in fabric.setup_dataloaders(loader):
            optimizer.zero_grad()
            fabric.backward(wrapped.training_step(batch))
            optimizer.step()


def main() -> None:
    """Train, cut the bare module in place, continue training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    epochs = parser.parse_args().epochs
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(0, verbose=False)
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = (images.float() / 16).reshape(-1, 1, 8, 8)
    loader = DataLoader(TensorDataset(images[:1347], labels[:1347]), batch_size=64, shuffle=True)

    def show(name: str) -> None:
        with torch.inference_mode():
            right = (module.eval()(images[1347:]).argmax(1) == labels[1347:]).float().mean().item()
        need = sec.cost(module, images[:1])
        print(f"{name:12}{right:>10.1%}{need.params:>14,}{need.macs:>14,}")

    module = Digits()
    train(fabric, module, loader, epochs)
    print(f"{'':12}{'accuracy':>10}{'parameters':>14}{'MACs':>14}")
    show("before")
    graph = sec.trace(module, images[:2])
    scores = sec.score(module, graph, "taylor", loader, F.cross_entropy)
    sec.apply_plan(module, sec.make_plan(graph, scores, sec.Budget(macs=0.2)), inplace=True)
    show("cut")
    train(fabric, module, loader, epochs // 2)
    show("trained on")


if __name__ == "__main__":
    main()
