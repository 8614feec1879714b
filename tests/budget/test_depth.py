"""Depth and width in one plan, compared with trying everything."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.budget import Budget, WidthCurve, WidthCurves, Widths, forecast, make_plan
from secateur.budget.choice_space import ChoiceSpace
from secateur.budget.depth import Depth, find_depth
from secateur.budget.integer_programme import GroupOptions, minimise_damage
from secateur.budget.limits import CostEvaluator
from secateur.criteria import Scores
from secateur.errors import BudgetError, UsageError
from secateur.graph import ChannelGraph, trace
from secateur.graph.groups import IntArray
from secateur.network_cost import cost
from secateur.plan import PruningPlan
from secateur.surgery import apply_plan
from tests.graph.depth_networks import Basic, Nested, Residual, pointwise, stack

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

NETWORKS = {
    "basic": lambda: stack(Basic(3, 4), Basic(3, 3), Basic(3, 4), channels=3),
    "nested": lambda: stack(Nested(3, 2), Residual(pointwise(3, 4)), channels=3),
}


@cache
def traced(name: str) -> ChannelGraph:
    torch.manual_seed(0)
    return trace(NETWORKS[name]().eval(), X)


class Device:
    """Each group costs time in steps, and only while the branches around it are present."""

    def __init__(self, graph: ChannelGraph, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.groups, self.branches = len(graph.groups), len(graph.wiring.branches)
        self.prices = rng.uniform(0.1, 1.0, self.groups)
        self.each = rng.uniform(0.5, 2.0, self.branches)
        tensors = [{member.tensor for member in group.members} for group in graph.groups]
        self.inside = np.array(
            [[own <= set(branch.tensors) for branch in graph.wiring.branches] for own in tensors]
        )

    def milliseconds(self, widths: IntArray) -> np.ndarray:
        groups = widths[..., : self.groups]
        there = widths[..., self.groups :] if widths.shape[-1] > self.groups else np.ones(self.branches)
        gone = ((1 - there) @ self.inside.T.astype(float)) > 0
        return 1.0 + (np.ceil(groups / 2) * self.prices * ~gone).sum(-1) + (there * self.each).sum(-1)


def damages(graph: ChannelGraph, seed: int) -> WidthCurves:
    rng = np.random.default_rng(seed)
    curves = {}
    for group in graph.prunable:
        steps = rng.exponential(rng.uniform(0.1, 2.0), group.channels - 1)
        row = [*np.cumsum(steps)[::-1].tolist(), 0.0]
        curves[group.name] = WidthCurve(
            tuple(range(group.channels)), tuple(range(1, group.channels + 1)), tuple(row)
        )
    return WidthCurves(curves, "kl", branches={b.name: rng.exponential(2.0) for b in graph.branches})


def everything(graph: ChannelGraph, curves: WidthCurves) -> tuple[IntArray, Depth, np.ndarray]:
    """All choices of widths and branches, and their damage."""
    depth = find_depth(graph, Widths(depth="auto"))
    choices = [range(1, group.channels + 1) if group.prunable else [group.channels] for group in graph.groups]
    widths = np.array(list(itertools.product(*choices, *[(0, 1)] * len(depth.units))), dtype=np.int64)
    total = np.zeros(len(widths))
    gone = {
        unit: {branch.name for branch in graph.branches if branch.name == unit or branch.parent == unit}
        for (unit,) in depth.units
    }
    groups = len(graph.groups)
    removed = {unit: widths[:, groups + place] == 0 for place, (unit,) in enumerate(depth.units)}
    for place, group in enumerate(graph.groups):
        if group.name not in curves:
            continue
        own = {member.tensor for member in group.members}
        away = np.zeros(len(widths), dtype=bool)
        for name, absent in removed.items():
            if own <= set(graph.branch(name).tensors):
                away |= absent
        found = np.array([0.0, *curves[group.name].damages])[widths[:, place]]
        total += np.where(away, 0.0, found)
    for name, absent in removed.items():
        outer = [other for other in gone if other != name and name in gone[other]]
        away = np.any([removed[other] for other in outer], axis=0) if outer else np.zeros(len(widths), bool)
        total += np.where(absent & ~away, curves.branches[name], 0.0)
    return widths, depth, total


def damage_of(plan: PruningPlan, curves: WidthCurves) -> float:
    widths = {name: len(kept) for name, kept in plan.keep.items()}
    return sum(curves[name].damages[width - 1] for name, width in widths.items()) + sum(
        curves.branches[name] for name in plan.without
    )


QUANTITIES = ["macs", "params", "memory", "latency"]


@settings(max_examples=24, deadline=None)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    seed=st.integers(0, 99),
    limited=st.sets(st.sampled_from(QUANTITIES), min_size=1, max_size=2),
    share=st.floats(0.25, 0.95),
)
def test_a_plan_is_found_where_there_is_one_and_is_within_the_limits(
    name: str, seed: int, limited: set[str], share: float
) -> None:
    graph = traced(name)
    curves, device = damages(graph, seed), Device(graph, seed)
    budget = Budget(**dict.fromkeys(sorted(limited), share))
    widths, depth, _ = everything(graph, curves)
    evaluator = CostEvaluator(ChoiceSpace.of(graph, depth), budget.amounts(graph, device), device)
    if not evaluator.within(widths).any():
        with pytest.raises(BudgetError, match="no plan meets the budget"):
            make_plan(graph, curves, budget, widths=Widths(depth="auto"), latency=device)
        return
    plan = make_plan(graph, curves, budget, widths=Widths(depth="auto"), latency=device)
    really = cost(apply_plan(NETWORKS[name]().eval(), plan), X)
    for quantity in limited - {"latency"}:
        assert getattr(really, quantity) <= evaluator.limits[quantity]


def test_the_damage_is_the_least_of_all_choices_in_nearly_all_problems() -> None:
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(100):
        graph, seed = traced(sorted(NETWORKS)[rng.integers(2)]), int(rng.integers(100))
        limited = rng.choice(QUANTITIES, size=rng.integers(1, 3), replace=False)
        budget = Budget(**dict.fromkeys(sorted(map(str, limited)), float(rng.uniform(0.25, 0.95))))
        curves, device = damages(graph, seed), Device(graph, seed)
        widths, depth, total = everything(graph, curves)
        within = CostEvaluator(ChoiceSpace.of(graph, depth), budget.amounts(graph, device), device).within(
            widths
        )
        if within.any():
            plan = make_plan(graph, curves, budget, widths=Widths(depth="auto"), latency=device)
            excess.append(damage_of(plan, curves) - float(total[within].min()))
    assert len(excess) > 80
    assert min(excess) > -1e-9
    assert np.mean(np.array(excess) < 1e-9) >= 0.98


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.integers(1, 50), min_size=6, max_size=6, unique=True), removed=st.integers(1, 5))
def test_equal_branches_go_by_score_and_by_damage_alike(values: list[int], removed: int) -> None:
    """Where all branches cost the same, both ways of planning are exact, and agree."""
    graph = equal_blocks()
    names = [branch.name for branch in graph.branches]
    scores = dict(zip(names, map(float, values), strict=True))
    macs = graph.cost().macs - removed * equal_cost(graph)
    widths = Widths(depth="only")
    by_score = make_plan(graph, Scores("made up", {}, branches=scores), Budget(macs=macs), widths=widths)
    by_damage = make_plan(graph, WidthCurves({}, "kl", branches=scores), Budget(macs=macs), widths=widths)
    expected = set(sorted(names, key=lambda name: scores[name])[:removed])
    assert set(by_score.without) == set(by_damage.without) == expected
    assert not by_score.keep


@cache
def equal_blocks() -> ChannelGraph:
    return trace(stack(*[Basic(4, 5) for _ in range(6)], channels=4).eval(), X)


def equal_cost(graph: ChannelGraph) -> int:
    return graph.cost().macs - PruningPlan(graph, {}, (graph.branches[0].name,)).cost_after.macs


def flat_scores(graph: ChannelGraph, branch: float = 1.0) -> Scores:
    groups = {group.name: torch.arange(1.0, group.channels + 1) for group in graph.prunable}
    return Scores("made up", groups, branches={item.name: branch for item in graph.branches})


def test_without_depth_nothing_changes() -> None:
    graph = traced("basic")
    scores = flat_scores(graph, branch=0.0)
    plain = Scores("made up", {name: scores[name] for name in scores})
    for budget in (Budget(macs=0.5), Budget(params=0.6, memory=0.9)):
        assert make_plan(graph, scores, budget) == make_plan(graph, plain, budget)
        assert not make_plan(graph, scores, budget).without


def test_channels_and_branches_compete_by_damage_per_cost() -> None:
    graph = traced("basic")
    cheap = make_plan(graph, flat_scores(graph, 1e-6), Budget(macs=0.6), widths=Widths(depth="auto"))
    dear = make_plan(graph, flat_scores(graph, 1e6), Budget(macs=0.6), widths=Widths(depth="auto"))
    assert cheap.without
    assert not cheap.keep
    assert dear.keep
    assert not dear.without
    assert max(cheap.cost_after.macs, dear.cost_after.macs) <= 0.6 * graph.cost().macs


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0.2, 0.9))
def test_nothing_that_was_removed_fits_again(seed: int, share: float) -> None:
    graph = traced("nested")
    rng = np.random.default_rng(seed)
    scores = Scores(
        "made up",
        {group.name: torch.from_numpy(rng.exponential(1.0, group.channels)) for group in graph.prunable},
        branches={branch.name: rng.exponential(5.0) for branch in graph.branches},
    )
    budget = Budget(macs=share)
    try:
        plan = make_plan(graph, scores, budget, widths=Widths(depth="auto"))
    except BudgetError:
        return
    most = budget.amounts(graph)["macs"]
    assert plan.cost_after.macs <= most
    for name in plan.without:
        rest = tuple(other for other in plan.without if other != name)
        assert PruningPlan(graph, dict(plan.keep), rest).cost_after.macs > most
    for name, kept in plan.keep.items():
        more = next(channel for channel in range(graph[name].channels) if channel not in kept)
        wider = PruningPlan(graph, {**plan.keep, name: (*kept, more)}, plan.without)
        assert wider.cost_after.macs > most


def removable(graph: ChannelGraph, **settings: object) -> list[str]:
    depth = find_depth(graph, Widths(depth="auto", **settings))  # type: ignore[arg-type]
    return [name for unit in depth.units for name in unit]


def test_what_is_named_stays() -> None:
    graph = traced("basic")
    assert removable(graph) == ["1", "2", "3"]
    assert removable(graph, ignore="1") == ["2", "3"]
    assert removable(graph, ignore="2.conv2") == ["1", "3"]
    assert removable(graph, floors={"3": 1}) == ["1", "2"]
    assert removable(graph, floors={"1.conv1": 2}) == ["2", "3"]
    assert removable(graph, floors=2) == removable(graph, floors={"*": 0.5}) == ["1", "2", "3"]
    assert removable(graph, only=["2"]) == ["2"]
    assert removable(graph, only=["2.conv1"]) == []


def test_a_branch_without_a_score_stays() -> None:
    graph = traced("basic")
    scores = flat_scores(graph, 1e-6)
    part = Scores("part", {name: scores[name] for name in scores}, branches={"1": 1e-6, "3": 1e-6})
    plan = make_plan(graph, part, Budget(macs=0.4), widths=Widths(depth="only"))
    assert plan.without == ("1", "3")


def test_settings_that_exclude_each_other() -> None:
    graph = traced("basic")
    with pytest.raises(UsageError, match="uniform_depth has no effect while depth is 'off'"):
        Widths(uniform_depth=True)
    with pytest.raises(UsageError, match="depth: Input should be 'off', 'auto' or 'only'"):
        Widths(depth="deep")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="allocation='uniform' takes the same share of every group"):
        make_plan(
            graph, flat_scores(graph), Budget(macs=0.5), widths=Widths(depth="auto"), allocation="uniform"
        )
    with pytest.raises(UsageError, match="the damage of removing branch '1' is not measured"):
        make_plan(graph, WidthCurves({}, "kl"), Budget(macs=0.5), widths=Widths(depth="only"))
    with pytest.raises(UsageError, match="removes residual branches, and this network has none"):
        find_depth(trace(torch.nn.Linear(3, 3), torch.zeros(1, 3)), Widths(depth="only"))


def test_a_budget_that_depth_alone_cannot_meet() -> None:
    graph = traced("basic")
    with pytest.raises(BudgetError, match="the least possible is"):
        make_plan(graph, flat_scores(graph), Budget(macs=0.01), widths=Widths(depth="only"))


def test_a_forecast_counts_what_branches_allow() -> None:
    graph = traced("basic")
    found = forecast(graph, Budget(macs=0.5), flat_scores(graph), widths=Widths(depth="only"))
    least = PruningPlan(graph, {}, ("1", "2", "3")).cost_after
    assert found.reach["macs"].least == least.macs
    assert found.plan is not None
    assert found.reach["macs"].planned == found.plan.cost_after.macs


class Layer(torch.nn.Module):
    """Attention and MLP of a transformer, in miniature."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        self.mlp = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(x)
        return x + self.mlp(x)


@cache
def layers() -> ChannelGraph:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), *[Layer() for _ in range(4)], torch.nn.Linear(4, 2))
    return trace(net.eval(), torch.randn(2, 3))


def test_branches_of_one_block_go_together() -> None:
    graph = layers()
    widths = Widths(depth="only", uniform_depth=True)
    units = find_depth(graph, widths).units
    assert units == tuple((f"{n}.mixer", f"{n}.mlp") for n in range(1, 5))
    scores = {
        f"{n}.{part}": float(n if part == "mlp" else 0) for n in range(1, 5) for part in ("mixer", "mlp")
    }
    plan = make_plan(graph, Scores("made up", {}, branches=scores), Budget(params=0.6), widths=widths)
    assert plan.without == ("1.mixer", "1.mlp", "2.mixer", "2.mlp")
    kept = find_depth(graph, widths.changed(ignore="3.mlp")).units
    assert kept == tuple((f"{n}.mixer", f"{n}.mlp") for n in (1, 2, 4))


def test_plans_one_after_the_other() -> None:
    graph = equal_blocks()
    net = stack(*[Basic(4, 5) for _ in range(6)], channels=4).eval()
    for share in (0.8, 0.6, 0.4):
        macs = int(share * equal_blocks().cost().macs)
        plan = make_plan(graph, flat_scores(graph, 0.5), Budget(macs=macs), widths=Widths(depth="auto"))
        net = apply_plan(net, plan)
        graph = graph.after(plan)
        assert graph.cost() == plan.cost_after == cost(net, X)
        assert graph.cost().macs <= macs


def test_groups_vanish_in_the_integer_programme() -> None:
    """A group in an absent branch costs nothing, so the other one keeps all its channels."""

    class Meter:
        limits = {"macs": 10}
        allowed = np.array([10])

        def limited(self, widths: IntArray) -> IntArray:
            return (widths[..., 0] + 10 * widths[..., 1] * widths[..., 2])[..., None]

        def within(self, widths: IntArray) -> np.ndarray:
            return (self.limited(widths) <= self.allowed).all(axis=-1)

    inside = np.array([[False, True, False]])
    options = [
        GroupOptions(np.arange(1, 11), np.arange(9.0, -1.0, -1.0)),
        GroupOptions(np.arange(1, 4), np.array([50.0, 20.0, 0.0])),
        GroupOptions(np.array([0, 1]), np.array([3.0, 0.0])),
    ]
    assert minimise_damage(Meter(), options, inside)[[0, 2]].tolist() == [10, 0]  # type: ignore[arg-type]
