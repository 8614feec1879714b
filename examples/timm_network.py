"""Prune a network from timm by width curves and reconstruction, without training after the cut."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sec
from secateur.data import DataSettings, open_data
from secateur.inputs import InputSpec
from secateur.recovery import CurveOptions


def accuracy(model: nn.Module, batches: list) -> float:
    """Compute the share of correct answers."""
    model.eval()
    with torch.inference_mode():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def main() -> None:
    """Train for a while on digits, then cut to half in two ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="timm:resnet10t")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = sec.build(options.model, classes=10)
    shape = InputSpec((3, options.size, options.size))
    data = open_data("digits", shape, DataSettings(batch_size=64))
    test = list(data.test_batches())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(options.epochs):
        model.train()
        for x, y in data.training_batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    few = [batch for _, batch in zip(range(4), data.training_batches(augment=False), strict=False)]
    example = test[0][0][:2]
    graph = sec.trace(model, example)
    budget = sec.Budget(macs=0.5)
    scores = sec.score(model, graph, "taylor", few, F.cross_entropy)
    by_scores = sec.apply_plan(model, sec.make_plan(graph, scores, budget))

    curves = sec.width_curves(model, graph, scores, few, CurveOptions(shares=(0.75, 0.5, 0.25)))
    plan = sec.make_plan(graph, curves, budget)
    reconstructed = sec.apply_plan(model, plan)
    check = sec.verify(model, reconstructed, plan, example)
    sec.reconstruct(model, reconstructed, plan, few)

    print(f"# {check}")
    print(f"{'':22}{'accuracy':>10}{'parameters':>14}{'MACs':>14}")
    rows = {"before": model, "global scores": by_scores, "curves and reconstruction": reconstructed}
    for name, network in rows.items():
        need = sec.cost(network, example)
        print(f"{name:22}{accuracy(network, test):>10.1%}{need.params:>14,}{need.macs:>14,}")


if __name__ == "__main__":
    main()
