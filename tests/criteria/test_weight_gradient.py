from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.criteria import score, watch
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import NETS, Gated, Plain, Residual, data, make

WRITERS = {
    "Plain": {"a": ["a"], "b": ["b"], "c": ["c"]},
    "Residual": {"stem": ["stem", "back"], "one": ["one"], "two": ["two"]},
    "Concat": {"left": ["left"], "right": ["right"]},
    "Depthwise": {"expand": ["expand"]},
    "Shared": {"stem": ["stem", "again"]},
}


def by_hand(net: Gated, parts: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    totals = {name: torch.zeros(width) for name, width in net.widths.items()}
    for inputs, targets in parts:
        net.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        for name, layers in WRITERS[type(net).__name__].items():
            weights = [net.get_submodule(layer).weight for layer in layers]
            sums = sum((w * w.grad).detach().flatten(1).sum(1) for w in weights if w.grad is not None)
            totals[name] += sums**2 / len(parts)
    net.zero_grad()
    return totals


@pytest.mark.parametrize("kind", NETS)
def test_it_is_the_squared_sum_of_weight_times_gradient(kind: type[Gated]) -> None:
    net = make(kind)
    parts = [data(4, seed=seed) for seed in range(3)]
    wanted = by_hand(net, parts)
    scores = score(net, trace(net, parts[0][0]), "taylor-weight", parts, F.cross_entropy)
    assert set(scores) == set(wanted)
    for name in wanted:
        torch.testing.assert_close(scores[name], wanted[name], rtol=1e-4, atol=1e-9)


def test_frozen_weights_are_scored_and_stay_frozen() -> None:
    net = make(Residual)
    parts = [data(4)]
    wanted = by_hand(net, parts)
    net.requires_grad_(False)
    scores = score(net, trace(net, parts[0][0]), "taylor-weight", parts, F.cross_entropy)
    for name in wanted:
        torch.testing.assert_close(scores[name], wanted[name], rtol=1e-4, atol=1e-9)
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_watching_frozen_weights_is_refused() -> None:
    net = make(Plain).requires_grad_(False)
    graph = trace(net, data(2)[0])
    with (
        pytest.raises(UsageError, match=r"'a\.weight', which is not trained"),
        watch(net, graph, "taylor-weight"),
    ):
        pass


def test_two_backward_passes_through_one_forward_pass_count_each() -> None:
    net = make(Plain)
    inputs, targets = data(4)
    wanted = by_hand(net, [(inputs, targets)])
    with watch(net, trace(net, inputs), "taylor-weight") as watcher:
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward(retain_graph=True)
        loss.backward()
    scores = watcher.scores()
    for name in wanted:
        torch.testing.assert_close(scores[name], wanted[name], rtol=1e-4, atol=1e-9)


def test_a_weight_that_no_gradient_reaches_leaves_its_group_out() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.two(torch.tanh(self.one(x)).detach())))

    net, inputs = Cut(), torch.randn(4, 3)
    graph = trace(net, inputs)
    assert {group.name for group in graph.prunable} == {"one", "two"}
    scores = score(net, graph, "taylor-weight", [(inputs, None)], lambda y, _: y.square().mean())
    assert set(scores) == {"two"}
    assert scores.unscored["one"] == "no gradient reached the weights that produce its channels"
