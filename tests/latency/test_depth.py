"""Times of networks without residual branches: what only they compute takes none."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur.graph import ChannelGraph, trace
from secateur.graph.capture.program import capture
from secateur.latency import Comparison, Latency, LatencyTable, Timings, latency_table
from secateur.latency.operators import find_operators
from secateur.plan import PruningPlan
from secateur.surgery import apply_plan
from tests.graph.depth_networks import Basic, Nested, Residual, pointwise, stack
from tests.latency.fake_device import OVERHEAD, FakeTimer

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "basic": lambda: stack(Basic(8, 6), Basic(8, 12)),
    "nested": lambda: stack(Nested(8, 5), Residual(pointwise(8, 7))),
}


def real_ms(net: nn.Module, x: torch.Tensor) -> float:
    """The time of the operators that a network runs, without the zeros in the place of a branch."""
    timer, graph = FakeTimer(), trace(net, x)
    operators = find_operators(graph, capture(net, x))
    return OVERHEAD + sum(
        timer(item.call(item.full)) * len(item.modules)
        for item in operators
        if not item.name.startswith("aten.new_zeros")
    )


def compare(models: Mapping[str, nn.Module], inputs: Any, **_: Any) -> Comparison:
    times = {name: real_ms(model, inputs) for name, model in models.items()}
    return Comparison({name: Latency(ms, ms, ms, 9, 1, "cpu", len(inputs)) for name, ms in times.items()})


@pytest.fixture(scope="module", params=["basic", pytest.param("nested", marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, ChannelGraph, LatencyTable]:
    net = NETWORKS[request.param]().eval()
    graph = trace(net, X)
    table = latency_table(net, graph, X, timings=Timings(), operator_timer=FakeTimer(), network_timer=compare)
    return net, graph, table


def test_every_choice_of_branches_takes_the_time_of_its_operators(
    case: tuple[nn.Module, ChannelGraph, LatencyTable],
) -> None:
    net, graph, table = case
    names = [branch.name for branch in graph.branches if branch.prunable]
    whole = float(table.milliseconds(graph.widths))
    for count in range(len(names) + 1):
        for chosen in combinations(names, count):
            plan = PruningPlan(graph, {}, chosen)
            predicted = float(table.milliseconds(graph.after(plan).units))
            assert predicted == pytest.approx(real_ms(apply_plan(net, plan), X), rel=0.01)
            assert predicted < whole or not chosen


def test_many_choices_at_once(case: tuple[nn.Module, ChannelGraph, LatencyTable]) -> None:
    _, graph, table = case
    branches = len(graph.wiring.branches)
    rng = np.random.default_rng(0)
    widths = rng.integers(1, graph.widths + 1, (20, len(graph.widths)))
    units = np.concatenate([widths, rng.integers(0, 2, (20, branches))], axis=1)
    assert table.milliseconds(units) == pytest.approx([float(table.milliseconds(row)) for row in units])
    units[:, len(graph.widths) :] = 1
    assert table.milliseconds(units) == pytest.approx(table.milliseconds(widths), rel=1e-12)
