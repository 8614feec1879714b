from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.budget import Budget, WidthCurve, WidthCurves, Widths, make_plan
from secateur.criteria import Scores, channel_costs
from secateur.errors import BudgetError
from secateur.graph import ChannelGraph, trace
from secateur.recipes.recipe import Recipe
from secateur.recipes.schedule import PruningSchedule, ScheduledStep

_CHANNELS = 8 + 12 + 16


def even(graph: ChannelGraph) -> dict[str, Tensor]:
    return {group.name: torch.linspace(0.5, 1.5, group.channels) for group in graph.prunable}


def scheduled(budget: Budget, graph: ChannelGraph, recipe: Recipe) -> PruningSchedule:
    return PruningSchedule.of(budget, graph, recipe, Widths())


def walk(graph: ChannelGraph, schedule: PruningSchedule) -> list[ScheduledStep]:
    steps: list[ScheduledStep] = []
    while not steps or not steps[-1].last:
        steps.append(schedule.step(graph, even(graph), len(steps) + 1))
        graph = graph.after(steps[-1].plan)
    return steps


@pytest.fixture
def graph(net: nn.Module, example: Tensor) -> ChannelGraph:
    return trace(net, example)


def test_a_number_of_channels_goes_at_each_step_and_the_rest_at_the_last(graph: ChannelGraph) -> None:
    schedule = scheduled(Budget(channels=0.25), graph, Recipe.preset("plain", channels_per_step=10))
    assert [step.plan.channels_removed for step in walk(graph, schedule)] == [10, 10, 7]
    assert schedule.steps is None


def test_a_number_of_steps_ends_exactly_at_the_budget(graph: ChannelGraph) -> None:
    budget = Budget(macs=0.3, params=0.5)
    schedule = scheduled(budget, graph, Recipe.preset("plain", steps=4))
    steps = walk(graph, schedule)
    assert len(steps) == 4 == schedule.steps
    macs = [graph.cost().macs, *(step.plan.cost_after.macs for step in steps)]
    assert macs == sorted(macs, reverse=True)
    for before, after in pairwise(macs):
        assert after / before == pytest.approx(0.3**0.25, abs=0.15)
    assert steps[-1].plan.cost_after.macs <= 0.3 * macs[0]
    assert steps[-1].plan.cost_after.params <= 0.5 * graph.cost().params


def test_filters_only_means_a_share_of_the_filters(graph: ChannelGraph) -> None:
    schedule = scheduled(Budget(channels=0.25), graph, Recipe.preset("plain", steps=1, filters_only=True))
    plan = schedule.step(graph, even(graph), 1).plan
    assert plan.channels_removed == 15  # of 8 + 12 filters
    assert "7" not in plan.keep


def test_an_impossible_budget_is_an_error_before_the_first_step(graph: ChannelGraph) -> None:
    with pytest.raises(BudgetError):
        scheduled(Budget(params=1), graph, Recipe.preset("plain"))


def test_a_budget_that_is_met_already_takes_one_empty_step(graph: ChannelGraph) -> None:
    for settings in (Recipe.preset("plain", steps=1), Recipe.preset("plain", channels_per_step=5)):
        (step,) = walk(graph, scheduled(Budget(channels=_CHANNELS), graph, settings))
        assert step.plan.channels_removed == 0


@given(
    start=st.integers(1, 10**12),
    share=st.floats(0.01, 1.0),
    steps=st.integers(1, 20),
)
def test_step_limitss_fall_steadily_and_never_below_the_goal(start: int, share: float, steps: int) -> None:
    goal = max(1, int(start * share))
    schedule = PruningSchedule({"macs": start}, {"macs": goal}, Recipe(), Widths())
    stones = [schedule.step_limits(step / steps).get("macs", goal) for step in range(1, steps + 1)]
    assert stones == sorted(stones, reverse=True)
    assert stones[-1] == pytest.approx(goal, rel=1e-9)


def test_charges_move_the_cut_to_dear_channels(graph: ChannelGraph) -> None:
    """With equal scores, a high rate cuts where a channel saves most, as the charged scores say."""
    equal = Scores("equal", {group.name: torch.ones(group.channels) for group in graph.prunable})
    settings = Recipe.preset("plain", steps=1, cost_regularization={"quantity": "params", "rate": 1e6})
    plan = scheduled(Budget(channels=0.7), graph, settings).step(graph, equal, 1).plan
    costs = channel_costs(graph, "params")
    dearest = max(costs, key=lambda name: costs[name] * 1e6 - float(equal.normalized("l2")[name][0]))
    assert set(plan.removed) == {dearest}
    free = Recipe.preset("plain", steps=1, cost_regularization={"quantity": "params", "rate": 0})
    plain = scheduled(Budget(channels=0.7), graph, Recipe.preset("plain", steps=1)).step(graph, equal, 1).plan
    assert scheduled(Budget(channels=0.7), graph, free).step(graph, equal, 1).plan.removed == plain.removed


def test_one_uniform_cut_takes_the_share_of_every_group_as_a_plan_does(graph: ChannelGraph) -> None:
    recipe = Recipe.preset("one-shot", allocation="uniform")
    plan = scheduled(Budget(channels=0.3), graph, recipe).step(graph, even(graph), 1).plan
    assert plan == make_plan(graph, even(graph), Budget(channels=0.3), allocation="uniform")
    assert [len(kept) for kept in plan.keep.values()] == [2, 3, 4]


def test_curves_give_uniform_widths_and_remove_branches_in_one_recipe() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x).relu())

    net = nn.Sequential(nn.Linear(3, 6), Block(), Block(), nn.Linear(6, 2))
    graph = trace(net, torch.randn(2, 3))
    recipe = Recipe.preset("plain", steps=1, allocation="curves")
    schedule = PruningSchedule.of(Budget(macs=0.6), graph, recipe, Widths(uniform_widths=True, depth="auto"))
    curves = {
        group.name: WidthCurve(tuple(range(group.channels)), (1, group.channels), (1.0, 0.0))
        for group in graph.prunable
    }
    branches = {branch.name: 0.1 * (number + 1) for number, branch in enumerate(graph.branches)}
    plan = schedule.step(graph, WidthCurves(curves, "mse", branches=branches), 1).plan
    assert plan.without == ("1",)
    assert plan.cost_after.macs <= 0.6 * graph.cost().macs
