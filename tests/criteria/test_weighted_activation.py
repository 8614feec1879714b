"""Criteria on what is read and on the weights that read it, against the formulas of their papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.criteria import score
from secateur.criteria.weighted_activation import _reading_weights
from secateur.graph import trace
from tests.criteria.nets import Plain, data, make


def wanda(values: Tensor, weights: Tensor) -> Tensor:
    """Loops over pairs of a channel and a weight, as equation 1 of the paper has them."""
    return torch.stack(
        [
            sum((abs(weight) * values[channel].square().mean().sqrt() for weight in row), torch.tensor(0.0))
            for channel, row in enumerate(weights)
        ]
    )


def flap(values: Tensor, weights: Tensor) -> Tensor:
    return values.var(1, correction=0) * weights.norm(dim=1).square()


FORMULAS = {"wanda": wanda, "flap": flap}


@pytest.mark.parametrize("criterion", FORMULAS)
@settings(max_examples=5)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_it_is_the_formula_whatever_the_batch_size(criterion: str, sizes: list[int]) -> None:
    net = make(Plain)
    inputs, _ = data(sum(sizes))
    scores = score(net, trace(net, data(2)[0]), criterion, inputs.split(sizes))
    with torch.no_grad():
        a = F.relu(net.norm(net.a(inputs)))
        wanted = FORMULAS[criterion](
            a.transpose(0, 1).flatten(1), net.b.weight.detach().transpose(0, 1).flatten(1)
        )
    torch.testing.assert_close(scores["a"], wanted, rtol=1e-4, atol=1e-6)


class TwoConsumers(nn.Module):
    """A value that a transposed convolution and a convolution read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.side = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.up(x).mean((2, 3)) + self.side(x).mean((2, 3))


@pytest.mark.parametrize("criterion", FORMULAS)
def test_consumers_are_added(criterion: str) -> None:
    net, inputs = TwoConsumers(), torch.randn(5, 2, 4, 4)
    scores = score(net, trace(net, inputs), criterion, [inputs])
    with torch.no_grad():
        values = F.relu(net.stem(inputs)).transpose(0, 1).flatten(1)
        weights = (net.up.weight.flatten(1), net.side.weight.transpose(0, 1).flatten(1))
        wanted = sum(FORMULAS[criterion](values, each) for each in weights)
    torch.testing.assert_close(scores["stem"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Conv1d(4, 6, 3, padding=1), (4, 5)),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5)),
    ],
)
def test_weights_that_read_a_position_have_its_gradient(module: nn.Module, shape: tuple[int, ...]) -> None:
    rows = _reading_weights(module, shape[0])
    assert rows is not None
    weight = module.weight
    assert isinstance(weight, Tensor)
    for position in range(shape[0]):
        x = torch.zeros(1, *shape)
        x[(0, position, *(size // 2 for size in shape[1:]))] = 1
        [gradient] = torch.autograd.grad(module(x).sum(), weight)
        wanted = weight.detach()[gradient != 0].double().sort().values
        assert torch.equal(rows[position].sort().values, wanted)


def test_a_dead_channel_scores_zero_and_a_constant_one_has_no_fluctuation() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 0, -1
        net[0].weight[1], net[0].bias[1] = 0, 2
    x = torch.randn(8, 3)
    graph = trace(net, x)
    assert score(net, graph, "wanda", [x])["0"][0] == 0
    assert score(net, graph, "wanda", [x])["0"][1] > 0
    assert score(net, graph, "flap", [x])["0"][:2].tolist() == [0, 0]
