"""Activation memory as it was counted, against what is alive while the network runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.budget import Budget
from secateur.models import build
from secateur.network_cost import cost
from secateur.recipes import prune
from tests.live import peak_bytes

X = torch.zeros(2, 3, 64, 64)

NETWORKS = [
    "alexnet",
    "resnet18",
    "mobilenet_v2",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_what_is_alive_at_the_peak(name: str) -> None:
    net = build(f"torchvision:{name}", classes=4)
    assert cost(net, X).memory == peak_bytes(net, X)


@pytest.mark.parametrize("name", ["resnet18"])
def test_a_budget_of_memory_is_kept_when_measured(name: str) -> None:
    net = build(f"torchvision:{name}", classes=4)
    before = peak_bytes(net, X)
    result = prune(net, X, Budget(memory=0.6), "magnitude")
    assert peak_bytes(result.model, X) == result.cost_after.memory <= 0.6 * before


class Held(nn.Module):
    """What a function keeps in a variable lives on, which no program tells."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, x], 1)
        z = y + 1
        return (z.mean(1) + 0 * z[:, 0]).sqrt()


def test_variables_that_are_kept_for_nothing_are_not_counted() -> None:
    assert cost(Held(), X).memory <= peak_bytes(Held(), X)


class Nested(nn.Module):
    """The caller of a module holds what it hands over until the module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
        self.first = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


def test_what_is_handed_to_a_module_lives_until_it_returns() -> None:
    positions = 2 * 64 * 64 * 4
    # The input, what the inner module was given, and the two results inside it.
    assert cost(Nested(), X).memory == positions * (3 + 8 + 8 + 2) == peak_bytes(Nested(), X)
