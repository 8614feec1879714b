from __future__ import annotations

import pytest
import torch

from secateur.criteria import channel_costs, regularize_scores, score
from secateur.criteria.scores import Scores
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import NETS, Gated, Plain, data, make

KINDS = ("params", "macs", "bytes", "memory")


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("per", KINDS)
def test_a_channel_costs_what_the_network_needs_less_without_it(kind: type[Gated], per: str) -> None:
    net = make(kind)
    graph = trace(net, data(2)[0])
    costs = channel_costs(graph, per)  # type: ignore[arg-type]
    assert set(costs) == set(net.widths)
    for group in graph.prunable:
        less = graph.cost({group.name: group.channels - 1})
        saved = getattr(graph.cost(), per) - getattr(less, per)
        assert costs[group.name] * 1e6 == pytest.approx(saved)


def test_parameters_by_hand() -> None:
    net = make(Plain)
    costs = channel_costs(trace(net, data(2)[0]), "params")
    # b: 4*3*3 weights and a bias, and its four columns in the linear layer of 7
    assert costs["b"] * 1e6 == pytest.approx(4 * 9 + 1 + 4 * 7)


@pytest.mark.parametrize("per", KINDS)
def test_the_cost_is_subtracted_or_divided_by(per: str) -> None:
    net = make(Plain)
    graph = trace(net, data(2)[0])
    scores = score(net, graph, "magnitude").normalized("l2")
    costs = channel_costs(graph, per)  # type: ignore[arg-type]
    less = regularize_scores(scores, graph, per, lam=0.5)  # type: ignore[arg-type]
    for name in scores:
        torch.testing.assert_close(less[name], scores[name] - 0.5 * costs[name])
    assert less.criterion == f"magnitude - 0.5 per million {per}"


def test_a_rate_of_zero_changes_nothing_and_reasons_are_kept() -> None:
    net = make(Plain)
    graph = trace(net, data(2)[0])
    scores = Scores("x", {"a": torch.arange(4.0)}, {"b": "why"})
    same = regularize_scores(scores, graph, lam=0.0)
    assert torch.equal(same["a"], scores["a"])
    assert same.unscored == {"b": "why"}


def test_wrong_arguments_are_refused() -> None:
    net = make(Plain)
    graph = trace(net, data(2)[0])
    scores = score(net, graph, "random")
    with pytest.raises(UsageError, match="per is one of params, macs, bytes, memory, not 'flops'"):
        regularize_scores(scores, graph, "flops")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lam is a finite number"):
        regularize_scores(scores, graph, lam=float("nan"))
