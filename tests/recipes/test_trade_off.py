"""Points of a frontier are the networks that pruning to their budgets gives."""

from __future__ import annotations

import copy
import json
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateur as sec
from secateur.errors import UsageError
from secateur.recipes import Recipe, Training, attention, measuring
from secateur.recipes.measured import Measured
from secateur.recipes.trade_off import shares
from tests.recorder import Recorder

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 3),
    )


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 6, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator))
        for _ in range(3)
    ]


def test_each_point_is_the_network_of_its_budget(net: nn.Module, batches: list[Batch]) -> None:
    before = copy.deepcopy(net.state_dict())
    with (
        patch.object(measuring, "width_curves", wraps=measuring.width_curves) as measured,
        patch.object(attention, "trace", wraps=attention.trace) as traced,
    ):
        found = sec.frontier(net, batches[0][0], batches, points=4)
    assert measured.call_count <= 4
    assert traced.call_count == 0  # the frontier traces once for all points
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    whole = sec.cost(net, batches[0][0])
    assert found.cost == whole
    for point in found.points:
        recipe = Recipe(finetune={"epochs": 0})
        alone = sec.prune(net, batches[0][0], sec.Budget(macs=point.share), batches=batches, recipe=recipe)
        assert point.plan.keep == alone.plan.keep
        assert point.cost == sec.cost(alone.model, batches[0][0])
        assert point.cost.macs <= point.share * whole.macs
        assert point.verification.ok
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        with torch.no_grad():
            scores = alone.model.eval()(inputs)
        assert point.evaluation.metric == (scores.argmax(1) == targets).double().mean().item()
        assert point.evaluation.loss == pytest.approx(float(cross_entropy(scores, targets)), rel=1e-5)


def test_curves_are_measured_once_and_serve_later_budgets(net: nn.Module, batches: list[Batch]) -> None:
    heard = Recorder()
    found = sec.frontier(net, batches[0][0], batches, points=3, callbacks=[heard])
    curves = found.measured.curves
    assert curves is not None
    again = Measured.from_dict(json.loads(json.dumps(found.measured.to_dict())))
    assert again == found.measured
    plan = sec.make_plan(sec.trace(net, batches[0][0]), curves, sec.Budget(macs=found.points[1].share))
    assert plan.keep == found.points[1].plan.keep
    assert len(heard.of(type(curves))) == len(curves)  # each group once, not once for every point


def test_validation_examples_and_metrics_are_used_where_given(net: nn.Module, batches: list[Batch]) -> None:
    right = [(batches[0][0], net.eval()(batches[0][0]).argmax(1))]
    found = sec.frontier(net, batches[0][0], Training(batches, validation=right), by="params", points=2)
    assert found.baseline.metric == 1
    assert found.baseline.examples == 16
    sizes = []

    def metric(model: nn.Module) -> float:
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        return float(len(sizes))

    found = sec.frontier(net, batches[0][0], Training(batches, metric=metric), by="params", points=2)
    assert [point.cost.params for point in found.points] == sizes[:2]
    assert [point.evaluation.metric for point in found.points] == [1, 2]
    assert found.baseline.metric == 3


def test_a_metric_is_called_without_gradients_and_shown_by_its_name(
    net: nn.Module, batches: list[Batch]
) -> None:
    class Width:
        name = "width"

        def __call__(self, model: nn.Module) -> float:
            assert not torch.is_grad_enabled()
            return float(model[0].out_channels)

    found = sec.frontier(net, batches[0][0], Training(batches, metric=Width()), points=2)
    assert found.baseline.metric == 12
    assert {evaluation.name for evaluation in (found.baseline, *(p.evaluation for p in found.points))} == {
        "width"
    }


def test_shares_lie_between_what_can_be_reached_and_nine_tenths() -> None:
    assert list(shares(5, 0.0)) == [0.9, 0.7, 0.5, 0.3, 0.1]
    assert min(shares(8, 0.456)) == 0.47
    with pytest.raises(UsageError, match="at least one point, not 0"):
        list(shares(0, 0.0))
