"""The damage of absent branches, compared with fits by another solver on networks that were really cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.budget import WidthCurves
from secateur.criteria import score
from secateur.graph import ChannelGraph, trace
from secateur.plan import PruningPlan
from secateur.recovery import CurveOptions, LeastSquares, reconstruct, width_curves
from secateur.surgery import apply_plan
from tests.graph.depth_networks import Basic, Residual, stack

OPTIONS = CurveOptions(
    shares=(0.5,),
    held_back=0.5,
    divergence="mse",
    fit=LeastSquares(ridge=0, rows_per_unknown=10**6),
    branches=True,
)


class Last(nn.Module):
    """After each branch one linear layer reads the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.block = Residual(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.block(torch.tanh(self.stem(x)))))


def solved(x: Tensor, y: Tensor) -> Tensor:
    """The best linear map with a constant from x to y, as a matrix."""
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    return torch.linalg.lstsq(torch.cat([x, ones], 1), y, driver="gelsd").solution


def test_one_consumer_is_fitted_to_the_responses_of_the_whole_network() -> None:
    torch.manual_seed(0)
    net, x = Last().double().eval(), torch.randn(80, 5, dtype=torch.float64)
    graph = trace(net, x[:2])
    found = width_curves(net, graph, score(net, graph, "magnitude"), [x], OPTIONS)
    with torch.no_grad():
        short, whole = torch.tanh(torch.tanh(net.stem(x))), net(x)
        best = solved(short[:40], whole[:40])
        fitted = torch.cat([short[40:], torch.ones(40, 1, dtype=x.dtype)], 1) @ best
    expected = (fitted - whole[40:]).square().mean() / whole[40:].var(correction=0)
    assert dict(found.branches) == pytest.approx({"block.f": float(expected)}, rel=1e-6)


class Two(nn.Module):
    """The next block takes over what the removed one added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.one = Residual(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)))
        self.two = Residual(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(torch.tanh(self.stem(x)))))


def test_the_next_branch_also_corrects_the_stream() -> None:
    torch.manual_seed(0)
    net, x = Two().double().eval(), torch.randn(120, 5, dtype=torch.float64)
    graph = trace(net, x[:2])
    found = width_curves(net, graph, score(net, graph, "magnitude"), [x], OPTIONS)
    one, first, last = net.one.f, net.two.f[0], net.two.f[2]
    with torch.no_grad():
        stream = torch.tanh(net.stem(x))
        after = stream + one(stream)
        inner = first(after)
        refit = solved(stream[:60], inner[:60])
        hidden = torch.relu(torch.cat([stream, torch.ones(120, 1, dtype=x.dtype)], 1) @ refit)
        wanted = last(torch.relu(inner)) + after - stream
        refit = solved(hidden[:60], wanted[:60])
        added = torch.cat([hidden, torch.ones(120, 1, dtype=x.dtype)], 1) @ refit
        outputs, whole = net.head(stream + added)[60:], net(x)[60:]
    expected = (outputs - whole).square().mean() / whole.var(correction=0)
    assert found.branches["one.f"] == pytest.approx(float(expected), rel=1e-6)
    plan = PruningPlan(graph, {}, ("one.f",))
    small = apply_plan(net, plan)
    done = reconstruct(net, small, plan, [x[:60]], OPTIONS.fit, refit_downstream=False)
    assert [item.module for item in done] == ["two.f.0", "two.f.2"]
    torch.testing.assert_close(small(x[60:]), outputs)
    other = apply_plan(net, plan)
    assert [item.module for item in reconstruct(net, other, plan, [x[:60]])][-1] == "head"


@pytest.fixture(scope="module")
def images() -> tuple[nn.Module, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    net = stack(*[Basic(8, hidden) for hidden in (6, 12, 9)]).eval()
    x = torch.randn(64, 3, 8, 8)
    net.train()(x)
    return net.eval(), trace(net, x[:2]), x


def test_a_fit_is_never_much_worse_than_the_plain_cut(images: tuple[nn.Module, ChannelGraph, Tensor]) -> None:
    net, graph, x = images
    options = CurveOptions(shares=(0.5,), held_back=0.5, divergence="kl", branches=True)
    found = width_curves(net, graph, {}, [x], options)
    assert not len(found)
    assert list(found.branches) == ["1", "2", "3"]
    with torch.no_grad():
        expected = torch.log_softmax(net(x[32:]).double(), 1)
        for name, damage in found.branches.items():
            small = apply_plan(net, PruningPlan(graph, {}, (name,)))
            plain = torch.log_softmax(small(x[32:]).double(), 1)
            assert 0 < damage < 1.2 * float((expected.exp() * (expected - plain)).sum(1).mean())


@pytest.mark.parametrize("stream", [1, 3, 7])
def test_channels_of_the_stream_go_together_with_branches(
    images: tuple[nn.Module, ChannelGraph, Tensor], stream: int
) -> None:
    """Few channels are left to the layers of a removed branch, which must not run."""
    net, graph, x = images
    name = next(group.name for group in graph.prunable if group.channels == 8)
    hidden = {group.name: (0, 1) for group in graph.prunable if group.channels in (6, 9)}
    plan = PruningPlan(graph, {name: tuple(range(stream)), **hidden}, ("1", "3"))
    small = apply_plan(net, plan)
    with torch.no_grad():
        plain = float((small(x) - net(x)).square().mean())
    done = reconstruct(net, small, plan, [x])
    assert [item.module for item in done] == ["2.conv1", "2.conv2", "4"]
    assert all(item.error <= item.error_before + 1e-6 for item in done)
    with torch.no_grad():
        assert float((small(x) - net(x)).square().mean()) < plain


def test_branches_are_measured_on_request_and_kept(images: tuple[nn.Module, ChannelGraph, Tensor]) -> None:
    net, graph, x = images
    scores = score(net, graph, "magnitude")
    plain = width_curves(net, graph, scores, [x], CurveOptions(shares=(0.5,)))
    assert not plain.branches
    seen = []
    found = width_curves(
        net,
        graph,
        scores,
        [x],
        CurveOptions(shares=(0.5,), branches=True),
        resume=plain,
        progress=lambda curves, total: seen.append((curves.measured, total)),
    )
    assert dict(found) == dict(plain)
    assert seen == [(number, len(found) + 3) for number in range(1, len(found) + 4)]
    assert WidthCurves.from_dict(found.to_dict()) == found
    assert "residual branch" in str(found)
    again = WidthCurves(dict(found), found.divergence, branches=dict.fromkeys(found.branches, 7.0))
    kept = width_curves(net, graph, scores, [x], CurveOptions(shares=(0.5,), branches=True), resume=again)
    assert set(kept.branches.values()) == {7.0}


def test_after_a_branch_was_removed_the_others_are_measured_in_the_smaller_network(
    images: tuple[nn.Module, ChannelGraph, Tensor],
) -> None:
    net, graph, x = images
    plan = PruningPlan(graph, {"1.conv1": (0, 2, 3)}, ("2",))
    small, left = apply_plan(net, plan), graph.after(plan)
    options = CurveOptions(shares=(0.5,), branches=True)
    found = width_curves(small, left, score(small, left, "magnitude"), [x], options)
    fresh = trace(small, x[:2])
    expected = width_curves(small, fresh, score(small, fresh, "magnitude"), [x], options)
    assert dict(found.branches) == pytest.approx(dict(expected.branches), rel=1e-3)
    assert found["1.conv1"].damages == pytest.approx(expected["1.conv1"].damages, rel=1e-3)


class Parallel(nn.Module):
    """Two branches that read one value and are added to each other first."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.two = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.one(x) + self.two(x)) + x)


def test_a_branch_takes_over_what_a_removed_parallel_one_added() -> None:
    torch.manual_seed(0)
    net, x = Parallel().double().eval(), torch.randn(80, 6, dtype=torch.float64)
    graph = trace(net, x[:2])
    plan = PruningPlan(graph, {"two.0": range(5)}, ["one"])  # type: ignore[dict-item]
    small = apply_plan(net, plan)
    reconstruct(net, small, plan, [x], LeastSquares(ridge=0, rows_per_unknown=10**6), refit_downstream=False)
    with torch.no_grad():
        hidden = net.two[:2](x)[:, :5]
        best = solved(hidden, net.one(x) + net.two(x))
    torch.testing.assert_close(small.two[2].weight, best[:-1].T)  # type: ignore[index]
    torch.testing.assert_close(small.two[2].bias, best[-1])  # type: ignore[index]
