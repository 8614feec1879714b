"""Budgets on real networks: what is predicted is what is counted after the cut."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.budget import Budget, make_plan, reachable
from secateur.graph import ChannelGraph, trace
from secateur.surgery import apply_plan
from tests.graph.networks import NAMES, build

INPUTS = torch.zeros(2, 3, 8, 8)


@cache
def traced(name: str) -> ChannelGraph:
    return trace(build(name), inputs_of(name))


def inputs_of(name: str) -> torch.Tensor:
    return torch.zeros(2, 3, 7, 7) if name == "flattened" else INPUTS


def counted(model: nn.Module, inputs: torch.Tensor) -> tuple[int, int, int]:
    """Parameters, MACs of one example, bytes: PyTorch's own counter sees every operator that runs."""
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    tensors = [*model.parameters(), *model.buffers()]
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        counter.get_total_flops() // 2 // len(inputs),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


@pytest.mark.parametrize("name", NAMES)
def test_predicted_costs_are_counted_costs(name: str):
    graph, model, inputs = traced(name), build(name), inputs_of(name)
    scores = {group.name: torch.rand(group.channels) for group in graph.prunable}
    least, now = reachable(graph)
    for share in (1.0, 0.6, 0.2):
        most = int(least.params + share * (now.params - least.params))
        plan = make_plan(graph, scores, Budget(params=most))
        cost = plan.cost_after
        assert cost.params <= most
        assert (cost.params, cost.macs, cost.bytes) == counted(apply_plan(model, plan), inputs)


@pytest.mark.parametrize("name", NAMES)
def test_half_of_every_group(name: str):
    graph = traced(name)
    scores = {group.name: torch.rand(group.channels) for group in graph.prunable}
    plan = make_plan(graph, scores, Budget(channels=0.5), allocation="uniform")
    small = graph.after(plan)
    for before, after in zip(graph.groups, small.groups, strict=True):
        wanted = max(1, before.channels // 2) if before.prunable else before.channels
        assert after.channels == wanted
    assert small.cost() == plan.cost_after


def test_budgets_in_turn_reach_the_same_limits():
    graph = traced("residual")
    for share in (0.8, 0.6, 0.4):
        macs = int(share * traced("residual").cost().macs)
        scores = {group.name: torch.rand(group.channels) for group in graph.prunable}
        plan = make_plan(graph, scores, Budget(macs=macs))
        assert plan.cost_after.macs <= macs
        graph = graph.after(plan)
        assert graph.cost() == plan.cost_after
