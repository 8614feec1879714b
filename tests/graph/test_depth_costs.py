"""Costs without residual branches, compared with those of networks that were really cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.graph import trace
from secateur.graph.conditions import both, either, exclusive, opposite
from secateur.graph.costing import module_macs
from secateur.graph.costs import CostModelBuilder
from secateur.models import build
from secateur.network_cost import cost
from secateur.plan import PruningPlan
from secateur.surgery import apply_plan
from tests.graph.depth_networks import NETWORKS
from tests.live import peak_bytes

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_choice_of_branches_costs_what_the_cut_network_costs(name: str) -> None:
    net = NETWORKS[name]().eval()
    graph = trace(net, X)
    names = [branch.name for branch in graph.branches if branch.prunable]
    assert len(names) > 1
    for count in range(len(names) + 1):
        for chosen in itertools.combinations(names, count):
            plan = PruningPlan(graph, {}, chosen)
            assert plan.cost_after == cost(apply_plan(net, plan), X), chosen


@pytest.mark.parametrize("name", ["basic", "nested", "parallel", "skip"])
def test_half_of_the_channels_and_half_of_the_branches(name: str) -> None:
    net = NETWORKS[name]().eval()
    graph = trace(net, X)
    names = [branch.name for branch in graph.branches if branch.prunable]
    keep = {group.name: tuple(range(0, group.channels, 2)) for group in graph.prunable}
    for chosen in (names[::2], names[1::2]):
        plan = PruningPlan(graph, keep, tuple(chosen))
        small = apply_plan(net, plan)
        assert plan.cost_after == cost(small, X)
        assert sum(module_macs(graph.after(plan)).values()) == plan.cost_after.macs


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_memory_is_what_is_alive_when_the_cut_network_runs(name: str) -> None:
    images = torch.zeros(2, 3, 64, 64)
    net = build(f"torchvision:{name}", classes=4)
    graph = trace(net, images)
    names = [branch.name for branch in graph.branches if branch.prunable]
    plan = PruningPlan(graph, {}, tuple(names[::2]))
    small = apply_plan(net, plan)
    assert plan.cost_after == cost(small, images)
    assert plan.cost_after.memory == peak_bytes(small, images)


def test_cuts_one_after_the_other_cost_what_one_cut_costs() -> None:
    net = NETWORKS["nested"]().eval()
    graph = trace(net, X)
    first = graph.after(PruningPlan(graph, {}, ("2.inner.f",)))
    second = first.after(PruningPlan(first, {}, ("1", "2")))
    assert second.cost() == PruningPlan(graph, {}, ("1", "2")).cost_after
    assert second.cost_model.evaluate(second.widths).tolist()[0] == second.cost().params


@given(st.data())
def test_folded_branches_cost_the_same(data: st.DataObject) -> None:
    groups, branches = 3, 2
    builder = CostModelBuilder(groups, branches)
    sizes = [
        builder.extent(1, {0: 2}),
        builder.extent(0, {1: 3}),
        builder.extent(4),
        builder.extent(0, {2: 1}),
    ]
    factors = [*sizes, *map(builder.present, range(branches)), *map(builder.absent, range(branches))]
    term = st.tuples(st.integers(0, 9), st.lists(st.sampled_from(factors), max_size=5))
    for add in (builder.params, builder.macs, builder.bytes):
        for coefficient, chosen in data.draw(st.lists(term, max_size=4)):
            add(coefficient, chosen)
    values = [builder.value(*drawn) for drawn in data.draw(st.lists(term, min_size=1, max_size=5))]
    builder.live(data.draw(st.lists(st.lists(st.sampled_from(values), max_size=4), max_size=4)))
    model = builder.build()
    widths = np.array(data.draw(st.lists(st.tuples(*[st.integers(0, 9)] * groups), max_size=4)))
    widths = widths.astype(np.int64).reshape(-1, groups)
    for present in itertools.product((0, 1), repeat=branches):
        folded = model.with_branches(present).evaluate(widths)
        both_parts = np.concatenate([widths, np.tile(present, (len(widths), 1))], axis=1)
        assert folded.tolist() == model.evaluate(both_parts).tolist()


literals = st.tuples(st.integers(0, 3), st.booleans())
conditions = st.frozensets(
    st.dictionaries(st.integers(0, 3), st.booleans(), max_size=3).map(lambda case: frozenset(case.items())),
    max_size=4,
)


def holds(condition: frozenset[frozenset[tuple[int, bool]]], present: tuple[bool, ...]) -> bool:
    return any(all(present[branch] == there for branch, there in case) for case in condition)


@given(conditions, conditions)
def test_conditions_are_boolean_algebra(one, other) -> None:
    for present in itertools.product((False, True), repeat=4):
        first, second = holds(one, present), holds(other, present)
        assert holds(both(one, other), present) == (first and second)
        assert holds(either(one, other), present) == (first or second)
        assert holds(opposite(one), present) == (not first)
        assert sum(holds(frozenset([case]), present) for case in exclusive(one)) == int(first)
