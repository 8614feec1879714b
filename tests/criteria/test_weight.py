from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.criteria import Fpgm, Lamp, Magnitude, Random, WeightCriterion, base, register, score
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import Depthwise, Gated, Plain, Residual, data, make

matrices = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.floats(-8, 8, width=16), min_size=width, max_size=width), min_size=1, max_size=8
    )
)


def producing_rows(net: Gated, name: str) -> Tensor:
    """The weights of each channel, by hand: a residual stream has those of both its writers."""
    writers = {"stem": [net.stem, net.back]} if isinstance(net, Residual) else {}
    return torch.cat(
        [layer.weight.detach().flatten(1) for layer in writers.get(name, [getattr(net, name)])], 1
    )


@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, float("inf")])
def test_magnitude_is_the_norm_of_all_producing_weights(kind: type[Gated], p: float) -> None:
    net = make(kind)
    scores = score(net, trace(net, data(2)[0]), Magnitude(p))
    assert set(scores) == set(net.widths)
    for name in scores:
        rows = producing_rows(net, name).abs()
        wanted = rows.amax(1) if p == float("inf") else (rows**p).sum(1) ** (1 / p)
        torch.testing.assert_close(scores[name], wanted)


@pytest.mark.parametrize("criterion", [Magnitude(), Fpgm(), Lamp()])
def test_a_coupled_group_is_valued_once_through_all_its_producers(criterion: WeightCriterion) -> None:
    net = make(Residual)
    scores = score(net, trace(net, data(2)[0]), criterion)
    for name in net.widths:
        wanted = criterion.of_weights(producing_rows(net, name))
        torch.testing.assert_close(scores[name], wanted)


@given(matrices)
def test_fpgm_is_the_sum_of_distances(rows: list[list[float]]) -> None:
    weights = torch.tensor(rows)
    wanted = torch.stack([(weights - row).square().sum(1).sqrt().sum() for row in weights])
    torch.testing.assert_close(Fpgm().of_weights(weights), wanted, rtol=1e-4, atol=1e-3)


@given(matrices)
def test_lamp_divides_by_all_that_are_not_smaller(rows: list[list[float]]) -> None:
    squares = [sum(value * value for value in row) for row in rows]
    wanted = [
        square / sum(other for other in squares if other >= square) if square else 0.0 for square in squares
    ]
    assert Lamp().of_weights(torch.tensor(rows)).tolist() == pytest.approx(wanted, rel=1e-5)


def test_bn_scale_is_the_mean_of_absolute_scales_and_leaves_other_groups_out() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.bare, self.head = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(self.one(x))
            x = x + self.second(self.two(x))
            return self.head(torch.relu(self.bare(x)))

    net = Stream().eval()
    nn.init.normal_(net.first.weight)
    nn.init.normal_(net.second.weight)
    scores = score(net, trace(net, data(2)[0]), "bn-scale")
    wanted = (net.first.weight.detach().abs() + net.second.weight.detach().abs()) / 2
    torch.testing.assert_close(scores["one"], wanted)
    assert set(scores) == {"one"}
    assert dict(scores.unscored) == {"bare": "no batch normalisation scales its channels"}


def test_a_network_without_batch_norm_is_told() -> None:
    net = make(Residual)
    with pytest.raises(UsageError, match="bn-scale can score no group of this network"):
        score(net, trace(net, data(2)[0]), "bn-scale")


def test_consumers_stand_in_where_no_matrix_produces() -> None:
    """An embedding per position of one dimension: only its readers have weights to speak of."""
    from types import SimpleNamespace

    import numpy as np

    from secateur.graph.groups import Group, Member, Reader, Role

    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    slots = np.arange(4)[:, None]
    members = (
        Member("0.bias", 0, Role.PRODUCER, slots),
        Member("1.weight", 1, Role.CONSUMER, slots),
    )
    zeros = np.zeros(4, dtype=np.int64)
    graph = SimpleNamespace(
        tensors={},
        groups=(Group("0", members), Group("none", members[:1])),
        readers=(Reader("1", "1.weight", -1, zeros, np.arange(4)),),
        branches=(),
    )
    scores = score(net, graph, "magnitude")  # type: ignore[arg-type]
    torch.testing.assert_close(scores["0"], net[1].weight.detach().norm(dim=0))
    assert dict(scores.unscored) == {"none": "it has no weights"}


def test_zero_and_equal_weights_are_defined() -> None:
    net = make(Plain)
    with torch.no_grad():
        net.a.weight.zero_()
        net.b.weight.fill_(1.0)
    graph = trace(net, data(2)[0])
    for criterion in ("magnitude", "fpgm", "lamp"):
        scores = score(net, graph, criterion)
        assert scores["a"].tolist() == [0.0] * 4
        assert len(set(scores["b"].tolist())) == 1
        assert scores.normalized("l2")["a"].tolist() == [0.0] * 4


def test_nan_weights_are_refused_by_name() -> None:
    net = make(Plain)
    with torch.no_grad():
        net.b.weight[1] = float("nan")
    with pytest.raises(UsageError, match="1 of 6 magnitude scores of group 'b' are NaN"):
        score(net, trace(net, data(2)[0]), "magnitude")


def test_random_depends_on_seed_and_group_alone() -> None:
    net, other = make(Plain), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    graph = trace(net, data(2)[0])
    scores = score(net, graph, "random")
    torch.rand(7)
    assert score(net, graph, Random(0)) == scores
    assert score(net, graph, Random(1)) != scores
    assert not torch.equal(scores["a"], scores["b"][:4])
    assert all(((row >= 0) & (row < 1)).all() for row in scores.values())
    named = trace(other, data(2)[0])
    other.add_module("a", other[0])
    draw = Random().value(named.groups[0], None)  # type: ignore[arg-type]
    assert torch.equal(draw, score(other, named, "random")["0"])


def test_groups_of_one_channel() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 2, 1))
    graph = trace(net, data(2)[0])
    for criterion in ("magnitude", "fpgm", "lamp", "random"):
        scores = score(net, graph, criterion)
        assert scores["0"].shape == (1,)
        assert scores.normalized("min-max")["0"].isfinite().all()


@pytest.mark.parametrize("p", [0, -1, float("nan")])
def test_an_order_that_is_no_norm_is_refused(p: float) -> None:
    with pytest.raises(UsageError, match="order p of a norm is positive"):
        Magnitude(p)


def test_a_criterion_of_ones_own() -> None:
    @register
    class LargestWeight(WeightCriterion):
        """Largest absolute weight."""

        name = "largest-weight"

        def of_weights(self, weights: Tensor) -> Tensor:
            return weights.abs().amax(1)

    try:
        net = make(Plain)
        graph = trace(net, data(2)[0])
        assert dict(score(net, graph, "largest-weight")).keys() == {"a", "b", "c"}
        assert torch.equal(
            score(net, graph, "largest-weight")["b"], score(net, graph, Magnitude(float("inf")))["b"]
        )
    finally:
        base._REGISTRY.pop("largest-weight")
