from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.criteria import score
from secateur.graph import trace
from tests.criteria.nets import NETS, Gated, Plain, data, gate_gradients, make

FORMULAS = {
    "taylor": lambda gate: gate.abs().mean(0),
    "taylor-squared": lambda gate: gate.square().mean(0),
}


def batches(inputs: Tensor, targets: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(sizes), targets.split(sizes), strict=True))


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("criterion", FORMULAS)
def test_it_is_the_formula_of_gates_that_really_multiply(kind: type[Gated], criterion: str) -> None:
    net = make(kind)
    inputs, targets = data(7)
    graph = trace(net, inputs)
    scores = score(net, graph, criterion, batches(inputs, targets, [4, 3]), F.cross_entropy)
    gates = gate_gradients(net, inputs, targets)
    assert set(scores) == set(net.widths) == {group.name for group in graph.prunable}
    for name in scores:
        torch.testing.assert_close(scores[name], FORMULAS[criterion](gates[name]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", NETS)
def test_taylor_predicts_finite_differences_of_each_gate(kind: type[Gated]) -> None:
    net = make(kind, torch.float64)
    inputs, targets = data(3, torch.float64)
    graph = trace(net, inputs)
    scores = score(net, graph, "taylor", [(inputs, targets)], F.cross_entropy)
    step = 1e-6

    def loss(name: str, channel: int, change: float) -> Tensor:
        net.gates = {key: gate.detach() for key, gate in net.ones(3, torch.float64).items()}
        net.gates[name][:, channel] += change
        with torch.no_grad():
            losses = F.cross_entropy(net(inputs), targets, reduction="none")
        net.gates = None
        return losses

    for name, width in net.widths.items():
        for channel in range(width):
            slope = (loss(name, channel, step) - loss(name, channel, -step)) / (2 * step)
            torch.testing.assert_close(
                scores[name][channel].double(), slope.abs().mean(), rtol=1e-4, atol=1e-7
            )


def test_taylor_is_the_product_summed_by_hand_from_hooks() -> None:
    net = make(Plain)
    inputs, targets = data(5)
    read: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor]) -> None:
            args[0].retain_grad()
            read[name] = args[0]

        return hook

    handles = [net.b.register_forward_pre_hook(keep("a")), net.c.register_forward_pre_hook(keep("b"))]
    F.cross_entropy(net(inputs), targets).backward()
    for handle in handles:
        handle.remove()
    scores = score(net, trace(net, inputs), "taylor", [(inputs, targets)], F.cross_entropy)
    for name, width in (("a", 4), ("b", 6)):
        assert read[name].grad is not None
        product = (read[name] * read[name].grad * len(inputs)).detach().view(len(inputs), width, -1)
        torch.testing.assert_close(scores[name], product.sum(2).abs().mean(0), rtol=1e-5, atol=1e-7)


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    criterion=st.sampled_from(sorted(FORMULAS)),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_scores_do_not_depend_on_the_batch_size(sizes: list[int], criterion: str, reduction: str) -> None:
    net = make(Plain)
    inputs, targets = data(sum(sizes))
    graph = trace(net, inputs[:2] if len(inputs) > 1 else inputs)

    def loss_fn(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction=reduction)

    together = score(net, graph, criterion, [(inputs, targets)], loss_fn, reduction=reduction)
    apart = score(net, graph, criterion, batches(inputs, targets, sizes), loss_fn, reduction=reduction)
    for name in together:
        torch.testing.assert_close(apart[name], together[name], rtol=1e-5, atol=1e-8)


def test_the_absolute_value_is_taken_per_example() -> None:
    """Examples that cancel in the mean keep their score."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    for layer in net:
        nn.init.ones_(layer.weight)
    inputs = torch.tensor([[1.0], [-1.0]])
    scores = score(net, trace(net, inputs), "taylor", [(inputs, inputs)], lambda outputs, _: outputs.mean())
    torch.testing.assert_close(scores["0"], torch.ones(2))


def test_dead_channels_score_zero_and_normalise_to_zero() -> None:
    net = make(Plain)
    with torch.no_grad():
        net.norm.weight.zero_()
        net.norm.bias.zero_()
        net.c.weight[2] = 0
        net.c.bias[2] = 0
    inputs, targets = data(4)
    scores = score(net, trace(net, inputs), "taylor", [(inputs, targets)], F.cross_entropy)
    assert scores["a"].tolist() == [0.0] * 4
    assert scores["c"][2] == 0
    assert scores["c"].count_nonzero() == 6
    assert scores.normalized("l2")["a"].tolist() == [0.0] * 4


def test_gradients_reach_activations_behind_frozen_parameters() -> None:
    net, frozen = make(Plain), make(Plain).requires_grad_(False)
    inputs, targets = data(4)
    graph = trace(net, inputs)
    wanted = score(net, graph, "taylor", [(inputs, targets)], F.cross_entropy)
    assert score(frozen, graph, "taylor", [(inputs, targets)], F.cross_entropy) == wanted
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channels_last_gives_the_same_scores(memory_format: torch.memory_format) -> None:
    net = make(Plain).to(memory_format=memory_format)
    inputs, targets = data(4)
    graph = trace(net, inputs)
    moved = inputs.contiguous(memory_format=memory_format)
    scores = score(net, graph, "taylor", [(moved, targets)], F.cross_entropy)
    gates = gate_gradients(make(Plain), inputs, targets)
    for name in scores:
        torch.testing.assert_close(scores[name], gates[name].abs().mean(0), rtol=1e-4, atol=1e-6)


def test_bf16_autocast_gives_nearly_the_same_scores() -> None:
    net = make(Plain)
    inputs, targets = data(16)
    graph = trace(net, inputs)
    exact = score(net, graph, "taylor", [(inputs, targets)], F.cross_entropy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = score(net, graph, "taylor", [(inputs, targets)], lambda y, t: F.cross_entropy(y.float(), t))
    for name in exact:
        assert rough[name].dtype is torch.float32
        torch.testing.assert_close(rough[name], exact[name], rtol=0.1, atol=0.02)


def test_a_layer_that_sees_several_rows_per_example_keeps_examples_apart() -> None:
    """Windows folded into the batch dimension belong to their example."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 4)
            self.two = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.reshape(x.shape[0] * 5, 2, 3)
            return self.two(torch.tanh(self.one(windows))).reshape(x.shape[0], -1)

    net, inputs = Windows(), torch.randn(3, 10, 3)
    graph = trace(net, inputs)
    scores = score(net, graph, "taylor", [(inputs, None)], lambda y, _: y.square().sum(), reduction="sum")
    wanted = torch.zeros(4)
    for example in inputs:
        hidden = torch.tanh(net.one(example)).detach().requires_grad_()
        net.two(hidden).square().sum().backward()
        assert hidden.grad is not None
        wanted += (hidden * hidden.grad).sum(0).abs().detach() / 3
    torch.testing.assert_close(scores["one"], wanted)
