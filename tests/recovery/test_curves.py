"""Width curves compared with cutting, reconstructing and running the whole network each time."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.budget import WidthCurves
from secateur.criteria import score
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, trace
from secateur.plan import PruningPlan
from secateur.recovery import CurveOptions, LeastSquares, reconstruct, width_curves
from secateur.recovery.compact_layers import CompactInterpreter
from secateur.surgery import apply_plan


class Net(nn.Module):
    """A residual branch, a batch norm, in-place operators, a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        y = self.norm(self.outer(F.relu(self.inner(x), inplace=True)))
        y += x
        return self.head(F.adaptive_avg_pool2d(F.relu_(y), 2).flatten(1))


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, ChannelGraph]:
    torch.manual_seed(0)
    net = Net().double().eval()
    nn.init.uniform_(net.norm.running_mean)
    x = torch.randn(50, 3, 8, 8, dtype=torch.float64)
    return net, x, trace(net, x[:2])


def test_damages_are_those_of_networks_really_cut(case: tuple[nn.Module, Tensor, ChannelGraph]) -> None:
    net, x, graph = case
    scores = score(net, graph, "magnitude")
    curves = width_curves(net, graph, scores, [x], CurveOptions(shares=(0.5, 0.25), held_back=0.4))
    fitting, held = x[:30], x[30:]
    for name in ("stem", "inner"):
        curve = curves[name]
        assert list(curve.order) == scores[name].argsort(stable=True).tolist()
        for width, damage in zip(curve.widths[:-1], curve.damages[:-1], strict=True):
            plan = PruningPlan(graph, {name: curve.kept(width)})
            small = apply_plan(net, plan)
            if name == "inner":
                reconstruct(net, small, plan, [fitting], refit_downstream=False, correct_shortcut_error=False)
                with torch.no_grad():
                    p, q = (F.log_softmax(each(held), 1) for each in (net, small))
                expected = float((p.exp() * (p - q)).sum(1).mean())
                assert damage == pytest.approx(expected, rel=1e-4)
        assert curve.damages[-1] == 0.0
        assert min(curve.damages[:-1]) > 0


def test_every_cut_runs_from_the_first_step_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are counted: two passes for the measured examples, one for the fitted, then the rest for each."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    x, run = torch.randn(40, 4), []
    graph, original = trace(net, x[:2]), CompactInterpreter.run_node
    scores = score(net, graph, "magnitude")
    monkeypatch.setattr(
        CompactInterpreter, "run_node", lambda self, node: run.append(node.name) or original(self, node)
    )
    width_curves(net, graph, scores, [x], CurveOptions(shares=(0.5, 0.25)))
    whole, fitted, shares = 5 + 4, 4, 2
    assert len(run) == whole + fitted + shares * (3 + 1)


@pytest.mark.parametrize(("examples", "measuring"), [(50, 25), (200, 100), (300, 128)])
def test_enough_examples_measure_and_no_more(examples: int, measuring: int) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(examples, 4)
    graph = trace(net, x[:2])
    scores = score(net, graph, "magnitude")
    found = width_curves(net, graph, scores, [x])
    assert found == width_curves(net, graph, scores, [x], CurveOptions(held_back=measuring / examples))
    assert found != width_curves(net, graph, scores, [x], CurveOptions(held_back=(measuring + 2) / examples))


def test_curves_can_be_stored_and_taken_up_again(case: tuple[nn.Module, Tensor, ChannelGraph]) -> None:
    net, x, graph = case
    scores = score(net, graph, "magnitude")
    seen: list[int] = []
    curves = width_curves(
        net,
        graph,
        scores,
        [x],
        CurveOptions(shares=(0.5,)),
        progress=lambda so_far, total: seen.append(len(so_far) * 10 + total),
    )
    assert seen == [12, 22]
    stored = WidthCurves.from_dict(json.loads(json.dumps(curves.to_dict())))
    assert stored == curves
    changed = copy.deepcopy(stored.to_dict())
    changed["curves"]["inner"]["damages"][0] = 123.0
    again = width_curves(
        net, graph, scores, [x], CurveOptions(shares=(0.5,)), resume=WidthCurves.from_dict(changed)
    )
    assert again["inner"].damages[0] == 123.0
    assert again["stem"] == curves["stem"]
    other = width_curves(
        net, graph, scores, [x], CurveOptions(shares=(0.25,)), resume=WidthCurves.from_dict(changed)
    )
    assert other["inner"].damages[0] != 123.0


def test_the_network_and_chance_are_left_alone(case: tuple[nn.Module, Tensor, ChannelGraph]) -> None:
    net, x, graph = case
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state, given = torch.get_rng_state(), x.clone()
    width_curves(net, graph, score(net, graph, "magnitude"), [x], CurveOptions(shares=(0.5,)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(given, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_other_outputs_are_held_against_their_variance() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double().eval()
    x = torch.randn(40, 3, dtype=torch.float64)
    graph = trace(net, x[:2])
    curves = width_curves(net, graph, {"0": list(range(8))}, [x], CurveOptions(shares=(0.5,)))
    assert curves.divergence == "mse"
    plan = PruningPlan(graph, {"0": (4, 5, 6, 7)})
    small = apply_plan(net, plan)
    reconstruct(net, small, plan, [x[:20]])
    with torch.no_grad():
        found, expected = small(x[20:]), net(x[20:])
    damage = float((found - expected).square().mean() / expected.var(correction=0))
    assert curves["0"].damages[0] == pytest.approx(damage, rel=1e-4)


def test_wrong_arguments_are_refused(case: tuple[nn.Module, Tensor, ChannelGraph]) -> None:
    net, x, graph = case
    with pytest.raises(UsageError, match="at least two examples"):
        width_curves(net, graph, {"stem": range(6)}, [x[:1]])
    with pytest.raises(UsageError, match="needs 6 finite scores"):
        width_curves(net, graph, {"stem": range(5)}, [x])
    with pytest.raises(UsageError, match="held_back"):
        width_curves(net, graph, {"stem": range(6)}, [x], CurveOptions(held_back=1.0))


class TwoOutputs(nn.Module):
    """Scores, and boxes in pixels, from one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 8)
        self.scores = nn.Linear(8, 4)
        self.boxes = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.hidden(x))
        return {"scores": self.scores(hidden)[:, None], "boxes": 1000 * self.boxes(hidden)[:, None]}


def test_all_outputs_count_alike_whatever_their_scale() -> None:
    torch.manual_seed(0)
    net, x = TwoOutputs().double().eval(), torch.randn(60, 5, dtype=torch.float64)
    graph = trace(net, x[:2])
    options = CurveOptions(shares=(0.5,), held_back=0.5, fit=LeastSquares(ridge=0, rows_per_unknown=10**6))
    curve = width_curves(net, graph, score(net, graph, "magnitude"), [x], options)["hidden"]
    plan = PruningPlan(graph, {"hidden": curve.kept(4)})
    small = apply_plan(net, plan)
    reconstruct(net, small, plan, [x[:30]], options.fit)
    with torch.no_grad():
        whole, cut = net(x[30:]), small(x[30:])
    errors = [
        float((cut[name] - whole[name]).square().mean() / whole[name].var(correction=0)) for name in whole
    ]
    assert curve.damages[0] == pytest.approx(sum(errors) / 2, rel=1e-6)
