from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.criteria import Obd, score
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import CLASSES, Concat, Depthwise, Gated, Residual, data, make


def hessian_diagonal(net: Gated, name: str, inputs: Tensor, targets: Tensor) -> Tensor:
    """Second derivatives of each example's loss by each gate of one group, by autograd, (B, C)."""
    rows = []
    for example, target in zip(inputs, targets, strict=True):

        def loss(gate: Tensor, example: Tensor = example, target: Tensor = target) -> Tensor:
            net.gates = {**net.ones(1, inputs.dtype), name: gate[None]}
            return F.cross_entropy(net(example[None]), target[None])

        ones = torch.ones(net.widths[name], dtype=inputs.dtype)
        rows.append(torch.autograd.functional.hessian(loss, ones).diagonal())
    net.gates = None
    return torch.stack(rows)


@pytest.mark.parametrize("kind", [Concat, Depthwise])
def test_it_is_half_the_second_derivative_where_the_network_is_piecewise_linear(kind: type[Gated]) -> None:
    net = make(kind, torch.float64)
    inputs, targets = data(4, torch.float64)
    scores = score(net, trace(net, inputs), "obd", [(inputs, targets)], F.cross_entropy)
    for name in net.widths:
        wanted = 0.5 * hessian_diagonal(net, name, inputs, targets).mean(0)
        torch.testing.assert_close(scores[name].double(), wanted, rtol=1e-4, atol=1e-8)


def gauss_newton(net: Gated, name: str, inputs: Tensor, targets: Tensor) -> Tensor:
    """J^T H J per example and channel, with H the softmax cross entropy's by hand, (B, C)."""
    rows = []
    for example in inputs:

        def outputs(gate: Tensor, example: Tensor = example) -> Tensor:
            net.gates = {**net.ones(1, inputs.dtype), name: gate[None]}
            return net(example[None])[0]

        ones = torch.ones(net.widths[name], dtype=inputs.dtype)
        jacobian = torch.autograd.functional.jacobian(outputs, ones)
        probability = outputs(ones).detach().softmax(0)
        hessian = probability.diag() - probability.outer(probability)
        rows.append((jacobian * (hessian @ jacobian)).sum(0))
    net.gates = None
    return torch.stack(rows)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_is_gauss_newton_by_hand_and_does_not_depend_on_batches(reduction: str) -> None:
    net = make(Residual, torch.float64)
    inputs, targets = data(5, torch.float64)
    parts = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]

    def loss_fn(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction=reduction)

    scores = score(net, trace(net, inputs), "obd", parts, loss_fn, reduction=reduction)
    for name in net.widths:
        wanted = 0.5 * gauss_newton(net, name, inputs, targets).mean(0)
        torch.testing.assert_close(scores[name].double(), wanted, rtol=1e-5, atol=1e-8)


def test_random_combinations_are_right_in_expectation_and_seeded() -> None:
    net = make(Residual)
    inputs, targets = data(6)
    graph = trace(net, inputs)
    exact = score(net, graph, Obd(passes=CLASSES), [(inputs, targets)], F.cross_entropy)
    many = score(net, graph, Obd(passes=2), [(inputs, targets)] * 300, F.cross_entropy)
    for name in exact:
        torch.testing.assert_close(many[name], exact[name], rtol=0.15, atol=1e-6)
    few = score(net, graph, Obd(passes=2, seed=1), [(inputs, targets)], F.cross_entropy)
    again = score(net, graph, Obd(passes=2, seed=1), [(inputs, targets)], F.cross_entropy)
    other = score(net, graph, Obd(passes=2, seed=2), [(inputs, targets)], F.cross_entropy)
    assert few == again
    assert few != other


def test_a_loss_without_curvature_scores_zero() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.Flatten(0))
    inputs = torch.randn(6, 3)
    scores = score(net, trace(net, inputs), "obd", [(inputs, None)], lambda y, _: y.mean())
    assert scores["0"].tolist() == [0.0] * 4
    squared = score(
        net, trace(net, inputs), "obd", [(inputs, torch.zeros(6))], F.mse_loss
    )  # half of the second derivative of y^2 is the squared derivative of y
    with torch.no_grad():
        slope = net[0](inputs) * net[1].weight
    torch.testing.assert_close(squared["0"], slope.square().mean(0), rtol=1e-5, atol=1e-7)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one backward pass"):
        Obd(passes=0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1))
    inputs = torch.randn(2, 1, 40, 40)
    with pytest.raises(UsageError, match="at most 2048 numbers per example"):
        score(net, trace(net, inputs), "obd", [(inputs, None)], lambda y, _: y.square().mean())
