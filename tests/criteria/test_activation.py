from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.criteria import ActivationCriterion, base, register, score
from secateur.graph import trace
from tests.criteria.nets import Plain, Shared, data, make

FORMULAS = {
    "activation-mean": lambda values: values.mean(1),
    "activation-std": lambda values: values.std(1, correction=0),
    "apoz": lambda values: 1 - (values == 0).float().mean(1),
}


def reads(net: Plain, inputs: Tensor) -> dict[str, Tensor]:
    """What each consumer reads, one row of values per channel."""
    with torch.no_grad():
        a = F.relu(net.norm(net.a(inputs)))
        b = F.max_pool2d(F.relu(net.b(a)), 3)
        c = torch.tanh(net.c(b.flatten(1)))
    return {"a": a.transpose(0, 1).flatten(1), "b": b.transpose(0, 1).flatten(1), "c": c.T}


@pytest.mark.parametrize("criterion", FORMULAS)
@settings(max_examples=8)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_it_is_the_formula_whatever_the_batch_size(criterion: str, sizes: list[int]) -> None:
    net = make(Plain)
    inputs, _ = data(sum(sizes))
    graph = trace(net, data(2)[0])
    scores = score(net, graph, criterion, inputs.split(sizes))
    for name, values in reads(net, inputs).items():
        torch.testing.assert_close(scores[name], FORMULAS[criterion](values), rtol=1e-5, atol=1e-6)


class TwoViews(nn.Module):
    """Channels read before and after a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 1)
        self.near = nn.Conv2d(3, 2, 1)
        self.far = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.near(x).mean((2, 3)) + self.far(F.max_pool2d(x, 2)).mean((2, 3))


@pytest.mark.parametrize("criterion", FORMULAS)
def test_readers_of_different_values_count_alike(criterion: str) -> None:
    net, inputs = TwoViews(), torch.randn(5, 1, 4, 4)
    scores = score(net, trace(net, inputs), criterion, [inputs])
    with torch.no_grad():
        near = F.relu(net.stem(inputs))
        far = F.max_pool2d(near, 2)
    wanted = sum(FORMULAS[criterion](x.transpose(0, 1).flatten(1)) for x in (near, far)) / 2
    torch.testing.assert_close(scores["stem"], wanted, rtol=1e-5, atol=1e-6)


def test_calls_of_a_shared_layer_are_averaged() -> None:
    net = make(Shared)
    inputs, _ = data(4)
    scores = score(net, trace(net, inputs), "activation-mean", [inputs])
    with torch.no_grad():
        x = F.relu(net.stem(inputs))
        calls = []
        for _ in range(3):
            calls.append(x.mean((0, 2, 3)))
            x = torch.tanh(net.again(x))
        wanted = (torch.stack(calls).mean(0) + x.mean((0, 2, 3))) / 2
    torch.testing.assert_close(scores["stem"], wanted, rtol=1e-5, atol=1e-6)


def test_spread_of_large_values_is_not_lost_to_rounding() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    nn.init.ones_(net[0].weight)
    nn.init.constant_(net[0].bias, 1000.0)
    inputs = torch.linspace(-1, 1, 64)[:, None]
    scores = score(net, trace(net, inputs[:2]), "activation-std", inputs.split(8))
    torch.testing.assert_close(scores["0"], (inputs + 1000).std(0, correction=0), rtol=1e-3, atol=0)


def test_dead_and_constant_channels() -> None:
    net = make(Plain)
    with torch.no_grad():
        net.norm.weight.zero_()
        net.norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
    inputs, _ = data(4)
    graph = trace(net, inputs)
    assert score(net, graph, "apoz", [inputs])["a"].tolist() == [0, 1, 0, 1]
    assert score(net, graph, "activation-mean", [inputs])["a"].tolist() == [0, 1, 0, 2]
    spread = score(net, graph, "activation-std", [inputs])
    assert spread["a"].tolist() == [0, 0, 0, 0]
    assert spread.normalized("max")["a"].tolist() == [0, 0, 0, 0]


def test_a_criterion_of_ones_own_takes_ten_lines() -> None:
    @register
    class ActivationEnergy(ActivationCriterion):
        """Mean square of what is read."""

        name = "activation-energy"

        def moments(self, x: Tensor) -> Tensor:
            return x.float().square().mean((0, 2))[None]

    try:
        net = make(Plain)
        inputs, _ = data(5)
        scores = score(net, trace(net, inputs), "activation-energy", [inputs])
        for name, values in reads(net, inputs).items():
            torch.testing.assert_close(scores[name], values.square().mean(1), rtol=1e-5, atol=1e-6)
    finally:
        base._REGISTRY.pop("activation-energy")
